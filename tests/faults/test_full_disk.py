"""A real file system without room: it fills at each stage of a chain, and under each command."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from diskkit import full, made, mounted
from projectkit import Sandbox
from recordkit import audited, registry_of, simple

#: Kilobytes that are left on the disk when a chain of three targets of 1 MB each is built.
EVERYDAY, THOROUGH = (200, 1400, 5000), tuple(range(0, 4600, 150))
TARGETS = "abc"


def chain(sandbox: Sandbox) -> None:
    text = "targets:\n"
    for name, source in zip(TARGETS, ("", "a", "b"), strict=True):
        script = f"echo {name} > {{out}}/name; head -c 1000000 /dev/zero > {{out}}/x"
        inputs = f", from: {{data: {source}}}" if source else ""
        text += f"  {name}: {{kind: command, command: [sh, -c, {json.dumps(script)}]{inputs}}}\n"
    sandbox.spec(text)


@pytest.mark.fault("D2", "a real disk fills at each stage of a chain, in steps")
@pytest.mark.parametrize("rooms", [EVERYDAY, pytest.param(THOROUGH, marks=pytest.mark.slow)], ids=["some", "steps"])
def test_a_disk_that_fills_at_each_stage(tmp_path: Path, cases: Callable[[int], None], rooms: tuple[int, ...]) -> None:
    reached = set()
    with mounted(made(tmp_path / "image", 24), tmp_path / "disk") as disk:
        for room in rooms:
            sandbox = Sandbox.make(disk / str(room))
            sandbox.home.mkdir()
            chain(sandbox)
            with full(disk, room):
                done = sandbox.doit()
                text = done.stdout + done.stderr
                said = re.findall(r"^built +(\S+)", text, re.MULTILINE)
                assert "Traceback" not in text
                assert (done.returncode == 0) == (len(said) == len(TARGETS)), text
                if done.returncode:
                    assert done.returncode in (1, 2, 3), text
                    assert len(re.findall(r"\bE-[A-Z]+(?:-[A-Z]+)*", text)) == 1, text
                    assert "E-SPACE: the disk is full: " in text or "the disk of cache/ is full: " in text, text
                entries = [entry for entry in registry_of(sandbox).entries() if entry.type == "build"]
                assert len(entries) == len(said), "what was published was said, and what was said is recorded"
                assert audited(sandbox).problems == []
            assert sandbox.doit().returncode == 0
            audit = audited(sandbox)
            assert (audit.problems, audit.notes, audit.objects) == ([], [], len(TARGETS))
            assert list((sandbox.root / "cache" / "staging").iterdir()) == []
            reached.add(len(said))
            shutil.rmtree(sandbox.root.parent)
    assert reached >= ({0, 3} if len(rooms) < 5 else {0, 1, 2, 3}), "it filled at each stage"
    cases(len(rooms))


@pytest.mark.fault("D2", "a command finds the disk full to the last block: exit code 7, and gc makes room all the same")
def test_commands_on_a_full_disk(tmp_path: Path, cases: Callable[[int], None]) -> None:
    with mounted(made(tmp_path / "image", 24), tmp_path / "disk") as disk:
        sandbox = Sandbox.make(disk)
        for word in ("x", "y"):
            sandbox.spec("targets:\n" + simple("a") + simple("b", content=word, depends="a"))
            sandbox.ok()
        refused = (("promote", "s"), ("registry", "export", "exported"), ("registry", "proof", "s:a"))
        with full(disk):
            for arguments in (*refused, ("reproduce", "s")):
                done = sandbox.doit(*arguments)
                assert (done.returncode, done.stdout) == (7, ""), f"{arguments}: {done.stdout}{done.stderr}"
                assert done.stderr.startswith("E-SPACE: the disk is full: "), done.stderr
                assert done.stderr.count("E-") == 1
            for verb in ("plan", "audit", "history"):
                assert sandbox.doit(verb).returncode == 0, "what only looks goes on"
            assert "freed 4 B of 1 artifact" in sandbox.ok("gc", "--newest", "0")
        for arguments in (*refused, ("reproduce", "s")):
            sandbox.ok(*arguments)
        audit = audited(sandbox)
        assert (audit.problems, [note.code for note in audit.notes]) == ([], ["artifact_absent"])
        assert "nothing to do" in sandbox.ok()
    cases(len(refused) + 2)
