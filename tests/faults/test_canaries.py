"""A user's secrets, through every command and every way to fail: afterwards no file that ingot wrote holds one.

Looked at are store, staging, registry, logs, pages, the artifacts and their metadata, and the user's keys and pins.
What a person typed may stand on their own screen; what an environment variable holds may not.
"""

from __future__ import annotations

import importlib.metadata
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from projectkit import DOIT, Sandbox, counted
from recordkit import simple

CANARY = "canary-5e1f"
#: Secrets as users have them in their environment, …
SECRETS = {"HF_TOKEN": f"hf-{CANARY}-0", "OPENAI_API_KEY": f"{CANARY}-1", "DATABASE_PASSWORD": f"{CANARY}-2"}
#: … and one that is typed by mistake.
TYPED = "hf_" + "aB3dE" * 7 + CANARY.replace("-", "")
_FORMS = (CANARY.encode(), CANARY.replace("-", "").encode())

#: Of every command, a line that does something and one that fails; ``{}`` stands for what was typed by mistake.
LINES: dict[str, list[list[str]]] = {
    "run": [["run"], ["run", "{}"], ["{}=x"], ["-f", "{}"]],
    "plan": [["plan"], ["plan", "--json"], ["plan", "{}"]],
    "show": [["show", "s:b"], ["show", "{}"]],
    "why": [["why", "s:b"], ["why", "s:{}"]],
    "diff": [["diff", "s:a", "s:b"], ["diff", "{}", "s:b"]],
    "history": [["history"], ["history", "{}"]],
    "audit": [["audit", "--json"], ["audit", "{}"]],
    "schema": [["schema"], ["schema", "{}"]],
    "new": [["new", "fresh", "--kind=command"], ["new", "{}"]],
    "doctor": [["doctor"], ["doctor", "{}"]],
    "report": [["report"], ["report", "--all", "--json"], ["report", "s:{}", "--html"]],
    "promote": [
        ["promote", "s:b"],
        ["promote", "s:a", "--reason", "{}"],
        ["promote", "s:a", "--digest", "{}"],
        ["promote", "s:a", "--reason", f"it was {SECRETS['DATABASE_PASSWORD']}"],
    ],
    "rollback": [["rollback", "s:b"], ["rollback", "s:b", "--reason", "{}"]],
    "accept": [["accept", "s:b", "--reason", "{}"], ["accept", "s:b", "--reason", SECRETS["DATABASE_PASSWORD"]]],
    "materialize": [["materialize", "s:b"], ["materialize", "s:{}"]],
    "registry": [["registry", "list"], ["registry", "proof", "s:b"], ["registry", "verify", "{}"]],
    "unpack": [["unpack", "s:b", "unpacked"], ["unpack", "{}", "elsewhere"]],
    "chat": [["chat", "s:b", "Hello"], ["chat", "s:b", "{}"], ["chat", "{}"]],
    "bisect": [["bisect", "s", "--metric", "x", "--max", "1"], ["bisect", "s", "--metric", "{}", "--max", "1"]],
    "query": [["query", "smallest"], ["query", "smallest {}"]],
    "forget": [["forget", "{}"], ["forget", "s:b"]],
    "gc": [["gc", "--dry-run"], ["gc", "--keep", "{}"]],
    "reproduce": [["reproduce", "s:b"], ["reproduce", "s:{}"]],
}


def held(sandbox: Sandbox) -> list[str]:
    """The files of project and home, but those that the test wrote, that hold a canary in any of its forms."""
    return [
        str(path)
        for root in (sandbox.root, sandbox.home)
        for path in root.rglob("*")
        if path.is_file() and path.name != "theirs.txt" and any(form in path.read_bytes() for form in _FORMS)
    ]


@pytest.fixture
def secretive(chain: Sandbox) -> Sandbox:
    """A built project of a user with secrets in the environment."""
    chain.extra_env |= SECRETS
    return chain


def test_every_command_has_its_lines() -> None:
    there = {point.name for point in importlib.metadata.entry_points(group="doit.COMMAND")}
    assert there - set(LINES) == set()


@pytest.mark.fault("S1", "every command, well and wrongly used, with secrets in the environment and in argv")
def test_no_command_keeps_a_secret(secretive: Sandbox, cases: Callable[[int], None]) -> None:
    there = {point.name for point in importlib.metadata.entry_points(group="doit.COMMAND")}
    for name in [name for name in LINES if name in there]:
        for line in LINES[name]:
            done = secretive.doit(*(word.replace("{}", TYPED) for word in line))
            assert "Traceback" not in done.stdout + done.stderr, (line, done.stderr)
            if SECRETS["DATABASE_PASSWORD"] not in line[-1]:
                assert CANARY not in done.stdout + done.stderr, line
            assert held(secretive) == [], line
            cases(1)


# --- ways to fail ------------------------------------------------------------------------------------------------


def theirs(sandbox: Sandbox) -> Path:
    """A file outside the project that holds the secrets, as a program of theirs would read it."""
    path = sandbox.root.parent / "theirs.txt"
    path.write_text("".join(f"{name}={value}\n" for name, value in SECRETS.items()))
    return path


def spec_that(sandbox: Sandbox, script: str, more: str = "") -> None:
    """One target that runs a script; what the script names is no part of the project."""
    sandbox.spec(f"targets:\n  a: {{kind: command, command: [sh, -c, {json.dumps(script)}]}}\n{more}")


FAILURES: dict[str, tuple[str, str, str]] = {
    "the stage fails": ("cat {theirs}; cat {theirs} >&2; env; exit 3", "", "E-COMMAND"),
    "the stage cannot be started": ("exec /none/{theirs}", "", "E-COMMAND"),
    "the gate fails": ("cat {theirs}; echo x > {{out}}/x", "gates: {a.bytes: {max: 1}}\n", "E-GATE"),
    "the output holds it": ("cp {theirs} {{out}}/x.txt", "", "E-OUTPUT-SECRET"),
    "the name of the output holds it": ("touch {{out}}/$(head -c 14 {theirs} | tail -c 3)", "", ""),
    "nothing is written": ("cat {theirs}", "", "E-OUTPUT-EMPTY"),
}


@pytest.mark.fault("S1", "a stage that has read a secret fails, breaks a gate or writes it: it is kept nowhere")
@pytest.mark.parametrize("way", FAILURES)
def test_no_failure_keeps_a_secret(way: str, secretive: Sandbox) -> None:
    script, more, code = FAILURES[way]
    spec_that(secretive, script.format(theirs=theirs(secretive)), more)
    done = secretive.doit("-c")
    assert code in done.stdout + done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert held(secretive) == []


SPECS = {
    "env, by its name": "env: {API_TOKEN: " + CANARY + "-9}",
    "env, by its form": "env: {X: " + TYPED + "}",
    "env, as the environment has it": "env: {X: " + SECRETS["DATABASE_PASSWORD"] + "}",
    "a word of the command": "tools: {x: [x, '--password=" + SECRETS["DATABASE_PASSWORD"] + "']}",
}


@pytest.mark.fault("S1", "a spec holds a secret of the environment, by name, form or value: refused, kept nowhere")
@pytest.mark.parametrize("place", SPECS)
def test_no_spec_keeps_a_secret(place: str, secretive: Sandbox) -> None:
    path = secretive.spec(f"targets:\n  a: {{kind: command, command: [sh, -c, 'echo > {{out}}/x'], {SPECS[place]}}}\n")
    for command in (["plan"], [], ["why", "s:a"]):
        done = secretive.doit(*command)
        assert CANARY not in done.stdout + done.stderr
        assert CANARY.replace("-", "") not in done.stdout + done.stderr
        if command in (["plan"], []):
            assert done.returncode != 0
            assert "E-SECRET-LITERAL" in done.stdout + done.stderr
    path.unlink()
    assert held(secretive) == []


def test_words_that_are_no_secret_are_taken(secretive: Sandbox) -> None:
    secretive.extra_env |= {"SHORT_KEY": "echo"}
    secretive.spec("targets:\n" + simple("a", content="echo"))
    secretive.ok()


@pytest.mark.fault("S1", "a run is interrupted or killed while its stage's log holds a secret: no log keeps it")
@pytest.mark.parametrize("how", ["INT", "INT twice", "TERM", "HUP", "KILL"])
def test_no_end_keeps_a_secret(how: str, secretive: Sandbox) -> None:
    spec_that(secretive, f"cat {theirs(secretive)}; sleep 60; echo x > {{out}}/x")
    number = signal.Signals[f"SIG{how.partition(' ')[0]}"]
    log = secretive.root / "cache" / "logs" / "s" / "a.log"
    process = subprocess.Popen(
        [DOIT], cwd=secretive.root, env=secretive.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    until = time.monotonic() + 60
    while time.monotonic() < until and not (log.exists() and CANARY in log.read_text()):
        time.sleep(0.02)
    assert CANARY in log.read_text(), "the stage has said it"
    process.send_signal(number)
    if "twice" in how:
        time.sleep(0.1)
        process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert CANARY not in printed
    if how == "KILL":
        # Nobody is left who could: the next run does it.
        secretive.spec("targets:\n" + counted(secretive.root, "b"))
        secretive.ok()
    assert held(secretive) == []


@pytest.mark.fault("S1", "pages are rendered by a user with secrets in the environment")
def test_no_page_holds_a_secret(page_project: Sandbox) -> None:
    pytest.importorskip("altair", reason="pip install 'ingot[report]'")
    sandbox = Sandbox(page_project.root, page_project.home, dict(SECRETS) | {"BROWSER": "", "DISPLAY": ""})
    sandbox.ok("report", "--all", "--json")
    sandbox.ok("report", "s:report", "--html")
    assert list((sandbox.root / "cache" / "reports").rglob("*.html"))
    assert held(sandbox) == []


def test_a_canary_is_found_wherever_it_lies(secretive: Sandbox) -> None:
    for place in ("cache/logs/s/x.log", "registry/x", "cache/reports/x.html", "cache/objects/x"):
        path = secretive.file(place, f"... {SECRETS['HF_TOKEN']} ...")
        assert held(secretive) == [str(path)]
        path.unlink()
    path = secretive.file("cache/x.json", TYPED)
    assert held(secretive) == [str(path)]
