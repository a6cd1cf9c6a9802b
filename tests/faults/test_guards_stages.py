"""What a stage can see and reach, and what of the user's secrets and texts stays behind after a run."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from ingot.core.environment import _PASSED, environment
from projectkit import Sandbox, counted

CANARY = "canary-7c1e-value"
#: Variables as users have them; none may reach a stage that is not to use the network.
SECRETS = {"HF_TOKEN": f"hf-{CANARY}", "OPENAI_API_KEY": f"{CANARY}-2", "DATABASE_PASSWORD": f"{CANARY}-3"}
FIXED = {
    "LANG", "LC_ALL", "TZ", "PYTHONHASHSEED", "PYTHONUNBUFFERED", "TOKENIZERS_PARALLELISM", "OMP_WAIT_POLICY",
    "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "DO_NOT_TRACK",
    "ORT_DISABLE_TELEMETRY",
}  # fmt: skip
OFFLINE = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}


def script(code: str) -> str:
    """A target that runs a program of Python."""
    return f"  a: {{kind: command, command: [{sys.executable}, -c, {json.dumps(code)}]}}\n"


def in_project(sandbox: Sandbox, what: str) -> list[str]:
    """The files of the project, but the specs and what the test wrote itself, that hold a text."""
    return [
        str(path.relative_to(sandbox.root))
        for path in sandbox.root.rglob("*")
        if path.is_file() and "specs" not in path.parts and what.encode() in path.read_bytes()
    ]


@pytest.fixture
def secretive(sandbox: Sandbox) -> Sandbox:
    """A project of a user with secrets in the environment."""
    sandbox.extra_env |= SECRETS
    return sandbox


@pytest.mark.fault("S2", "a stage's process is asked for its environment and its limits")
def test_a_stage_sees_only_the_allowed_variables(secretive: Sandbox, cases: Callable[[int], None]) -> None:
    code = (
        "import os, resource\n"
        "names = lambda pid: [e.partition('=')[0] for e in open('/proc/%s/environ' % pid).read().split('\\0') if e]\n"
        "import json; json.dump({'stage': names(os.getppid()), 'program': names('self'),"
        " 'core': resource.getrlimit(resource.RLIMIT_CORE), 'offline': os.environ['HF_HUB_OFFLINE'],"
        " 'telemetry': os.environ['HF_HUB_DISABLE_TELEMETRY'], 'home': os.listdir(os.environ['HOME'])},"
        " open(os.environ['INGOT_OUT'] + '/seen.json', 'w'))"
    )
    secretive.spec("targets:\n" + script(code))
    secretive.ok()
    seen = json.loads((secretive.root / "cache/latest/s/a/seen.json").read_text())
    allowed = FIXED | OFFLINE | set(_PASSED)
    assert set(seen["stage"]) <= allowed, "as the kernel shows it to everyone of this user"
    assert set(seen["program"]) <= allowed | {"HOME", "TMPDIR", "HF_HOME"} | {
        name for name in seen["program"] if name.startswith("INGOT_")
    }
    assert seen["core"] == [0, 0]
    assert (seen["offline"], seen["telemetry"]) == ("1", "1")
    assert seen["home"] == []
    assert environment(network=False).keys() <= allowed
    cases(len(seen["stage"]) + len(seen["program"]))


class Host(BaseHTTPRequestHandler):
    """Answers 500, and looks into the environment of the process that asks."""

    seen: ClassVar[list[bytes]] = []

    def do_GET(self) -> None:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if b"ingot.core.worker" in (folder / "cmdline").read_bytes():
                    self.seen.append((folder / "environ").read_bytes())
            except OSError:
                continue
        self.send_error(500)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def host() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Host) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.fault("S1", "a secret in the environment, through runs that succeed and fail")
def test_a_secret_is_nowhere_after_a_run(secretive: Sandbox, host: str, cases: Callable[[int], None]) -> None:
    Host.seen.clear()
    secretive.spec(
        "targets:\n"
        + counted(secretive.root, "good")
        + "  fails: {kind: command, command: [sh, -c, 'env; env >&2; exit 3']}\n"
        + f"  fetched: {{kind: fetch, url: '{host}/x?v=1', sha256: {'ab' * 32}}}\n"
    )
    outputs = [
        secretive.doit("-c"),
        secretive.doit("plan", "--json"),
        secretive.doit("history"),
        secretive.doit("-v2", "-c"),
    ]
    assert "E-FETCH-HTTP" in outputs[0].stdout + outputs[0].stderr
    assert "?v=1" not in outputs[0].stdout + outputs[0].stderr, "a query may hold a signature"
    assert all(CANARY not in done.stdout + done.stderr for done in outputs)
    assert in_project(secretive, CANARY) == []
    (seen, *_more) = Host.seen
    assert b"HF_TOKEN=hf-" in seen, "fetch gets what the hub needs"
    assert b"OPENAI_API_KEY" not in seen
    assert b"DATABASE_PASSWORD" not in seen
    cases(len(outputs) + len(SECRETS))


def read_before_it_was_secret(sandbox: Sandbox) -> None:
    """Have the spec read while no variable has the value that it holds: with one it would be refused."""
    Sandbox(sandbox.root, sandbox.home).ok("plan")


@pytest.mark.fault("S6", "a library prints and raises the token that fetch was given")
def test_what_fetch_says_is_shown_without_its_token(secretive: Sandbox) -> None:
    # The name of what cannot be downloaded is in the error, in the progress and in what the stage prints.
    url = f"http://localhost:1/{SECRETS['HF_TOKEN']}.gguf"
    secretive.spec(f"targets:\n  w: {{kind: fetch, url: '{url}', sha256: {'ab' * 32}, as: w.gguf}}\n")
    read_before_it_was_secret(secretive)
    done = secretive.doit("-c")
    assert done.returncode != 0
    assert "[not shown].gguf could not be downloaded" in done.stdout + done.stderr
    assert CANARY not in done.stdout + done.stderr


@pytest.mark.fault("S6", "a library prints and raises the token that fetch was given")
def test_the_log_of_a_failed_fetch_holds_no_token(secretive: Sandbox) -> None:
    # pip repeats what it was asked for.
    secretive.extra_env["PIP_NO_INDEX"] = "1"
    secretive.spec(
        f"targets:\n  w: {{kind: fetch, pypi: {SECRETS['HF_TOKEN']}==1.0, member: a/b.gguf, sha256: {'ab' * 32}}}\n"
    )
    read_before_it_was_secret(secretive)
    done = secretive.doit("-c")
    log = (secretive.root / "cache/logs/s/w.log").read_text()
    assert "No matching distribution" in log
    assert CANARY not in log + done.stdout + done.stderr


@pytest.mark.fault("L2", "a stage connects to a listener on loopback")
def test_a_stage_reaches_no_listener(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code = (
            "import os, socket\n"
            "out = open(os.environ['INGOT_OUT'] + '/reached.txt', 'w')\n"
            f"try: socket.create_connection(('127.0.0.1', {port}), 5); out.write('reached')\n"
            "except OSError as error: out.write(type(error).__name__)\n"
        )
        sandbox.spec("targets:\n" + script(code))
        sandbox.ok()
    (entry,) = sandbox.entries("build")
    reached = (sandbox.root / "cache/latest/s/a/reached.txt").read_text()
    if "not isolated" in json.dumps(entry) or "not isolated" in sandbox.ok("show", "s:a"):
        pytest.skip("this system allows no network namespace, and the receipt says so")
    assert reached != "reached"


SECRET_PLACES = {
    "value": "  a: {{kind: command, command: [sh, -c, 'curl -H {key}']}}\n",
    "key": "  a: {{kind: command, command: [x], env: {{{key}: x}}}}\n",
    "matrix": "  a: {{kind: command, matrix: {{command: [{{one: [x, {key}]}}]}}}}\n",
    "label": "  a: {{kind: fetch, path: x, matrix: {{sha256: [{key}]}}}}\n",
    "comment": "  # {key}\n  a: {{kind: command, command: [x]}}\n",
    "name": "  {key}: {{kind: command, command: [x]}}\n",
    "unknown kind": "  a: {{kind: {key}}}\n",
    "unknown input": "  a: {{kind: command, command: [x], from: {{m: {key}}}}}\n",
    "twice": "  a: {{kind: command, command: [x], env: {{{key}: a, {key}: b}}}}\n",
    "before a mistake": "  a: {{kind: command, command: ['{key}'\n",
    "tag": "  a: !{key}!x {{kind: command}}\n",
}
KEYS = {
    "openai": "sk-proj-" + "aB3d" * 6,
    "hub": "hf_" + "aBcD1" * 7,
    "amazon": "AKIA" + "A1B2" * 4,
    "github": "ghp_" + "aB1c" * 9,
    "slack": "xoxb-" + "1234567890-abc",
    "url": "https://user:hunter2hunter2@example.org/x",
    "random": "gT7x9Qm2Lw8Zr4Vb6Nk1Yc3Hd5Jf0PsA",
}


@pytest.mark.fault("S1", "a literal key in a spec, of each form and in each place")
def test_a_key_in_a_spec_is_refused_and_never_shown(sandbox: Sandbox, cases: Callable[[int], None]) -> None:
    from ingot.core.spec import load_spec
    from ingot.errors import SpecError

    for place, line in SECRET_PLACES.items():
        for form, key in KEYS.items():
            if form == "random" and place in {"comment", "before a mistake", "tag"}:
                continue  # there only keys of known forms are known
            written = key if place != "comment" or form != "url" else f"see {key}"
            path = sandbox.spec("targets:\n" + line.format(key=written if place == "comment" else f"{written}"))
            with pytest.raises(SpecError) as caught:
                load_spec(path, sandbox.root)
            shown = str(caught.value) + repr(caught.value.problems)
            assert "E-SECRET-LITERAL" in shown, (place, form)
            secret = "hunter2hunter2" if form == "url" else key
            assert secret[6:14] not in shown, (place, form)
            cases(1)


@pytest.mark.fault("S1", "a literal key in a spec, of each form and in each place")
def test_no_command_shows_a_key_of_a_spec(sandbox: Sandbox) -> None:
    key = KEYS["hub"]
    sandbox.spec(f"targets:\n  a: {{kind: command, command: [x, {key}]}}\n")
    for command in ([], ["list"], ["plan"], ["plan", "--json"], ["why", "s:a"], ["show", "s:a", "--json"], ["doctor"]):
        done = sandbox.doit(*command)
        assert key[:12] not in done.stdout + done.stderr, command
        if command[:1] in ([], ["list"], ["plan"]):
            assert "E-SECRET-LITERAL" in done.stdout + done.stderr
    assert in_project(sandbox, key) == []


@pytest.mark.fault("S4", "a canary in rows, through a build and a failure")
def test_no_row_of_a_data_set_is_recorded(sandbox: Sandbox) -> None:
    rows = [{"prompt": f"{CANARY} {n}", "completion": f"{CANARY} answer {n}"} for n in range(12)]
    sandbox.file("specs/rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    sandbox.file("specs/bad.jsonl", json.dumps(rows[0]) + '\n{"prompt": "' + CANARY)
    sandbox.spec(
        "targets:\n  d: {kind: dataset, sources: [{path: rows.jsonl}], dedup: null}\n"
        "  bad: {kind: dataset, sources: [{path: bad.jsonl}], dedup: null}\n"
    )
    done = sandbox.doit("-c")
    assert "E-DATASET-ROW" in done.stdout + done.stderr
    assert CANARY not in done.stdout + done.stderr
    held = [name for name in in_project(sandbox, CANARY) if not name.startswith("cache/objects/")]
    assert held == []


OUTPUTS = {
    "E-OUTPUT-PICKLE": "import pickle, os; pickle.dump(print, open('{out}/optimizer.pt', 'wb'))",
    "E-OUTPUT-PATH": "open('{out}/log.json', 'w').write('\"{out}\"')",
    "E-OUTPUT-SECRET": f"open('{{out}}/x.txt', 'w').write('{CANARY}' + '-2')",
    "E-OUTPUT-NAME": "[open('{out}/' + name, 'w') for name in ('Model.json', 'model.json')]",
}


@pytest.mark.fault("M3", "a target writes what must not be published")
@pytest.mark.parametrize("code", OUTPUTS)
def test_such_an_output_is_not_published(code: str, secretive: Sandbox) -> None:
    secretive.spec("targets:\n" + script(OUTPUTS[code]))
    done = secretive.doit("-c")
    assert done.returncode in {1, 2}
    assert code in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not list((secretive.root / "cache/objects").glob("*/*"))
    assert not [entry for entry in secretive.entries() if entry["type"] == "build"]
    assert list((secretive.root / "cache/staging").iterdir()) == []
    secretive.spec("targets:\n" + script("open('{out}/x', 'w').write('fine')"))
    secretive.ok()


@pytest.mark.fault("S3", "paths of the project and the home folder in what a target writes")
def test_paths_of_this_machine_are_not_published(sandbox: Sandbox) -> None:
    sandbox.extra_env["HOME"] = "/data/homes/someone"
    for place in (str(sandbox.root), "/data/homes/someone/models"):
        sandbox.spec("targets:\n" + script(f"open('{{out}}/x.json', 'w').write('\"{place}/m\"')"))
        done = sandbox.doit("-c")
        assert "E-OUTPUT-PATH" in done.stdout + done.stderr
        assert "x.json" in done.stdout + done.stderr


@pytest.mark.fault("M18", "a pipe where a spec or a source should be")
def test_a_pipe_is_no_file(sandbox: Sandbox) -> None:
    os.mkfifo(sandbox.root / "specs" / "p.yaml")
    done = sandbox.doit("plan", timeout=60)
    assert done.returncode == 2
    assert "specs/p.yaml" in done.stderr
    (sandbox.root / "specs" / "p.yaml").unlink()
    os.mkfifo(sandbox.root / "specs" / "x.txt")
    sandbox.spec("targets:\n  w: {kind: fetch, path: x.txt}\n")
    done = sandbox.doit("-c", timeout=60)
    assert "E-SOURCE" in done.stdout + done.stderr


@pytest.mark.fault("Y", "a symbolic link in the project that leads out of it")
def test_a_link_out_of_the_project_is_refused(sandbox: Sandbox) -> None:
    outside = sandbox.root.parent / "outside"
    outside.mkdir()
    (outside / "x.txt").write_text("not the project's")
    (sandbox.root / "specs" / "link").symlink_to(outside)
    for path in ("link/x.txt", "link/*.txt", "l*/x.txt"):
        sandbox.spec(f"targets:\n  w: {{kind: dataset, sources: [{{path: '{path}'}}]}}\n")
        done = sandbox.doit("-c")
        assert done.returncode != 0
        assert "E-PATH" in done.stdout + done.stderr, path
        assert "Traceback" not in done.stdout + done.stderr
    assert not (sandbox.root / "registry").exists()
