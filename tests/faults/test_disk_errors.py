"""The disk is full, broken or forbidden at every call of a build: one clear error, nothing lost, nothing blocked."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import doitkit
from ingot.core.digest import record_files, tree_digest
from ingot.core.store import Store
from injectkit import CALLS, READS, Machine
from projectkit import DOIT, Sandbox
from recordkit import audited, copied, registry_of, simple

#: What a person is told of each error; one who reads a damaged input is told so.
CODES = {
    errno.ENOSPC: {"E-SPACE"},
    errno.EDQUOT: {"E-SPACE"},
    errno.EMFILE: {"E-FILES", "E-SPEC-FILE"},
    # A file of the user's that may not be read is named as what it is.
    errno.EACCES: {"E-ACCESS", "E-SOURCE", "E-SPEC-FILE"},
    # What a build is made of is said to be damaged when it cannot be read.
    errno.EIO: {"E-IO", "E-OBJECT-DAMAGED", "E-SPEC-FILE"},
}
SPEC = "targets:\n" + simple("a").replace("command:", "files: [in.txt], command:", 1) + simple("b", depends="a")
_CODE = re.compile(r"\bE-[A-Z]+(?:-[A-Z]+)*")


@dataclass(frozen=True)
class Case:
    """One injection: the error, the number of the call, and whether all later calls fail too."""

    template: Sandbox
    number: int
    at: int
    lasting: bool = False

    def __str__(self) -> str:
        return f"{errno.errorcode[self.number]} at call {self.at}{' and after' if self.lasting else ''}"


def first_time(folder: Path) -> Sandbox:
    """A project in which nothing was ever built."""
    sandbox = Sandbox.make(folder)
    sandbox.file("specs/in.txt", "source\n")
    sandbox.spec(SPEC)
    sandbox.home.mkdir()
    return sandbox


def grown(folder: Path) -> Sandbox:
    """A project with an acknowledged result, the log that holds it, and two targets to build."""
    sandbox = first_time(folder)
    sandbox.spec("targets:\n" + simple("z", content="z"), "old")
    code, text = doitkit.run(sandbox, "old")
    assert code == 0, text
    return sandbox


def total(template: Sandbox, folder: Path, number: int) -> int:
    """How many calls of a run can fail so."""
    sandbox = copied(template, folder)
    with Machine(folder, number, 0, CALLS[number]).running() as machine:
        assert doitkit.run(sandbox)[0] == 0
    return machine.count


def violations(case: Case, folder: Path) -> list[str]:
    """Run the case and then a run without a fault; whatever breaks a promise, in words."""
    with doitkit.prepared():
        sandbox = copied(case.template, folder)
        before = acknowledged(sandbox)
        with Machine(folder, case.number, case.at, CALLS[case.number], case.lasting).running() as machine:
            code, text = doitkit.run(sandbox)
        found = [*told(code, text, case, folder), *kept(sandbox, before, text)]
        found += recovered(sandbox)
    call, path = machine.failed or ("nothing", "")
    shutil.rmtree(folder)
    return [f"{case} ({call} {os.path.relpath(path or '/', folder)}): {what}" for what in found]


def told(code: int, text: str, case: Case, folder: Path) -> Iterable[str]:
    """One clear error with the right code that names the path; or success, since nothing that counts failed."""
    codes = set(_CODE.findall(text))
    if "Traceback" in text:
        yield f"a traceback: {text}"
    elif code == 0:
        if codes:
            yield f"success and an error: {text}"
    elif not codes:
        yield f"no code: exit {code}: {text}"
    elif not codes <= CODES[case.number]:
        yield f"another code: exit {code}: {text}"
    elif not re.search(f"{folder}|specs/|the object [0-9a-f]{{12}}", text):
        yield f"no path: exit {code}: {text}"
    elif len(re.findall(_CODE, text)) != 1 and codes != {"E-SPEC-FILE"}:
        yield f"more than one error: {text}"


def acknowledged(sandbox: Sandbox) -> dict[str, str]:
    """The digest of each target whose build is in the log."""
    builds = [entry for entry in registry_of(sandbox).entries() if entry.type == "build"]
    return {
        str(entry.statement["subject"][0]["name"]): str(entry.statement["subject"][0]["digest"]) for entry in builds
    }


def kept(sandbox: Sandbox, before: dict[str, str], text: str) -> Iterable[str]:
    """What was said to be built is in the log; the log verifies; every object is what its name says."""
    problems = [p for p in registry_of(sandbox).check() if p["code"] not in ("unsigned_tail", "log_behind")]
    if problems:
        yield f"the registry does not verify: {problems}"
        return
    now = acknowledged(sandbox)
    said = set(re.findall(r"^built +(\S+)", text, re.MULTILINE))
    if not said | set(before) <= set(now):
        yield f"acknowledged and lost: {sorted((said | set(before)) - set(now))}"
    store = Store(sandbox.root / "cache")
    for digest in store.objects():
        if tree_digest(record_files(store.object_path(digest))) != digest:
            yield f"published half: {digest}"


def recovered(sandbox: Sandbox) -> Iterable[str]:
    """The next run builds what is missing, each target once in all; the audit is clean and nothing is left behind."""
    code, text = doitkit.run(sandbox)
    if code != 0:
        yield f"the next run failed: {text}"
        return
    targets = [str(e.statement["subject"][0]["name"]) for e in registry_of(sandbox).entries() if e.type == "build"]
    if len(targets) != len(set(targets)):
        yield f"built twice: {targets}"
    audit = audited(sandbox)
    notes = [note for note in audit.notes if note.code != "object_unnamed"]
    if audit.problems or notes or audit.absent:
        yield f"the audit is not clean: {audit.problems} {notes}"
    if "nothing to do" not in doitkit.run(sandbox)[1]:
        yield "it is not fresh then"
    # What could not be removed is removed by the next build, before it begins.
    Store(sandbox.root / "cache").sweep_staging()
    left = [path for place in (sandbox.root, sandbox.home) for path in place.rglob("*.tmp-*")]
    left += (sandbox.root / "cache" / "staging").iterdir()
    if left:
        yield f"left behind: {left}"


def everything(cases: Iterable[Case], folder: Path) -> list[str]:
    """The violations of all cases; two processes share the work."""
    context = multiprocessing.get_context("fork")
    found: list[str] = []
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        jobs = [pool.submit(violations, case, folder / f"c{index}") for index, case in enumerate(cases)]
        for job in jobs:
            found += job.result()
    return found


def refuse_all(cases: Iterable[Case], folder: Path, tell: Callable[[int], None]) -> None:
    """Try all cases; none may break a promise."""
    chosen = list(cases)
    assert len(chosen) > 10
    tell(len(chosen))
    found = everything(chosen, folder)
    assert found == [], "\n".join(found)


_WHAT = "the N-th call of a build fails (ENOSPC, EDQUOT, EMFILE, EACCES, EIO)"


@dataclass(frozen=True)
class Sweep:
    """One error at call N = 1, 2, 3 … until a run has no failure; ``every`` how many-th N in the everyday run."""

    number: int
    lasting: bool
    every: int
    make: Callable[[Path], Sandbox]

    def __str__(self) -> str:
        return f"{errno.errorcode[self.number]}-{'on' if self.lasting else 'once'}-{self.make.__name__}"

    def cases(self, folder: Path) -> list[Case]:
        """All cases, the last of which fails nothing."""
        with doitkit.prepared():
            template = self.make(folder / "template")
            last = total(template, folder / "count", self.number) + 1
            return [Case(template, self.number, at, self.lasting) for at in range(1, last + 1)]


_EVERYDAY = [
    Sweep(errno.ENOSPC, lasting=True, every=1, make=first_time),
    Sweep(errno.EDQUOT, lasting=False, every=5, make=first_time),
    Sweep(errno.EMFILE, lasting=False, every=7, make=first_time),
    Sweep(errno.EACCES, lasting=False, every=9, make=first_time),
    Sweep(errno.EIO, lasting=False, every=9, make=first_time),
    Sweep(errno.ENOSPC, lasting=False, every=5, make=grown),
    Sweep(errno.EMFILE, lasting=True, every=9, make=grown),
    Sweep(errno.EIO, lasting=False, every=11, make=grown),
]
_EVERY_CALL = [Sweep(number, on, 1, make) for number in CODES for on in (False, True) for make in (first_time, grown)]


@pytest.mark.fault("D1", _WHAT)
@pytest.mark.parametrize("sweep", _EVERYDAY, ids=str)
def test_every_few_calls(tmp_path: Path, cases: Callable[[int], None], sweep: Sweep) -> None:
    # The first and the last calls are the rare ones: they are always tried.
    swept = sweep.cases(tmp_path)
    refuse_all([*swept[:8], *swept[8 : -8 : sweep.every], *swept[-8:]], tmp_path, cases)


@pytest.mark.slow
@pytest.mark.fault("D1", _WHAT)
@pytest.mark.parametrize("sweep", _EVERY_CALL, ids=str)
def test_every_call(tmp_path: Path, cases: Callable[[int], None], sweep: Sweep) -> None:
    refuse_all(sweep.cases(tmp_path), tmp_path, cases)


# --- reading what a build is made of ---------------------------------------------------------------------------------


@pytest.mark.fault("D5", "the N-th read of an input fails while it is verified (EIO)")
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "on"])
def test_an_input_that_the_device_cannot_read(tmp_path: Path, cases: Callable[[int], None], lasting: bool) -> None:
    """A device's error is said as such; it deletes nothing, and nothing is built from what could not be read."""
    with doitkit.prepared():
        template = first_time(tmp_path / "template")
        assert doitkit.run(template, "s:a")[0] == 0
        # Known stats would spare the reads.
        (template.root / "cache" / "stat.json").unlink()
        for at in range(1, 50):
            folder = tmp_path / f"c{at}"
            sandbox = copied(template, folder)
            content = only_file(sandbox).read_bytes()
            machine = Machine(folder, errno.EIO, at, READS, lasting, where=in_objects)
            with machine.running():
                code, text = doitkit.run(sandbox)
            kept_bytes = [path.read_bytes() for path in (sandbox.root / "cache").rglob("out.txt") if path.is_file()]
            assert content in kept_bytes, f"deleted: {text}"
            assert "Traceback" not in text
            if machine.failed is None:
                break
            assert "the device reports an error" in text or "E-IO" in text, text
            assert code != 0 or "start     s:a" in text, "it is built again, and says why"
            (sandbox.root / "specs" / "in.txt").write_text("source\n")
            assert list(recovered(sandbox)) in ([], ["built twice: ['s:a', 's:a', 's:b']"]), text
        assert at > 2
        cases(at - 1)


def in_objects(path: str) -> bool:
    """Whether a path lies in the store's objects."""
    return "/cache/objects/" in path


def only_file(sandbox: Sandbox) -> Path:
    """The one artifact's file."""
    (path,) = (sandbox.root / "cache" / "objects").rglob("out.txt")
    return path


# --- the real system's answers ---------------------------------------------------------------------------------------


def traced(sandbox: Sandbox, call: str, error: str, when: str) -> tuple[int, str]:
    """``doit`` under strace, which answers one kind of system call with an error; skips where it cannot."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace, which is not installed")
    rule = f"inject={call}:error={error}:when={when}"
    log = sandbox.home / "strace.txt"
    done = subprocess.run(
        [strace, "-f", "-qq", "-o", str(log), "-e", f"trace={call}", "-e", rule, DOIT],
        cwd=sandbox.root,
        env=sandbox.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if "PTRACE" in done.stderr or "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[:200]}")
    assert "(INJECTED)" in log.read_text(), "the fault was never met"
    return done.returncode, done.stdout + done.stderr


@pytest.mark.fault("D1", "a system call of a real doit fails (strace)")
@pytest.mark.parametrize(
    ("call", "error", "when", "code"),
    [
        ("mkdir", "ENOSPC", "9+", "E-SPACE"),
        ("fsync", "EIO", "20", "E-IO"),
        ("fsync", "ENOSPC", "31+", "E-SPACE"),
        ("rename", "EDQUOT", "7", "E-SPACE"),
        ("ftruncate,fchmod", "EIO", "6+", "E-IO"),
    ],
)
def test_a_real_doit(tmp_path: Path, call: str, error: str, when: str, code: str) -> None:
    sandbox = first_time(tmp_path)
    status, text = traced(sandbox, call, error, when)
    assert status == 2, text
    assert set(_CODE.findall(text)) == {code}
    assert str(tmp_path) in text
    assert "Traceback" not in text
    with doitkit.prepared():
        assert [*kept(sandbox, {}, text), *recovered(sandbox)] == []
