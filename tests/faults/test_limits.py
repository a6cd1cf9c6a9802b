"""A full disk, limits of the system, folders that may not be written, clocks that jump, met by a real build."""

from __future__ import annotations

import datetime as dt
import json
import os
import resource
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

import doitkit
from ingot.core import build, statement
from projectkit import DOIT, Sandbox
from recordkit import audited, object_of, simple

TWO = "targets:\n" + simple("a") + simple("b", depends="a")


def limited(sandbox: Sandbox, *arguments: str, limits: dict[int, int] | None = None, umask: int | None = None) -> str:
    """A real ``doit`` under limits of the system; its exit code and its words in one text."""

    def prepare() -> None:
        for which, value in (limits or {}).items():
            resource.setrlimit(which, (value, value))
        if umask is not None:
            os.umask(umask)

    done = subprocess.run(
        [DOIT, *arguments],
        cwd=sandbox.root,
        env=sandbox.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        preexec_fn=prepare,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return f"exit {done.returncode}\n{done.stdout}{done.stderr}"


def goes_on(sandbox: Sandbox) -> None:
    """Without the fault: all is built, once, and the audit is clean."""
    with doitkit.prepared():
        code, text = doitkit.run(sandbox)
    assert code == 0, text
    audit = audited(sandbox)
    assert (audit.problems, audit.absent) == ([], 0)
    assert list((sandbox.root / "cache" / "staging").iterdir()) == []


# --- D2: a disk that is really full ----------------------------------------------------------------------------------


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """A file system of a few megabytes at ``place``; skips where it may not be mounted."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "none", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"needs mount: {error}")
    if done.returncode != 0:
        pytest.skip(f"may not mount a file system here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.fault("D2", "a small file system is full to the last few kilobytes")
def test_a_full_disk_and_then_room(tmp_path: Path, cases: Callable[[int], None]) -> None:
    """With n kB left a build ends with E-SPACE, and with room again it completes; what is recorded is kept."""
    place = tmp_path / "disk"
    seen = set()
    rooms = (0, 8, 24, 40, 56, 64, 72, 80, 88, 96, 104, 112, 128, 144, 160, 400)
    with small_disk(place, "4m"), doitkit.prepared():
        for room in rooms:
            sandbox = Sandbox.make(place / str(room), home=place / str(room) / "home")
            sandbox.home.mkdir()
            sandbox.spec(TWO)
            filler = place / "filler"
            free = os.statvfs(place)
            with filler.open("wb") as file:
                file.write(bytes(max(0, free.f_bavail * free.f_frsize - room * 1024)))
            code, text = doitkit.run(sandbox)
            assert "Traceback" not in text
            assert (code == 0) != ("E-SPACE" in text), text
            seen.add(code)
            filler.unlink()
            goes_on(sandbox)
            shutil.rmtree(sandbox.root.parent)
    assert seen >= {0, 2}, "both ends are among the cases"
    cases(len(rooms))


@pytest.mark.fault("D2", "a stage fills a small file system")
def test_a_stage_that_fills_the_disk(tmp_path: Path, cases: Callable[[int], None]) -> None:
    """One that is ours says so by itself; a program of the user's is quoted."""
    place = tmp_path / "disk"
    with small_disk(place, "4500k"):
        sandbox = Sandbox.make(place)
        rows = "\n".join(json.dumps({"text": f"{n} " + "words of a row " * 20}) for n in range(5000))
        (sandbox.root / "rows.jsonl").write_text(rows)
        sandbox.spec("targets:\n  a: {kind: dataset, dedup: null, sources: [{path: ../rows.jsonl}]}\n", "ours")
        script = "{kind: command, command: [sh, -c, 'head -c 6000000 /dev/zero > {out}/x']}"
        sandbox.spec(f"targets:\n  a: {script}\n", "theirs")
        text = limited(sandbox, "-c")
        assert text.startswith("exit 2"), text
        assert f"E-SPACE: the disk is full: {sandbox.root}/cache/staging/" in text
        assert "E-COMMAND: sh ended with status 1" in text
        assert "the disk of cache/ is full: 0 kB are free" in text, "the program had no room to say so"
        assert list((sandbox.root / "cache" / "objects").glob("*/*")) == []
        subprocess.run(["mount", "-o", "remount,size=32m", str(place)], check=True)
        assert limited(sandbox).startswith("exit 0")
        assert audited(sandbox).problems == []
    cases(2)


# --- D4: a system that takes fewer bytes than it was given, and is interrupted ----------------------------------------


@pytest.mark.fault("D4", "every write takes fewer bytes than it was given")
@pytest.mark.parametrize("taken", [1, 7, 1000])
def test_short_writes(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    real = os.write
    shorter = 0

    def write(descriptor: int, data: bytes) -> int:
        nonlocal shorter
        shorter += len(data) > taken
        return real(descriptor, bytes(data[:taken]))

    sandbox.spec(TWO)
    with doitkit.prepared(), monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        assert doitkit.run(sandbox)[0] == 0
    assert shorter > 3
    audit = audited(sandbox)
    assert (audit.problems, audit.notes, audit.objects) == ([], [], 2)
    goes_on(sandbox)


@pytest.mark.fault("D4", "a signal interrupts system calls all the time (EINTR)")
def test_interrupted_calls(sandbox: Sandbox) -> None:
    import signal

    sandbox.spec(TWO)
    heard = 0

    def hear(_number: int, _frame: object) -> None:
        nonlocal heard
        heard += 1

    before = signal.signal(signal.SIGALRM, hear)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        with doitkit.prepared():
            assert doitkit.run(sandbox)[0] == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert heard > 5
    goes_on(sandbox)


# --- D6: what may not be written, and masks --------------------------------------------------------------------------


def as_owner(sandbox: Sandbox, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``doit`` of a user for whom modes count, also where the tests are run by root."""
    command = [DOIT, *arguments]
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("modes do not bind root, and setpriv, which takes that right away, is not installed")
        command = [setpriv, "--bounding-set=-dac_override,-dac_read_search", *command]
    done = subprocess.run(
        command,
        cwd=sandbox.root,
        env=sandbox.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done


PLACES = ["cache/objects", "cache/locks", "registry/*", "pins"]


@pytest.mark.fault("D6", "a folder may not be written")
@pytest.mark.parametrize("place", PLACES)
def test_a_folder_that_may_not_be_written(chain: Sandbox, place: str) -> None:
    chain.spec(TWO.replace("echo x", "echo y"))
    (folder,) = [chain.home / "state" / "ingot" / "pins"] if place == "pins" else list(chain.root.glob(place))
    before = stat.S_IMODE(folder.stat().st_mode)
    folder.chmod(0o555)
    try:
        done = as_owner(chain)
        text = done.stdout + done.stderr
        assert done.returncode in (2, 3), text
        assert "E-ACCESS: permission denied: " in text
        assert str(folder) in text
        assert "hint: " in text
    finally:
        folder.chmod(before)
    goes_on(chain)


@pytest.mark.fault("D6", "the log may not be written (its mode, an immutable file, a read-only file system)")
@pytest.mark.parametrize("how", ["mode", "immutable", "read-only"])
def test_a_log_that_may_not_be_written(chain: Sandbox, how: str) -> None:
    """It is found before a stage runs, not after hours of work."""
    ran = chain.root / "ran.txt"
    chain.spec(TWO.replace("echo x", f"echo ran > {ran}; echo y"))
    (log,) = chain.root.glob("registry/*/log.jsonl")
    before = log.read_bytes()
    change = {
        "mode": ["chmod", "444", str(log)],
        "immutable": ["chattr", "+i", str(log)],
        "read-only": ["mount", "--bind", "-o", "ro", str(chain.root), str(chain.root)],
    }
    back = {
        "mode": ["chmod", "644", str(log)],
        "immutable": ["chattr", "-i", str(log)],
        "read-only": ["umount", "-l", str(chain.root)],
    }
    try:
        done = subprocess.run(change[how], capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"needs {change[how][0]}: {error}")
    if done.returncode != 0:
        pytest.skip(f"cannot make it so here: {done.stderr.strip()}")
    try:
        done = as_owner(chain)
        assert done.returncode in (2, 3), done.stdout
        assert "E-ACCESS: " in done.stdout + done.stderr
        assert as_owner(chain, "audit").returncode == 0
        assert as_owner(chain, "plan").returncode == 0
    finally:
        subprocess.run(back[how], check=True)
    assert not ran.exists()
    assert log.read_bytes() == before
    goes_on(chain)


@pytest.mark.fault("D6", "the project belongs to another user")
def test_a_project_of_another_user(chain: Sandbox) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    chain.spec(TWO.replace("echo x", "echo y"))
    paths = [chain.root, *chain.root.rglob("*")]
    for path in paths:
        os.lchown(path, 4711, 4711)
    done = as_owner(chain)
    assert done.returncode in (2, 3)
    assert "E-ACCESS: permission denied: " in done.stdout + done.stderr
    assert as_owner(chain, "plan").returncode == 0, "what only reads goes on"
    assert as_owner(chain, "audit").returncode == 0
    for path in paths:
        if os.path.lexists(path):
            os.lchown(path, 0, 0)
    goes_on(chain)


@pytest.mark.fault("D6", "the signing key may be read by others, or not at all")
@pytest.mark.parametrize(("mode", "code"), [(0o644, "E-KEY-MODE"), (0o000, "E-ACCESS")])
def test_the_mode_of_the_key(chain: Sandbox, mode: int, code: str) -> None:
    chain.spec(TWO.replace("echo x", "echo y"))
    (key,) = (chain.home / "config" / "ingot" / "keys").iterdir()
    key.chmod(mode)
    done = as_owner(chain)
    assert done.returncode == 2
    assert f"{code}: " in done.stdout + done.stderr
    assert str(key) in done.stdout + done.stderr
    key.chmod(0o600)
    goes_on(chain)


@pytest.mark.fault("D6", "the umask is 077 or 000")
@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_umask(sandbox: Sandbox, umask: int) -> None:
    sandbox.spec(TWO)
    assert limited(sandbox, umask=umask).startswith("exit 0")
    for path in [object_of(sandbox, "s:a"), *object_of(sandbox, "s:a").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o555 if path.is_dir() else 0o444), "bytes and modes are the same"
    keys = sandbox.home / "config" / "ingot" / "keys"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (keys, *keys.iterdir())] == [0o700, 0o600]
    open_to_all = [path for path in sandbox.root.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o002]
    mine = {sandbox.root / name for name in ("cache", "registry", "ingot.lock")}
    assert [path for path in open_to_all if mine & {path, *path.parents}] == []
    goes_on(sandbox)


# --- D7: clocks ------------------------------------------------------------------------------------------------------


@contextmanager
def clock(years: float) -> Iterator[None]:
    """The time of day, moved by some years, as all of ingot reads it."""
    shift = years * 365.25 * 86400
    real, real_ns = time.time, time.time_ns

    class Shifted(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Shifted:
            return cls.fromtimestamp(real() + shift, tz)

    class Module:
        UTC, datetime, timedelta = dt.UTC, Shifted, dt.timedelta

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + shift)
        patch.setattr(time, "time_ns", lambda: real_ns() + int(shift * 1e9))
        patch.setattr(build, "dt", Module)
        patch.setattr(statement, "datetime", Shifted)
        yield


@pytest.mark.fault("D7", "the clock jumps ten years back and forth between runs")
def test_no_decision_depends_on_the_clock(sandbox: Sandbox, cases: Callable[[int], None]) -> None:
    contents = ["x", "y", "x", "z", "y", "x", "x", "w"]
    jumps = [0.0, 10, -10, 10, -10, 0, 10, -10]
    built: set[str] = set()
    with doitkit.prepared():
        for content, years in zip(contents, jumps, strict=True):
            sandbox.spec(TWO.replace("echo x", f"echo {content}"))
            with clock(years):
                code, text = doitkit.run(sandbox)
                assert code == 0, text
                assert text.count("built     ") == (0 if content in built else 2), text
                built.add(content)
                # Neither the clock nor the newest time in the log decides what is in force.
                assert "nothing to do: 2 targets fresh" in doitkit.run(sandbox)[1]
            for later in (-10.0, 10):
                with clock(later):
                    assert "nothing to do: 2 targets fresh" in doitkit.run(sandbox)[1]
    types = [entry["type"] for entry in sandbox.entries()]
    assert types.count("build") == 2 * len(built)
    assert types.count("selected") == 2 * (sum(a != b for a, b in pairwise(contents)) + 1 - len(built))
    assert audited(sandbox).problems == []
    shown = sandbox.json("show", "s:b")
    assert shown["digest"] == object_of(sandbox, "s:b").name, "the last run's, whatever its clock said"
    cases(len(jumps))


@pytest.mark.fault("D7", "the clock of another clone was ten years ahead")
def test_a_clone_whose_clock_was_ahead(sandbox: Sandbox) -> None:
    """Its entries bear times to come; what is built now is in force all the same, and nothing is appended twice."""
    other = Sandbox(sandbox.root, sandbox.home.with_name("home-of-another"))
    with doitkit.prepared():
        sandbox.spec(TWO)
        with clock(10):
            assert doitkit.run(sandbox)[0] == 0
        sandbox.spec(TWO.replace("echo x", "echo y"))
        code, text = doitkit.run(other)
        assert (code, text.count("built     ")) == (0, 2)
        for _again in range(2):
            assert "nothing to do: 2 targets fresh" in doitkit.run(other)[1]
        # The same from the logs alone.
        shutil.rmtree(sandbox.root / "cache" / "results")
        (sandbox.root / "cache" / "index.json").unlink()
        assert "nothing to do: 2 targets fresh" in doitkit.run(other)[1]
        sandbox.spec(TWO)
        assert "2 restored" in doitkit.run(other)[1]
        assert "nothing to do: 2 targets fresh" in doitkit.run(other)[1]
    types = [entry["type"] for entry in other.entries()]
    assert sorted(types) == ["build"] * 4 + ["origin"] * 2 + ["selected"] * 4
    assert audited(other).problems == []


# --- D8: limits of a process -----------------------------------------------------------------------------------------


@pytest.mark.fault("D8", "RLIMIT_NOFILE is small")
@pytest.mark.parametrize("arguments", [(), ("-n", "2")], ids=["one", "two"])
def test_64_files_are_enough(sandbox: Sandbox, arguments: tuple[str, ...]) -> None:
    sandbox.spec(TWO + simple("c", content="c") + simple("d", content="d"))
    text = limited(sandbox, *arguments, limits={resource.RLIMIT_NOFILE: 64})
    assert text.startswith("exit 0"), text
    assert audited(sandbox).problems == []


@pytest.mark.fault("D8", "RLIMIT_NOFILE is small")
def test_too_few_files_are_said(sandbox: Sandbox, cases: Callable[[int], None]) -> None:
    sandbox.spec(TWO)
    outcomes = set()
    for count in (8, 10, 12):
        text = limited(sandbox, limits={resource.RLIMIT_NOFILE: count})
        outcomes.add(text.startswith("exit 0"))
        assert text.startswith("exit 0") or "too many open files" in text.lower(), text
    goes_on(sandbox)
    assert False in outcomes
    cases(3)


@pytest.mark.fault("D8", "RLIMIT_FSIZE is small")
@pytest.mark.parametrize("size", [100, 1500, 3000])
def test_files_may_not_grow(sandbox: Sandbox, size: int) -> None:
    sandbox.spec(TWO)
    text = limited(sandbox, limits={resource.RLIMIT_FSIZE: size})
    assert text.startswith("exit 2"), text
    assert "E-SPACE: a file would be larger than the system's limit allows: /" in text
    assert "ulimit -f" in text
    goes_on(sandbox)


def test_a_stage_meets_the_same_limit(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n  a: {kind: command, command: [sh, -c, 'head -c 900000 /dev/zero > {out}/x']}\n")
    text = limited(sandbox, limits={resource.RLIMIT_FSIZE: 200_000})
    assert text.startswith("exit 1"), text
    assert "E-COMMAND: sh ended with " in text
    assert not list((sandbox.root / "cache" / "objects").rglob("x"))
    assert limited(sandbox).startswith("exit 0")
    assert audited(sandbox).problems == []
