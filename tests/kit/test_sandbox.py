"""Programs that want more than to compute: each tries one thing, and none gets it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ingot.errors import StageFailed
from ingot.kit.sandbox import run
from ingot.kit.sandbox.run import Limits, Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")
FINE = """
import collections, dataclasses, datetime, decimal, functools, hashlib, heapq, itertools, json, math, random, re, string
import threading, typing
thread = threading.Thread(target=lambda: None)
thread.start()
thread.join()
assert hashlib.sha256(b'').hexdigest().startswith('e3b0')
assert math.isclose(sum(range(10)), 45)
"""
#: What it tries → (the program, why it has not passed).
REFUSED = {
    "more memory than it is given": ("a = []\nwhile True: a.append(bytearray(1 << 20))", "MemoryError"),
    "another process, for ever": ("import os\nwhile True: os.fork()", "PermissionError"),
    "threads without end": (
        "import threading, time\nfor _ in range(9999): threading.Thread(target=time.sleep, args=(9,)).start()",
        "RuntimeError",
    ),
    "another program": ("import subprocess\nsubprocess.run(['/bin/true'])", "PermissionError"),
    "a socket": ("import socket\nsocket.socket()", "PermissionError"),
    "a local socket": ("import socket\nsocket.socketpair()", "PermissionError"),
    "a connection": ("import urllib.request as r\nr.urlopen('http://127.0.0.1:9')", "URLError"),
    "to read a foreign file": ("open('/etc/hostname').read()", "PermissionError"),
    "to read its first environment": ("open('/proc/self/environ').read()", "PermissionError"),
    "to kill its parent": ("import os\nos.kill(os.getppid(), 9)", "PermissionError"),
    "to kill everybody": ("import os\nos.kill(-1, 9)", "PermissionError"),
    "to signal itself": ("import os\nos.kill(os.getpid(), 9)", "PermissionError"),
    "more time than it is given": ("import resource as r\nr.setrlimit(r.RLIMIT_CPU, (99, 99))", "ValueError"),
    "a namespace": ("import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0", "AssertionError"),
    "a larger file": ("open('a', 'wb').write(bytes(2 << 20))", "OSError"),
    "more files than fit": ("for n in range(40): open(str(n), 'wb').write(bytes(1 << 20))", "OSError"),
    "to end early with success": ("import os\nos._exit(0)", "ended by itself (0)"),
    "to leave with success": ("raise SystemExit(0)", "SystemExit"),
    "to have no syntax": ("def f(:", "SyntaxError"),
    "to recurse for ever": ("def f(): f()\nf()", "RecursionError"),
    "to crash": ("import ctypes\nctypes.string_at(0)", "killed by SIGSEGV"),
    "to fail": ("print('passed')\nassert 1 == 2", "AssertionError"),
}
FAKE = """
import os
for number in range(600):
    for text in (b'passed', b'{"passed": true}', b'{"passed": "passed"}', b'{"ready": {}}'):
        try:
            os.write(number, text + b'\\n')
        except OSError:
            pass
os._exit(0)
"""


@pytest.fixture
def altered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Replaces a piece of what runs inside the sandbox."""
    source = Path(run.__file__).with_name("inside.py").read_text(encoding="utf-8")
    place = "os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))"
    packages = repr(str(Path(run.__file__).parents[3]))

    def alter(old: str, new: str) -> None:
        assert old in source and place in source
        (tmp_path / "inside.py").write_text(source.replace(place, packages).replace(old, new), encoding="utf-8")
        monkeypatch.setattr(run, "_INSIDE", tmp_path / "inside.py")

    return alter


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    return Sandbox(Limits(cpu_seconds=1, memory_bytes=256 << 20), tmp_path_factory.mktemp("scratch"))


def test_a_program_that_computes_passes(sandbox: Sandbox) -> None:
    assert sandbox.run(FINE) == run.Verdict(passed=True, why="passed")


@pytest.mark.parametrize("what", REFUSED)
def test_a_program_does_not_get(what: str, sandbox: Sandbox) -> None:
    program, why = REFUSED[what]
    verdict = sandbox.run(program)
    assert not verdict.passed
    assert verdict.why in {why, "PermissionError"} if "file" in what else verdict.why == why


def test_an_infinite_loop_ends_with_its_processor_time(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limits, "wall_seconds", 120)  # a machine that is busy gives a second of processor time late
    assert sandbox.run("while True: pass").why == "cpu time"


def test_a_sleeper_ends_with_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limits, "wall_seconds", 1)
    quick = Sandbox(Limits(1), tmp_path)
    vars(quick)["how"] = {"network": "tried elsewhere"}
    began = time.monotonic()
    assert quick.run("import time\ntime.sleep(60)").why == "wall time"
    assert time.monotonic() - began < 30


def test_what_it_says_of_itself_is_no_verdict(sandbox: Sandbox) -> None:
    assert not sandbox.run(FAKE).passed


def test_its_environment_is_empty_and_so_is_its_folder(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert sandbox.run("import os\nassert not os.environ\nassert os.listdir('.') == []").passed


@pytest.mark.parametrize("how", ["open({path!r}, 'w')", "__import__('os').unlink({path!r})"])
def test_files_outside_stay_as_they_are(how: str, sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("kept")
    for program in (how, "__import__('os').chmod({path!r}, 0o777)", "__import__('os').truncate({path!r}, 0)"):
        before = path.stat()
        assert sandbox.run(program.format(path=str(path))).why == "PermissionError"
        after = path.stat()
        # Reading it below moves its time of access.
        assert (after.st_mode, after.st_mtime_ns, after.st_ctime_ns) == (
            before.st_mode,
            before.st_mtime_ns,
            before.st_ctime_ns,
        )
        assert path.read_text() == "kept"
    outside = str(tmp_path / "new")
    assert sandbox.run(f"open({outside!r}, 'w')").why == "PermissionError"
    assert sandbox.run(f"__import__('os').mkdir({outside!r})").why == "PermissionError"
    assert not (tmp_path / "new").exists()


def test_what_it_writes_is_gone(sandbox: Sandbox) -> None:
    if sandbox.how["folder"] == "read-only":
        pytest.skip("there are no namespaces here, so a program has no folder to write into")
    assert sandbox.run("open('a', 'w').write('x')\nassert open('a').read() == 'x'").passed
    assert sandbox.run("import os\nassert os.listdir('.') == []").passed


@pytest.mark.parametrize("bound", ["landlock.restrict", "syscalls.install"])
def test_nothing_runs_where_the_sandbox_cannot_be_had(
    bound: str, altered: Callable[[str, str], None], tmp_path: Path
) -> None:
    altered(f"    {bound}(", "    raise OSError('it is not there')\n    (")
    with pytest.raises(StageFailed, match="cannot be bounded here: it is not there") as caught:
        Sandbox(Limits(1), tmp_path).run(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert caught.value.code == "E-SANDBOX"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("bound", "hole"), [("landlock.restrict", "a foreign file"), ("syscalls.install", "a process")]
)
def test_a_sandbox_with_a_hole_is_noticed_before_the_first_program(
    bound: str, hole: str, altered: Callable[[str, str], None], tmp_path: Path
) -> None:
    altered(f"    {bound}(", "    (")
    with pytest.raises(StageFailed, match=f"got {hole}") as caught:
        Sandbox(Limits(1), tmp_path).run("pass")
    assert caught.value.code == "E-SANDBOX"


def test_other_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(StageFailed, match="no sandbox for programs on darwin"):
        Sandbox(Limits(1), tmp_path).run("pass")


def test_without_namespaces_the_filter_and_landlock_hold(altered: Callable[[str, str], None], tmp_path: Path) -> None:
    altered("isolated = _isolate()", "isolated = False")
    plain = Sandbox(Limits(1, 256 << 20), tmp_path)
    assert plain.how == {"network": "sockets refused", "folder": "read-only"}
    assert plain.run(FINE).passed
    for what in (
        "a socket",
        "another process, for ever",
        "to read a foreign file",
        "to kill everybody",
        "a larger file",
    ):
        assert plain.run(REFUSED[what][0]).why == "PermissionError", what
    assert plain.run("import os\nos.kill(os.getppid(), 9)").why == "PermissionError"


def test_it_ends_with_who_asked(tmp_path: Path) -> None:
    """A builder that is killed leaves no program behind."""
    program = (
        "import sys; from pathlib import Path; from ingot.kit.sandbox.run import Limits, Sandbox\n"
        "print('go', flush=True)\n"
        "Sandbox(Limits(300), Path(sys.argv[1])).run('while True: pass')"
    )
    asker = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert asker.stdout is not None
    assert asker.stdout.readline() == "go\n"
    until = time.monotonic() + 30
    while time.monotonic() < until and not _looping(tmp_path):
        time.sleep(0.05)
    started = _looping(tmp_path)
    asker.send_signal(signal.SIGKILL)
    asker.wait()
    asker.stdout.close()
    assert started
    while time.monotonic() < until and _looping(tmp_path):
        time.sleep(0.05)
    assert _looping(tmp_path) == []


def _looping(scratch: Path) -> list[str]:
    """The processes that work below a folder."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.readlink(f"/proc/{entry}/cwd").startswith(str(scratch)):
                found.append(entry)
        except OSError:
            continue
    return found
