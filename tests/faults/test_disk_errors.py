"""The disk is full, broken or forbidden at every single call of a build: one clear error, nothing lost, nothing blocked."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import inprocess
from injector import CALLS, Machine

from ingot.core.digest import record_files, tree_digest
from ingot.core.store import Store
from projectkit import Sandbox
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
    code, text = inprocess.run(sandbox, "old")
    assert code == 0, text
    return sandbox


def total(template: Sandbox, folder: Path, number: int) -> int:
    """How many calls of a run can fail so."""
    sandbox = copied(template, folder)
    with Machine(folder, number, 0, CALLS[number]).running() as machine:
        assert inprocess.run(sandbox)[0] == 0
    return machine.count


def violations(case: Case, folder: Path) -> list[str]:
    """Run the case and then a run without a fault; whatever breaks a promise, in words."""
    with inprocess.prepared():
        sandbox = copied(case.template, folder)
        before = acknowledged(sandbox)
        with Machine(folder, case.number, case.at, CALLS[case.number], case.lasting).running() as machine:
            code, text = inprocess.run(sandbox)
        found = [*told(code, text, case, folder), *kept(sandbox, before, text)]
        found += recovered(sandbox)
    call, path = machine.failed or ("nothing", "")
    shutil.rmtree(folder)
    return [f"{case} ({call} {os.path.relpath(path or '/', folder)}): {what}" for what in found]


def told(code: int, text: str, case: Case, folder: Path) -> Iterable[str]:
    """One clear error with the right code that names the path; or the run succeeded, since nothing that counts failed."""
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
    elif not re.search(f"{folder}|specs/s.yaml|the object [0-9a-f]{{12}}", text):
        yield f"no path: exit {code}: {text}"
    elif len(re.findall(_CODE, text)) != 1:
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
    code, text = inprocess.run(sandbox)
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
    if "nothing to do" not in inprocess.run(sandbox)[1]:
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
