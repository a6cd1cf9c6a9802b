"""``gc``, ``promote``, ``materialize``, ``reproduce``, ``registry export`` crash at each step that changes the disk.

As ``test_crash_states`` does for builds: recorded step by step, killed or cut from power between any two steps by a
model of what a disk may lose, verified as a new process finds it, and then the same command is given again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crashacts import ACTS, prepared
from crashlab import Act, Lab, at_home, folder_in_memory
from crashlabs import Case, Labs, Scene, crashes, distinct, recorded
from ingot.core import gc
from ingot.core.store import Store

#: Crashes of each command in the everyday run, which are sampled, and the least that the thorough one finds.
EVERYDAY, THOROUGH = 14, 40


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with folder_in_memory(tmp_path_factory.mktemp("acts")) as folder:
        yield folder


@pytest.fixture(scope="module")
def lab(base: Path) -> Iterator[Lab]:
    with at_home(base / "lab") as lab:
        yield lab


@pytest.fixture(scope="module")
def labs(base: Path) -> Iterator[Labs]:
    labs = Labs(base)
    yield labs
    labs.close()


def states_of(scene: Scene, subsets: int) -> list[Case]:
    return distinct(scene.case(*crash) for crash in crashes(scene, random.Random(22), subsets))


@pytest.mark.fault("C10", "power cut or kill at any step of gc, promote, materialize, reproduce, registry export")
@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.name)
def test_a_crash_of_a_command(lab: Lab, labs: Labs, cases: Callable[[int], None], act: Act) -> None:
    found = states_of(recorded(lab, act.name, prepared(lab, act)), 0)
    chosen = random.Random(23).sample(found, min(EVERYDAY, len(found)))
    cases(len(chosen))
    assert len(chosen) >= EVERYDAY
    assert labs.broken_laws(chosen) == []


@pytest.mark.slow
@pytest.mark.fault("C10", "power cut or kill at any step of gc, promote, materialize, reproduce, registry export")
@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.name)
def test_every_crash_of_a_command(lab: Lab, labs: Labs, cases: Callable[[int], None], act: Act) -> None:
    found = states_of(recorded(lab, act.name, prepared(lab, act)), 2)
    cases(len(found))
    assert len(found) >= THOROUGH
    assert labs.broken_laws(found) == []


@pytest.mark.slow
@pytest.mark.fault("C10", "a second crash while the same command goes on after the first")
@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.name)
def test_a_second_crash(lab: Lab, labs: Labs, cases: Callable[[int], None], act: Act) -> None:
    chance = random.Random(24)
    scene = recorded(lab, act.name, prepared(lab, act))
    points = [(at, tree.copy()) for at, tree, loss in crashes(scene, chance, 0) if loss is None]
    states: list[Case] = []
    for at, tree in chance.sample(points, min(6, len(points))):
        case = scene.case(at, tree, None)
        lab.lay_out(case.image)
        again = recorded(lab, f"{case.label}, then", case.said, tree)
        found = states_of(again, 0)
        states += chance.sample(found, min(12, len(found)))
    cases(len(states))
    assert len(states) >= 40
    assert labs.broken_laws(states) == []


# --- the teeth -------------------------------------------------------------------------------------------------------


def broken(lab: Lab, name: str) -> list[str]:
    """What is wrong after any kill of a command, verified in this process, where the code may have been changed."""
    (act,) = [act for act in ACTS if act.name == name]
    scene = recorded(lab, act.name, prepared(lab, act))
    wrong = []
    for at, tree in scene.recorder.trees():
        case = scene.case(at, tree, None)
        lab.lay_out(case.image)
        wrong += lab.broken_laws(case.said)
    return wrong


@pytest.mark.fault("C10", "gc evicts in another order, or leaves what another one left: the crashes must notice")
def test_gc_in_another_order_is_caught(lab: Lab, monkeypatch: pytest.MonkeyPatch, cases: Callable[[int], None]) -> None:
    with monkeypatch.context() as patch:

        def evict_and_then_mark(store: Store, digest: str) -> None:
            store.discard(digest)
            (store.root / "evicted").mkdir(exist_ok=True)
            (store.root / "evicted" / digest).touch()

        patch.setattr(Store, "evict", evict_and_then_mark)
        # A Machine refuses what it cannot follow: this writes by descriptors too.
        patch.setattr(Path, "touch", lambda path: Store.forget(Store(path.parent.parent), f"../evicted/{path.name}"))
        assert any("artifact_absent" in text for text in broken(lab, "gc"))
    with monkeypatch.context() as patch:
        patch.setattr(gc, "_finish_others", lambda _store: None)
        assert any("left over" in text for text in broken(lab, "gc"))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "unlink_latest", lambda *_where: False)
        assert any("dangling" in text for text in broken(lab, "gc"))
    cases(3)
