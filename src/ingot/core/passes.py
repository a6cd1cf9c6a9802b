"""Passes: what one run of a stage builds, which targets may share one, and what was predicted of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.core.digest import FileRecord
from ingot.core.graph import Node
from ingot.core.plan import Planned
from ingot.core.staging import Staging

if TYPE_CHECKING:
    from ingot.core.predict import Prediction

#: Makes an artifact of what was built: its digest and its files.
Keep = Callable[[Staging, Sequence[FileRecord]], tuple[str, tuple[FileRecord, ...]]]


@dataclass(frozen=True)
class Pass:
    """What one run of a stage builds: these targets, as wished, kept so; ``told`` hears of its progress.

    ``checkpoints`` is the folder in which it leaves what the next attempt goes on from; ``found`` lay there before it.
    """

    group: Sequence[Planned]
    wish: Wish
    keep: Keep
    told: str
    checkpoints: Path | None = None
    found: int = 0


@dataclass(frozen=True)
class Made:
    """What a pass gave: the receipts of its targets, and of all that flowed into them."""

    receipts: list[dict[str, Any]]
    flowed: list[dict[str, Any]]


@dataclass(frozen=True)
class Wish:
    """How a target is to be built: although it is fresh, with which others, and what was predicted, by id."""

    force: bool = False
    siblings: tuple[Node, ...] = ()
    predicted: Mapping[str, Prediction | None] = field(default_factory=dict)


#: A target is built because it is stale, alone, and nothing was predicted.
AS_IT_IS = Wish()


def alike(one: Planned, other: Planned) -> bool:
    """Whether two targets have the same key but for their parameters, so that one pass can build both."""
    if one.parts is None or other.parts is None or one.key == other.key:
        return False
    return {**one.parts, "params": None} == {**other.parts, "params": None}


def predicted(what: Pass, name: str) -> dict[str, Any]:
    """What was predicted of a target; of one pass the seconds of all its parts, since it is that which is measured."""
    found = [what.wish.predicted.get(item.node.id) for item in what.group]
    own = what.wish.predicted.get(name)
    if own is None:
        return {}
    walls = [None if it is None else it.wall_s for it in found]
    known = [wall for wall in walls if wall is not None]
    return {"predicted": replace(own, wall_s=sum(known) if len(known) == len(walls) else None).to_dict()}
