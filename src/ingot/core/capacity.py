"""Whether what is to be built fits: the disk at its fullest, memory at its peak, against what there is.

Laws. The disk fills in the order of building: at each moment there are the artifacts built so far, and in staging the
artifact in work and what lies beside it; publishing renames, so an artifact counts once, and targets of equal content
are built once. With ``parallel`` builds, targets of which none is made of another may be in work at the same time and
add up, the largest taken first. A waiting target counts as built, although its inputs may come out as they were. A
target without a prediction adds what arithmetic says that it needs at the least (``floors``), else nothing: figures are
then lower bounds, and what is not known refuses nothing. What arithmetic says also counts where it is more than a
prediction. Checkpoints of an ended build lie on the disk already: only what they grow by counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ingot.core import gpu, procfs
from ingot.core.floors import Floor
from ingot.core.graph import input_ids
from ingot.core.key import params_in_key
from ingot.core.plan import Planned
from ingot.core.predict import Prediction

_RESERVE_BYTES, _RESERVE_SHARE = 1 << 30, 0.02


@dataclass(frozen=True)
class Room:
    """Bytes free where the store lies, bytes of them kept for the registry, available and total memory (0: unknown).

    ``gpu_bytes`` is the memory of the largest GPU, all of it (None: there is none, or it is not known).
    """

    free_bytes: int
    reserve_bytes: int
    available_bytes: int
    total_bytes: int
    gpu_bytes: int | None = None

    @property
    def usable_bytes(self) -> int:
        """What may be filled: the log must never meet a full disk."""
        return max(self.free_bytes - self.reserve_bytes, 0)


def room(store: Path, *, devices: bool = False) -> Room:
    """What there is now; GPUs are looked at only with ``devices``. The reserve is 2 % of the disk, at most 1 GiB."""
    place = next(folder for folder in (store, *store.parents) if folder.is_dir())
    status = os.statvfs(place)
    reserve = min(_RESERVE_BYTES, int(status.f_blocks * status.f_frsize * _RESERVE_SHARE))
    nvml = gpu.Nvml.open() if devices else None
    memories = [] if nvml is None else [it.total_bytes for it in nvml.gpus() if it.total_bytes is not None]
    return Room(status.f_bavail * status.f_frsize, reserve, *procfs.available(), max(memories, default=None))


@dataclass(frozen=True)
class Peak:
    """The largest need that is known, and the targets that are in work then, the one that needs it first."""

    needed_bytes: int
    at: tuple[str, ...]


#: Bytes, and the target that needs them.
_Need = tuple[int, str]


@dataclass(frozen=True)
class Work:
    """The targets of a run, in the order of building, each content once, with what is predicted of them."""

    plan: Mapping[str, Planned]
    names: tuple[str, ...]
    predictions: Mapping[str, Prediction | None]
    parallel: int = 1
    #: What targets need at the least by arithmetic.
    floors: Mapping[str, Floor] = field(default_factory=dict)
    #: Bytes of checkpoints that lie there already.
    kept: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def above(self) -> dict[str, frozenset[str]]:
        """For each target of the plan everything that it is made of, itself included."""
        found: dict[str, frozenset[str]] = {}
        for name, item in self.plan.items():
            found[name] = frozenset((name,)).union(*(found[each] for each in input_ids(item.node)))
        return found

    def only(self, name: str) -> Work:
        """The part of the work that one target needs."""
        return replace(self, names=tuple(each for each in self.names if each in self.above[name]))

    def known(self) -> Iterator[tuple[str, Prediction]]:
        """The targets that have a prediction."""
        for name in self.names:
            prediction = self.predictions[name]
            if prediction is not None:
                yield name, prediction

    def seconds(self) -> float | None:
        """All builds one after the other; None when nothing is known."""
        known = [it.wall_s for _name, it in self.known() if it.wall_s is not None]
        return sum(known) if known else None

    def disk(self) -> Peak | None:
        """The moment when the disk is fullest, in bytes beyond what lies there now."""
        items = [item for name in self.names if (item := self._on_disk(name)) is not None]
        position = {name: index for index, (_need, name, _bytes) in enumerate(items)}
        ranked = _ranked((need, name) for need, name, _bytes in items)
        level, fullest = 0, None
        for index, (need, name, written) in enumerate(items):
            # What is done lies in objects; beside this one only what comes later can be in work.
            later = (other for other in ranked if position[other[1]] > index)
            fullest = self._higher(fullest, (level + need, name), later)
            level += written
        return fullest

    def written(self, name: str) -> int | None:
        """Bytes of a target's artifact, as predicted or at the least; None when nothing is known of it."""
        it, floor = self.predictions[name], self.floors.get(name)
        least = 0 if floor is None else floor.bytes
        return (least or None) if it is None else max(it.bytes, least)

    def _on_disk(self, name: str) -> tuple[int, str, int] | None:
        """(bytes while it is in work, its name, bytes that stay)."""
        it, written = self.predictions[name], self.written(name)
        if written is None:
            return None
        beside = 0 if it is None else max((it.scratch_bytes or 0) - self.kept.get(name, 0), 0)
        return written + beside, name, written

    def memory_of(self, name: str) -> int | None:
        """Bytes of the machine's memory that a target takes, as predicted or at the least; None: nothing is known."""
        it, floor = self.predictions[name], self.floors.get(name)
        predicted = None if it is None else it.peak_anon_bytes
        least = 0 if floor is None else floor.host_bytes
        return (least or None) if predicted is None else max(predicted, least)

    def by_arithmetic(self, name: str) -> bool:
        """Whether the memory that counts for a target is what it needs at the least, and no prediction."""
        it = self.predictions[name]
        return self.memory_of(name) != (None if it is None else it.peak_anon_bytes)

    def memory(self) -> Peak | None:
        """The moment when most memory is in use."""
        needs = [(need, name) for name in self.names if (need := self.memory_of(name)) is not None]
        ranked, peak = _ranked(needs), None
        for item in needs:
            peak = self._higher(peak, item, ranked)
        return peak

    def _higher(self, peak: Peak | None, item: _Need, others: Iterable[_Need]) -> Peak:
        """The higher of a peak and of the moment when a target is in work beside ``others``, the largest first."""
        together = [item]
        if self.parallel > 1:
            for other in others:
                if not any(self._related(other[1], each) for _need, each in together):
                    together.append(other)
                if len(together) == self.parallel:
                    break
        total = sum(need for need, _name in together)
        if peak is not None and peak.needed_bytes >= total:
            return peak
        return Peak(total, tuple(name for _need, name in together))

    def _related(self, one: str, other: str) -> bool:
        first, second = self.plan[one].node, self.plan[other].node
        # Instances that one pass builds are in work once, and each is known by the peaks of the whole pass.
        together = first.one_pass and (first.spec, first.target, first.inputs) == (
            second.spec,
            second.target,
            second.inputs,
        )
        return together or one in self.above[other] or other in self.above[one]


def _ranked(needs: Iterable[_Need]) -> list[_Need]:
    return sorted(needs, key=lambda need: -need[0])


def work(
    plan: Mapping[str, Planned], todo: Sequence[str], predictions: Mapping[str, Prediction | None], parallel: int = 1
) -> Work:
    """The work of building ``todo``, which comes in the order of building, without what arithmetic knows of it."""
    identities = _identities(plan)
    once = {identities[name]: name for name in reversed(todo)}
    return Work(plan, tuple(name for name in todo if once[identities[name]] == name), predictions, parallel)


def _identities(plan: Mapping[str, Planned]) -> dict[str, int]:
    """Targets that will be one result have one number; of waiting ones that is known by what they are made of."""
    numbers: dict[object, int] = {}
    found: dict[str, int] = {}
    for name, item in plan.items():
        node = item.node
        content: object = item.digest if item.state in ("fresh", "evicted") else item.key
        if content is None:
            inputs = tuple(
                (role, tuple(found[f"{node.spec}:{each}"] for each in names)) for role, names in node.inputs.items()
            )
            content = (node.kind, json.dumps([params_in_key(node), node.sources], sort_keys=True), node.seed, inputs)
        found[name] = numbers.setdefault(content, len(numbers))
    return found
