"""``doit chat`` as a person runs it."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ingot.commands import chat as command
from ingot.core.environment import OFFLINE, UNTOLD
from ingot.errors import IngotError
from projectkit import DOIT, Sandbox
from recordkit import copied

pytestmark = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs llama-cpp-python")

START = "Once upon a time"
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
SPEC = """\
targets:
  model: {kind: fetch, path: ../model}
  gguf: {kind: fetch, path: ../gguf/model.gguf}
  rows: {kind: dataset, sources: [{path: ../rows.jsonl}]}
  later: {kind: gguf, from: {model: model}, type: F16}
  both: {kind: fetch, matrix: {path: [{hf: ../model}, {gguf: ../gguf/model.gguf}]}}
"""


@pytest.fixture(scope="module")
def built(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """The stories model in two forms, and a data set."""
    sandbox = Sandbox.make(tmp_path_factory.mktemp("chat"))
    sandbox.file("rows.jsonl", "".join(json.dumps({"text": f"story {n}"}) + "\n" for n in range(4)))
    shutil.copytree(stories, sandbox.root / "model", ignore=shutil.ignore_patterns("*.gguf", "SOURCE*", "LICENSE*"))
    (sandbox.root / "gguf").mkdir()
    shutil.copy(stories / "stories260Ktok512-f32.gguf", sandbox.root / "gguf" / "model.gguf")
    sandbox.spec(SPEC)
    sandbox.ok("s:model", "s:gguf", "s:rows")
    return sandbox


def chat(sandbox: Sandbox, *arguments: str, asked: str = "") -> subprocess.CompletedProcess[str]:
    command = [DOIT, "chat", *arguments]
    said = asked.encode("utf-8", "surrogateescape")
    done = subprocess.run(
        command, cwd=sandbox.root, env=sandbox.env, input=said, capture_output=True, timeout=120, check=False
    )
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_every_form_of_a_model_gives_the_same_answer(built: Sandbox) -> None:
    said = [
        built.doit("chat", place, START, "--tokens", "12")
        for place in ("s:gguf", "gguf/model.gguf", "cache/latest/s/gguf", "s:model")
    ]
    assert {(done.returncode, done.stderr) for done in said} == {(0, "")}
    assert {done.stdout for done in said} == {", there was a little girl named Lily. She\n"}


def test_lines_of_standard_input_are_answered_in_turn(built: Sandbox) -> None:
    """A model without a template continues each text anew."""
    done = chat(built, "s:gguf", "--tokens", "5", asked=f"{START}\n\n \n{START}\nThe \udcff dog\n")
    first, second, _third = done.stdout.splitlines()
    assert first == second == ", there was a little"


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    [
        (("s:gguff", "x"), "E-TARGET: there is no target 's:gguff'\n  hint: did you mean s:gguf", 2),
        (("s:later", "x"), "E-NOT-BUILT: s:later was never built\n  hint: build it: doit s:later", 2),
        (("s:both", "x"), "E-TARGET: 's:both' names several targets\n  s:both@gguf\n  s:both@hf", 2),
        (("s:rows", "x"), "E-CHAT-KIND: s:rows is of the kind dataset", 2),
        (("cache/latest/s/rows", "x"), "E-CHAT-MODEL: there is no model to talk to in cache/latest/s/rows", 3),
        (("rows.jsonl", "x"), "E-GGUF: rows.jsonl is not a GGUF file", 3),
        (("none.gguf", "x"), "E-FILE: there is no file or folder 'none.gguf'", 2),
        (("s:gguf", "word " * 500, "--context", "32"), "E-CONTEXT: the conversation has 1502 tokens", 2),
        (("s:gguf", "x", "--tokens", "0"), "E-USAGE: --tokens is a whole number from 1 up, not '0'", 2),
        (("s:gguf", "x", "--context", "much"), "E-USAGE: --context is a whole number from 1 up, not 'much'", 2),
        (("s:model", "x", "--dtype", "int8"), "E-USAGE: ", 2),
        ((), "E-USAGE: ", 2),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_is_one_message(built: Sandbox, arguments: tuple[str, ...], code: str, status: int) -> None:
    done = built.doit("chat", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(code)
    assert "Traceback" not in done.stderr


def test_an_answer_that_fills_the_context_says_so(built: Sandbox) -> None:
    done = built.doit("chat", "s:gguf", START, "--context", "16")
    assert (done.returncode, done.stderr) == (0, "note: the answer was cut: the context of 16 tokens is full\n")


def _edit(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _remove(path: Path) -> None:
    path.parent.chmod(0o755)
    path.parent.parent.chmod(0o755)
    shutil.rmtree(path.parent)


@pytest.mark.parametrize(("harm", "code"), [(_edit, "E-OBJECT-DAMAGED"), (_remove, "E-OBJECT-MISSING")])
def test_an_artifact_that_is_not_what_the_log_says_answers_nothing(
    built: Sandbox, tmp_path: Path, harm: Callable[[Path], None], code: str
) -> None:
    sandbox = copied(built, tmp_path)
    harm(next((sandbox.root / "cache/objects").glob("*/*/file.gguf")))
    done = sandbox.doit("chat", "s:gguf", START)
    assert (done.returncode, done.stdout, done.stderr.partition(":")[0]) == (4, "", code)
    assert "hint: build it again: doit s:gguf" in done.stderr


def test_a_reader_that_goes_away_is_no_traceback(built: Sandbox) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [DOIT, "chat", "s:gguf", START, "--tokens", "5"], cwd=built.root, env=built.env,
        stdout=write, stderr=subprocess.PIPE, text=True, check=False, timeout=120,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_in_a_terminal_it_asks_and_ctrl_c_ends_it(built: Sandbox, tmp_path: Path) -> None:
    """Also the process that renders templates hears Ctrl-C in a terminal, and has nothing to say."""
    folder = tmp_path / "model"
    shutil.copytree(built.root / "model", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests in the background has it ignored
        os.chdir(built.root)
        os.execve(DOIT, [DOIT, "chat", str(folder), "--tokens", "3"], built.env)
    seen = _until(terminal, "> ")
    os.write(terminal, f"{START}\n".encode())
    seen += _until(terminal, "> ")
    seen += _until(terminal, None, often=b"\x03")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGINT
    lines = seen.replace("\r", "").splitlines()
    assert lines[0] == f"> {START}"
    assert len(lines[1]) > 3
    assert lines[2].rstrip("^C") == "> "
    assert lines[3:] == ["interrupted"]


def _until(terminal: int, end: str | None, often: bytes = b"") -> str:
    """What a terminal shows until a text (None: until it is closed); ``often`` is typed until it shows something.

    (A signal that comes between a prompt and the wait behind it is heard with the next key only.)
    """
    seen, begin = "", time.monotonic()
    while time.monotonic() - begin < 120:
        if often and not seen.strip("^C"):
            os.write(terminal, often)
        if select.select([terminal], [], [], 1)[0]:
            try:
                data = os.read(terminal, 4096)
            except OSError:  # nobody is at the other end any more
                data = b""
            if not data:
                return seen
            seen += data.decode()
            if end is not None and seen.endswith(end):
                return seen
    raise AssertionError(f"waited in vain for {end!r}: {seen!r}")


def test_libraries_ask_and_tell_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in the command's own process here, before whose end nothing takes the network away."""
    for name in {**OFFLINE, **UNTOLD}:
        monkeypatch.setenv(name, "0")
    with pytest.raises(IngotError):
        command._open(tmp_path, 8, "float32")
    assert {**OFFLINE, **UNTOLD}.items() <= os.environ.items()
