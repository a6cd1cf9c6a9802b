"""The life of a project, in any order: what people, programs and disks do to it, and the promises after every step.

A state machine over a small real project (a fetched file, a program that reads the spec's word, one that reads its
output) and real ``doit`` commands. It knows what it planted, what was acknowledged and what each target must hold;
after each step ``doit audit`` must find exactly the former, the logs must hold the next, and no target that ``doit
plan`` calls fresh may hold anything but the last.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ingot.core.audit import _Auditor
from ingot.core.log import logs_in
from ingot.core.merkle import leaf_hash, root_of
from ingot.core.note import Checkpoint, SigningKey
from projectkit import Sandbox
from recordkit import audited, copied, registry_of, simple, writable

WORDS = ("one", "two", "three")
#: Exit codes of a command that refuses a damaged log.
REFUSED = (3, 5)
_HAS_GC = any(point.name == "gc" for point in importlib.metadata.entry_points(group="doit.COMMAND"))
_FILES = {"s:a": "out.txt", "s:b": "out.txt", "s:f": "file.txt"}
#: Parts of the cache that a person may delete, or a program spoil, at any time.
_DERIVED = ("index.json", "stat.json", "results", "specs", "latest")


def written(sandbox: Sandbox, word: str, text: str) -> None:
    """The spec with a word, and the file that is fetched."""
    sandbox.file("specs/x.txt", text)
    fetched = "  f: {kind: fetch, path: x.txt}\n"
    sandbox.spec("targets:\n" + simple("a", content=word) + simple("b", depends="a") + fetched)


def lines_of(root: Path) -> dict[str, list[bytes]]:
    """The whole lines of each log, by origin."""
    return {log.origin: list(log.scan()) for log in logs_in(root)}


def removed(path: Path) -> None:
    """Delete what the store keeps read-only."""
    if path.is_dir() and not path.is_symlink():
        for folder in (path, *path.rglob("*")):
            if folder.is_dir() and not folder.is_symlink():
                folder.chmod(0o755)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _noted(function: Callable[..., None]) -> Callable[..., None]:
    """The same, and where it fails, what led to it: a run that is killed at some moment is not the same twice."""

    @functools.wraps(function)
    def noted(self: Life, *values: Any, **named: Any) -> None:
        if not hasattr(function, "is_promise"):
            self.told.append(f"{function.__name__}{(*values, *named.values())}")
        try:
            function(self, *values, **named)
        except AssertionError as error:
            type(self).failures.append(f"{error}\nin {function.__name__} after: {' '.join(self.told)}")
            raise

    return noted


def step(**arguments: Any) -> Callable[[Callable[..., None]], Any]:
    """Something that happens."""
    return lambda function: cast("Any", rule)(**arguments)(_noted(function))


def promise(function: Any) -> Any:
    """Something that holds after whatever has happened."""
    function.is_promise = True
    return cast("Any", invariant)()(_noted(function))


class Life(RuleBasedStateMachine):
    """A project and what must be true of it."""

    template: Sandbox
    steps = 0
    failures: ClassVar[list[str]] = []

    @initialize()
    def begin(self) -> None:
        """A copy of a project that was built once."""
        self.folder = Path(tempfile.mkdtemp(prefix="life-"))
        self.at = copied(self.template, self.folder)
        self.word, self.text = WORDS[0], "text"
        self.told: list[str] = []
        #: Digests of artifacts that were damaged, and the log whose line was, with its bytes from before.
        self.damaged: set[str] = set()
        self.broken: tuple[Path, bytes] | None = None
        self.acknowledged = lines_of(self.registry)
        self.backup: tuple[Path, dict[str, list[bytes]]] | None = None
        self.newest: dict[str, int] = {}
        self.other: Sandbox | None = None

    def teardown(self) -> None:
        """Leave no folder behind."""
        if hasattr(self, "folder"):
            removed(self.folder)

    @property
    def registry(self) -> Path:
        return self.at.root / "registry"

    def expected(self, target: str) -> str:
        """What a target must hold."""
        return {"s:a": f"{self.word}\n", "s:b": f"x\n{self.word}\n", "s:f": self.text}[target]

    def acknowledge(self) -> None:
        """All that the logs hold was acknowledged to whoever ran the command that has just ended well."""
        for origin, lines in lines_of(self.registry).items():
            assert lines[: len(self.acknowledged.get(origin, []))] == self.acknowledged.get(origin, [])
            self.acknowledged[origin] = lines
            self.newest[origin] = max(self.newest.get(origin, 0), len(lines))

    # --- what people do ----------------------------------------------------------------------------------------

    @step(word=st.sampled_from(WORDS), text=st.sampled_from(("text", "other")))
    def edit(self, word: str, text: str) -> None:
        """The spec and the file change, perhaps back."""
        self.word, self.text = word, text
        written(self.at, word, text)

    @step()
    def build(self) -> None:
        """``doit``, which makes all whole, or refuses a log that was tampered with."""
        before = lines_of(self.registry)
        done = self.at.doit()
        assert "Traceback" not in done.stdout + done.stderr
        if self.broken:
            assert done.returncode in REFUSED, done.stdout + done.stderr
            assert lines_of(self.registry) == before, "nothing is signed on top of damage"
            return
        assert done.returncode == 0, done.stdout + done.stderr
        self.acknowledge()
        found = {item["target"]: item for item in self.at.json("plan")["targets"]}
        assert {name: item["state"] for name, item in found.items()} == dict.fromkeys(_FILES, "fresh")
        self.damaged -= {str(item["digest"]) for item in found.values()}
        for target, name in _FILES.items():
            shown = self.at.root / "cache" / "latest" / target.replace(":", "/") / name
            assert shown.read_text() == self.expected(target)

    @step(seconds=st.floats(0.01, 0.5))
    def kill(self, seconds: float) -> None:
        """``doit`` is killed at some moment, or has ended before it."""
        try:
            done = self.at.doit(timeout=seconds)
        except subprocess.TimeoutExpired:
            return
        if done.returncode == 0:
            self.acknowledge()

    @step(command=st.sampled_from(("promote", "rollback")), name=st.sampled_from(("s:a", "s:b")))
    def decide(self, command: str, name: str) -> None:
        """Promote or roll back: done and recorded, or refused with nothing recorded."""
        before = lines_of(self.registry)
        done = self.at.doit(command, name)
        assert "Traceback" not in done.stdout + done.stderr
        assert not (self.broken and done.returncode == 0)
        if done.returncode == 0:
            self.acknowledge()
        else:
            assert done.returncode in (2, 3, 4, 5), done.stdout + done.stderr
            assert lines_of(self.registry) == before

    @step()
    def save(self) -> None:
        """A backup of the registry is made."""
        if self.broken is None:
            place = self.folder / "backup"
            removed(place)
            shutil.copytree(self.registry, place / "registry")
            shutil.copy2(self.at.root / "ingot.lock", place)
            self.backup = place, {origin: list(lines) for origin, lines in lines_of(self.registry).items()}

    @precondition(lambda self: self.backup is not None)
    @step()
    def restore(self) -> None:
        """The backup is put back: what was recorded since is known to nobody any more, and nobody says otherwise."""
        assert self.backup is not None
        place, lines = self.backup
        removed(self.registry)
        shutil.copytree(place / "registry", self.registry)
        shutil.copy2(place / "ingot.lock", self.at.root)
        self.acknowledged, self.broken = {origin: list(known) for origin, known in lines.items()}, None

    @step(word=st.sampled_from(("theirs", WORDS[1])))
    def clone(self, word: str) -> None:
        """Somebody else, with a key of their own, clones the project, builds another state of it."""
        if self.broken:
            return
        if self.other is None:
            self.other = Sandbox.make(self.folder / "clone")
            shutil.copytree(self.registry, self.other.root / "registry")
            shutil.copy2(self.at.root / "ingot.lock", self.other.root)
        written(self.other, word, "text")
        self.other.ok()

    @precondition(lambda self: self.other is not None)
    @step()
    def merge(self) -> None:
        """Their logs come in, as a merge of git brings them."""
        assert self.other is not None
        theirs = lines_of(self.other.root / "registry")
        for log in logs_in(self.other.root / "registry"):
            if len(theirs[log.origin]) > self.newest.get(log.origin, 0):
                target = self.registry / log.folder.name
                if self.broken and self.broken[0].parent == target:
                    continue
                removed(target)
                shutil.copytree(log.folder, target)
                self.acknowledged[log.origin] = theirs[log.origin]

    # --- what goes wrong ---------------------------------------------------------------------------------------

    @step(seed=st.integers(0, 1000), how=st.sampled_from(("change", "cut", "delete", "add")))
    def corrupt(self, seed: int, how: str) -> None:
        """One file of one artifact is changed, cut or deleted, or gets a neighbour."""
        names = sorted(path for path in (self.at.root / "cache" / "objects").glob("*/*/*") if path.is_file())
        if names:
            path = writable(random.Random(seed).choice(names))
            writable(path.parent)
            data = path.read_bytes()
            if how == "change":
                path.write_bytes(bytes([data[0] ^ 1]) + data[1:] if data else b"?")
            elif how == "cut":
                path.write_bytes(data[:-1] if data else b"??")
            elif how == "delete":
                path.unlink()
            else:
                (path.parent / f"more-{len(os.listdir(path.parent))}.txt").write_text("x")
            self.damaged.add(path.parent.name)

    @step(seed=st.integers(0, 1000), name=st.sampled_from(_DERIVED))
    def spoil(self, seed: int, name: str) -> None:
        """A derived file is damaged: it decides nothing."""
        place = self.at.root / "cache" / name
        files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
        if files and name != "latest":
            rng = random.Random(seed)
            path = writable(rng.choice(files))
            data = bytearray(path.read_bytes() or b"x")
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(bytes(data))

    @step(name=st.sampled_from((*_DERIVED, "objects", "locks", "")))
    def delete(self, name: str) -> None:
        """A part of the cache, or all of it, is deleted."""
        removed(self.at.root / "cache" / name if name else self.at.root / "cache")
        if name in ("objects", ""):
            self.damaged.clear()

    @precondition(lambda self: self.broken is None)
    @step(seed=st.integers(0, 1000))
    def tamper(self, seed: int) -> None:
        """One byte of the signed lines of a log is changed."""
        signed = [(log, log.checkpoint()) for log in logs_in(self.registry)]
        logs = [(log, point.size) for log, point in signed if point is not None and point.size]
        if logs:
            rng = random.Random(seed)
            log, size = rng.choice(logs)
            data = log.lines_path.read_bytes()
            end = sum(len(line) + 1 for line in list(log.scan())[:size])
            at = rng.randrange(end)
            log.lines_path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            self.broken = log.lines_path, data

    @precondition(lambda self: self.broken is not None)
    @step()
    def mend(self) -> None:
        """The line is put right again."""
        assert self.broken is not None
        path, data = self.broken
        path.write_bytes(data)
        self.broken = None

    @precondition(lambda _self: _HAS_GC)
    @step()
    def collect(self) -> None:
        """``doit gc`` with hardly anything kept."""
        done = self.at.doit("gc", "--newest", "1")
        assert "Traceback" not in done.stdout + done.stderr
        assert done.returncode == 0 or self.broken or self.damaged, done.stdout + done.stderr
        there = {path.name for path in (self.at.root / "cache" / "objects").glob("*/*")}
        self.damaged &= there

    # --- the promises ------------------------------------------------------------------------------------------

    @promise
    def nothing_acknowledged_is_lost(self) -> None:
        type(self).steps += 1
        there = lines_of(self.registry)
        for origin, lines in self.acknowledged.items():
            path = self.registry / origin.rpartition("/")[2] / "log.jsonl"
            if self.broken is None or self.broken[0] != path:
                assert there.get(origin, [])[: len(lines)] == lines, f"{origin} lost what was acknowledged"

    @promise
    def audit_finds_exactly_what_was_planted(self) -> None:
        found = audited(self.at)
        codes = {problem.code for problem in found.problems}
        if self.broken:
            name = self.broken[0].parent.name
            assert any(name in problem.where for problem in found.problems), found.problems
            assert all(name in problem.where or problem.code == "artifact_damaged" for problem in found.problems)
            return
        receipts = {str(receipt["digest"]): receipt for receipt in self.receipts()}
        # A killed run may have mended an artifact before it ended, and a bit may have been flipped back.
        self.damaged -= {digest for digest in self.damaged & set(receipts) if self.is_whole(digest, receipts[digest])}
        assert codes <= {"artifact_damaged"}, found.problems
        places = {problem.where.split("/")[3] for problem in found.problems}
        assert places == self.damaged & set(receipts), (found.problems, self.damaged)
        behind = {
            origin
            for origin, lines in self.acknowledged.items()
            if len(lines) < self.newest.get(origin, 0) and len(lines_of(self.registry)[origin]) == len(lines)
        }
        notes = [note.where for note in found.notes if note.code == "log_behind"]
        assert all(any(name.rpartition("/")[2] in where for where in notes) for name in behind), (behind, found.notes)

    @promise
    def nothing_wrong_is_called_fresh(self) -> None:
        done = self.at.doit("plan", "--json")
        assert "Traceback" not in done.stdout + done.stderr
        if self.broken:
            assert done.returncode in REFUSED, done.stdout + done.stderr
            return
        assert done.returncode == 0, done.stdout + done.stderr
        for item in json.loads(done.stdout)["targets"]:
            if item["state"] == "fresh" and item["present"]:
                digest, name = str(item["digest"]), _FILES[item["target"]]
                held = self.at.root / "cache" / "objects" / digest[:2] / digest / name
                assert held.read_text() == self.expected(item["target"]), f"{item['target']} is wrong and called fresh"
                assert digest not in self.damaged

    def is_whole(self, digest: str, receipt: dict[str, Any]) -> bool:
        """Whether an artifact is gone, or byte for byte what its entry lists."""
        folder = self.at.root / "cache" / "objects" / digest[:2] / digest
        held = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*")}
        return not folder.exists() or held == {file["path"]: file["sha256"] for file in receipt["files"]}

    def receipts(self) -> list[dict[str, Any]]:
        """All builds that the logs tell of."""
        from ingot.core.statement import receipt_of

        registry = registry_of(self.at)
        return [receipt_of(it.statement, registry.read_evidence) for it in registry.entries() if it.type == "build"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """What each life begins as."""
    sandbox = Sandbox.make(tmp_path_factory.mktemp("life"))
    written(sandbox, WORDS[0], "text")
    sandbox.ok()
    return sandbox


def live(template: Sandbox, lives: int, steps: int) -> int:
    """So many lives of so many steps at the most; how many steps were checked."""
    machine = type("Lived", (Life,), {"template": template, "steps": 0, "failures": []})
    profile = settings(
        max_examples=lives,
        stateful_step_count=steps,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    try:
        run_state_machine_as_test(machine, settings=profile)
    except Exception as error:
        raise AssertionError("\n\n".join(machine.failures[:1]) or str(error)) from error  # type: ignore[attr-defined]
    return int(machine.steps)  # type: ignore[attr-defined]


_WHAT = "edit, build, kill, corrupt, delete, back up, restore, tamper, clone, merge and promote in any order: steps"


@pytest.mark.fault("H6", _WHAT)
def test_the_promises_hold_after_every_step(template: Sandbox, cases: Callable[[int], None]) -> None:
    cases(live(template, 4, 8))


@pytest.mark.slow
@pytest.mark.fault("H6", _WHAT)
def test_the_promises_hold_after_every_step_of_many_lives(template: Sandbox, cases: Callable[[int], None]) -> None:
    lives, steps = (int(it) for it in os.environ.get("INGOT_TESTS_LIVES", "100x40").split("x"))
    cases(live(template, lives, steps))


# --- the machine notices what breaks a promise -------------------------------------------------------------------


@pytest.fixture
def life(template: Sandbox) -> Any:
    machine = type("Lived", (Life,), {"template": template})()
    machine.begin()
    yield machine
    machine.teardown()


def check(life: Life) -> None:
    life.nothing_acknowledged_is_lost()
    life.audit_finds_exactly_what_was_planted()
    life.nothing_wrong_is_called_fresh()


def test_it_notices_damage_that_nobody_planted(life: Life) -> None:
    check(life)
    life.corrupt(1, "change")
    check(life)
    life.damaged.clear()
    with pytest.raises(AssertionError):
        life.audit_finds_exactly_what_was_planted()


def test_it_notices_damage_that_audit_does_not_find(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    life.corrupt(1, "cut")
    monkeypatch.setattr(_Auditor, "_check_objects", lambda *_arguments: None)
    with pytest.raises(AssertionError):
        life.audit_finds_exactly_what_was_planted()


def test_it_notices_an_entry_that_is_gone_although_everything_verifies(life: Life) -> None:
    (log,) = logs_in(life.registry)
    (path,) = (life.at.home / "config" / "ingot" / "keys").iterdir()
    key = SigningKey.parse(path.read_text().strip())
    kept = list(log.scan())[:-1]
    log.lines_path.write_bytes(b"".join(line + b"\n" for line in kept))
    log.checkpoint_path.write_bytes(
        key.sign(Checkpoint(log.origin, len(kept), root_of([*map(leaf_hash, kept)])).text())
    )
    shutil.rmtree(life.at.home / "state")
    (life.at.root / "ingot.lock").unlink()
    assert audited(life.at).problems == [], "no pin is left that could tell"
    with pytest.raises(AssertionError, match="lost what was acknowledged"):
        life.nothing_acknowledged_is_lost()


def test_it_notices_a_fresh_target_that_is_wrong(life: Life) -> None:
    life.word = "three"
    with pytest.raises(AssertionError, match="wrong and called fresh"):
        life.nothing_wrong_is_called_fresh()


def test_it_notices_a_tampered_log_that_is_built_on(life: Life) -> None:
    life.tamper(3)
    check(life)
    life.build()
    life.mend()
    check(life)
    life.broken = life.registry / "none" / "log.jsonl", b""
    with pytest.raises(AssertionError):
        life.build()
