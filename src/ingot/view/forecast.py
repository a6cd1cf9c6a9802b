"""What a run as a whole is predicted to take, in words: see ``ingot.core.forecast``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ingot.core.floors import device_of
from ingot.core.forecast import Forecast
from ingot.core.quantities import about_text, size_text
from ingot.view.text import plural

#: Targets without a history that are named.
_NAMED = 3


def lines(found: Forecast) -> Iterator[str]:
    """What the run as a whole is predicted to take, what is not known of it, and what doit would refuse."""
    if not found.predictions:
        return
    known = len(found.unknown) < len(found.predictions)
    yield f"predicted: {_totals(found)}" if known else f"predicted: nothing, there is no history yet{_least(found)}"
    if on_gpu := [name for name in found.predictions if device_of(found.work.plan[name].node) == "cuda"]:
        yield f"on the GPU: {_some(on_gpu)}"
    refusals, names = found.refusals(), found.uncounted
    if known and names and not refusals:
        yield f"no history yet, and not counted: {_some(names)}"
    for refusal in refusals:
        yield f"doit would refuse: {refusal.error()}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _least(found: Forecast) -> str:
    """What a run that never took place needs at the least; empty where arithmetic says nothing."""
    parts = [] if found.memory is None else [f"peak at least {size_text(found.memory.needed_bytes)}"]
    if found.disk is not None:
        parts.append(f"disk at least +{size_text(found.disk.needed_bytes)}, {size_text(found.room.free_bytes)} free")
    return f"; by arithmetic {', '.join(parts)}" if parts else ""


def _totals(found: Forecast) -> str:
    """``about 3 min, peak 3.4 GB, disk +1.2 GB at most, 20.0 GB free (from 1 to 5 builds each)``."""
    counts = sorted({it.n for it in found.predictions.values() if it is not None})
    seconds, parts = found.work.seconds(), []
    if seconds is not None:
        untimed = [name for name in found.untimed if name not in found.uncounted]
        beside = f" without {_some(untimed)}" if untimed else ""
        parts.append(f"about {about_text(seconds)}{' of work' * (found.work.parallel > 1)}{beside}")
    parts += [f"{cost:.2f} {currency}" for currency, cost in sorted(found.costs().items())]
    if found.memory is not None:
        parts.append(f"peak {size_text(found.memory.needed_bytes)}")
    if found.disk is not None:
        bound = "at least" if found.unknown else "at most"
        parts.append(f"disk +{size_text(found.disk.needed_bytes)} {bound}, {size_text(found.room.free_bytes)} free")
    span = plural(counts[0], "build") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} builds"
    return f"{', '.join(parts)} (from {span} each)"
