"""Power cuts and kills, simulated: every legal state of the disk after a crash, in two publishes and in their recovery.

Two whole runs are recorded step by step: the first of a project, and one that finds a damaged object, an unsigned
tail and a dead builder's folder. ``crashmodel`` says which trees a crash may leave; each is laid out and must keep the
laws of ``crashlab``. That the laws and the model have teeth is shown by taking away every sync, one by one.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ingot
from crashacts import ACTS, prepared
from crashlab import Lab, at_home, folder_in_memory
from crashlabs import Case, Labs, Scene, crashes, distinct, recorded
from crashmodel import Loss, Tree
from crashrecord import Recorder

#: Random subsets of lost steps tried at each point, beside the systematic losses, and the least states that this gives.
EVERYDAY, THOROUGH = (1, 1_500), (10, 4_000)
#: Recoveries that are recorded, and crashes tried in each.
RECOVERIES_EVERYDAY, RECOVERIES_THOROUGH = (30, 32), (66, 39)

#: Halves of a whole that is synced by one call, where only the other half matters, and why.
SPARE = {
    "core/log_writer.py _open: write_file_atomic, name": "the checkpoint's name, later in the same folder, brings it",
    "core/log_writer.py _completed: write_file_atomic, name": "a completion that was lost is completed again",
    "core/evicted.py evict: make_dirs_durable, name": "builds made it before, save in projects of earlier versions",
    "core/evicted.py evict: write_file_atomic, content": "a mark is its name, and empty",
    "core/tiles.py export: make_dirs_durable, name": "an export that was lost whole is made again",
    "core/tiles.py export: write_file_atomic, name": "without its checkpoint an export is made again",
    "core/store.py _keep_from_git: write_file_atomic, name": "the folder of objects, later beside it, brings it",
}

_SYNCING = {"fsync_file", "fsync_dir", "append_durable", "write_file_atomic", "rename_durable", "make_dirs_durable"}
CORE = Path(ingot.__file__).parent / "core"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with folder_in_memory(tmp_path_factory.mktemp("crash")) as folder:
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


@pytest.fixture(scope="module")
def scenes(lab: Lab) -> list[Scene]:
    return [
        recorded(lab, "first run", lab.new()),
        recorded(lab, "run that finds damage", lab.used(damaged=True)),
        recorded(lab, "run that finds a tail", lab.used(damaged=False)),
    ]


@pytest.mark.fault("C2", "power cut or kill between any two steps of two publishes, by a model of what a disk may lose")
@pytest.mark.parametrize(
    ("subsets", "least"), [EVERYDAY, pytest.param(*THOROUGH, marks=pytest.mark.slow)], ids=["everyday", "thorough"]
)
def test_any_crash_leaves_a_project_that_goes_on(
    scenes: list[Scene], labs: Labs, cases: Callable[[int], None], subsets: int, least: int
) -> None:
    chance = random.Random(20)
    states = [
        case for scene in scenes for case in distinct(scene.case(*crash) for crash in crashes(scene, chance, subsets))
    ]
    cases(len(states))
    assert len(states) >= least
    assert labs.broken_laws(states) == []


def interrupted(scene: Scene, lab: Lab, chance: random.Random, count: int) -> Iterator[Scene]:
    """Recoveries from ``count`` crashes of a run: what the next run did, recorded as it happened."""
    sampled = [(at, tree.copy(), loss) for at, tree, loss in crashes(scene, chance, 2)]
    kills = [crash for crash in sampled if crash[2] is None]
    cuts = [crash for crash in sampled if crash[2] is not None]
    for at, tree, loss in [*chance.sample(kills, count // 2), *chance.sample(cuts, count // 2)]:
        yield recovered(scene, lab, at, tree, loss)


def recovered(scene: Scene, lab: Lab, at: int, tree: Tree, loss: Loss | None) -> Scene:
    case = scene.case(at, tree, loss)
    lab.lay_out(case.image)
    # What a killed process had not synced is still not safe; after a power cut, what is there is.
    return recorded(lab, f"{case.label}, then", case.said, tree if loss is None else None)


@pytest.mark.fault("C4", "a second crash while the next run recovers from the first")
@pytest.mark.parametrize(
    "size",
    [RECOVERIES_EVERYDAY, pytest.param(RECOVERIES_THOROUGH, marks=pytest.mark.slow)],
    ids=["everyday", "thorough"],
)
def test_a_crash_during_recovery(
    scenes: list[Scene], lab: Lab, labs: Labs, cases: Callable[[int], None], size: tuple[int, int]
) -> None:
    chance, (images, each) = random.Random(21), size
    states: list[Case] = []
    for scene in scenes:
        for again in interrupted(scene, lab, chance, images // len(scenes)):
            found = distinct(again.case(*crash) for crash in crashes(again, chance, 1))
            states += chance.sample(found, min(each, len(found)))
    cases(len(states))
    assert len(states) >= images * each - 10
    assert labs.broken_laws(states) == []


# --- the teeth: without any one sync, something is lost ----------------------------------------------------------


def written_sites() -> set[str]:
    """Every call in the core that asks for something to be made durable, as ``file:line``."""
    found = set()
    for path in CORE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and path.name != "disk.py":
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                lax = any(it.arg == "durable" for it in node.keywords)
                if name in _SYNCING and not lax:
                    found.add(f"core/{path.name}:{node.lineno}")
    return found


def sites(recorder: Recorder) -> set[str]:
    return {event.site for event in recorder.events if event.name == "sync"}


def weakened(scene: Scene, site: str) -> list[Case]:
    """Crashes of a run that are legal once the syncs of a site do nothing, losing just what these would have kept.

    Those after an acknowledgement or a rename come first: there it is most likely to matter.
    """
    found: list[tuple[bool, int, Case]] = []
    spared: set[int] = set()
    events = scene.recorder.events
    for at, tree in scene.recorder.trees([site]):
        event = events[at - 1] if at else None
        spared |= {event.inode} if event and event.site == site else set()
        steps = frozenset(n for n, it in enumerate(tree.pending) if it.sets[-1][0] in spared)
        dirty = spared & set(tree.dirty())
        found_here = [Loss(steps)] if steps else []
        variants = ("none", "zeros", "torn") if dirty else ()
        found_here += [Loss(others=tuple((inode, variant) for inode in dirty)) for variant in variants]
        late = event is None or event.name not in ("acked", "rename", "truncate")
        found += [(late, at, scene.case(at, tree, loss)) for loss in found_here]
    return [case for _late, _at, case in sorted(found, key=lambda it: it[:2])]


def is_caught(site: str, runs: list[Scene], lab: Lab) -> bool:
    """Whether something is lost without the syncs of a site."""
    for run in runs:
        for case in weakened(run, site) if site in sites(run.recorder) else ():
            lab.lay_out(case.image)
            if lab.broken_laws(case.said):
                return True
    return False


@pytest.mark.fault("C3", "one place that syncs is left out: the simulated crashes must notice")
def test_every_sync_is_needed(scenes: list[Scene], lab: Lab, cases: Callable[[int], None]) -> None:
    """Also of those that only matter to who goes on after a kill: then the power fails."""
    resumed = [
        recovered(scene, lab, at, tree.copy(), None)
        for scene in scenes
        for at, tree in scene.recorder.trees()
        if at and scene.recorder.events[at - 1].name in ("mkdir", "rename")
    ]
    runs = [*scenes, *resumed, *(recorded(lab, act.name, prepared(lab, act)) for act in ACTS)]
    found = sorted(set().union(*(sites(run.recorder) for run in runs)))
    assert {site.split(" ")[0] for site in found} == written_sites(), "a call that syncs was not reached"
    tried = [site for site in found if re.sub(r":[0-9]+", "", site) not in SPARE]
    cases(len(tried))
    spare = [site for site in tried if not is_caught(site, runs, lab)]
    assert spare == [], "\n".join(spare)
