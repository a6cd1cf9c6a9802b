"""The disk at its fullest and memory at its peak, in the order of building; what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ingot.core import capacity
from ingot.core.capacity import Peak, Room, Work
from ingot.core.forecast import Forecast
from ingot.core.graph import Node
from ingot.core.plan import Planned
from ingot.core.predict import Prediction
from ingot.errors import WillNotFit

GB = 10**9
LARGE = Room(100 * GB, GB, 100 * GB, 100 * GB)


def predicted(size: int, *, scratch: int | None = 0, memory: int | None = 1, wall: float | None = 1.0) -> Prediction:
    return Prediction(wall, memory, size, scratch, 1, "same_target")


def planned(**inputs: str) -> dict[str, Planned]:
    """Waiting targets by name, each with the names of its inputs in one text; ``params`` are the name."""
    return {
        f"s:{name}": Planned(
            Node(
                "prune", 1, "deterministic", "hf", {"is": name},
                spec="s", name=name, target=name, inputs={"model": tuple(of.split())},
            ),
            "waiting",
        )
        for name, of in inputs.items()
    }  # fmt: skip


CHAIN = planned(base="", merged="base", gguf="merged")
FORK = planned(base="", left="base", right="base")


def work(plan: dict[str, Planned], parallel: int = 1, /, **predictions: Prediction | None) -> Work:
    named = {f"s:{name}": prediction for name, prediction in predictions.items()}
    return capacity.work(plan, list(plan), {name: named.get(name) for name in plan}, parallel)


def forecast(made: Work, room: Room) -> Forecast:
    unknown = tuple(name for name in made.names if made.predictions[name] is None)
    return Forecast(made, made.predictions, unknown, made.disk(), made.memory(), room)


def test_what_is_built_stays_and_what_lies_beside_it_goes() -> None:
    made = work(CHAIN, base=predicted(10), merged=predicted(10, scratch=50), gguf=predicted(5))
    assert made.disk() == Peak(70, ("s:merged",)), "20 built, 50 beside the second; 25 at the end"
    assert work(CHAIN, base=predicted(10), merged=predicted(10), gguf=predicted(5)).disk() == Peak(25, ("s:gguf",))


def test_what_is_not_known_adds_nothing() -> None:
    made = work(CHAIN, merged=predicted(10, memory=None, scratch=None, wall=None))
    assert (made.disk(), made.memory(), made.seconds()) == (Peak(10, ("s:merged",)), None, None)
    nothing = work(CHAIN)
    assert (nothing.disk(), nothing.memory(), nothing.seconds()) == (None, None, None)
    assert forecast(nothing, Room(0, 0, 0, 1)).refusal() is None


def test_seconds_add_up() -> None:
    assert work(CHAIN, base=predicted(1, wall=2.0), gguf=predicted(1, wall=3.5)).seconds() == 5.5


def test_memory_is_that_of_the_largest() -> None:
    found = work(CHAIN, base=predicted(1, memory=5), merged=predicted(1, memory=9), gguf=predicted(1, memory=3))
    assert found.memory() == Peak(9, ("s:merged",))


def test_targets_at_the_same_time_add_up_unless_one_is_made_of_the_other() -> None:
    needs = {"base": predicted(10, memory=8), "left": predicted(10, memory=5), "right": predicted(10, memory=4)}
    assert work(FORK, 2, **needs).memory() == Peak(9, ("s:left", "s:right"))
    assert work(FORK, 1, **needs).memory() == Peak(8, ("s:base",))
    along = {"base": predicted(10, memory=8), "merged": predicted(10, memory=5), "gguf": predicted(10, memory=4)}
    assert work(CHAIN, 2, **along).memory() == Peak(8, ("s:base",))
    wide = planned(a="", b="", c="")
    three = {"a": predicted(1, memory=1), "b": predicted(1, memory=2), "c": predicted(1, memory=4)}
    assert work(wide, 2, **three).memory() == Peak(6, ("s:b", "s:c"))
    assert work(wide, 3, **three).memory() == Peak(7, ("s:a", "s:c", "s:b"))


def test_staging_of_targets_at_the_same_time_adds_up() -> None:
    needs = {"base": predicted(1), "left": predicted(10, scratch=50), "right": predicted(10, scratch=40)}
    assert work(FORK, 1, **needs).disk() == Peak(61, ("s:left",))
    assert work(FORK, 2, **needs).disk() == Peak(111, ("s:left", "s:right"))


def test_equal_content_is_built_once() -> None:
    plan = planned(one="", after="one")
    twin = {name.replace("s:", "t:"): replace(item, node=replace(item.node, spec="t")) for name, item in plan.items()}
    both = plan | twin
    every = {name: predicted(10) for name in both}
    assert capacity.work(both, list(both), every).names == ("s:one", "s:after")
    stale = {"s:a": replace(plan["s:one"], key="1" * 64), "s:b": replace(twin["t:after"], key="1" * 64)}
    assert capacity.work(stale, list(stale), {}).names == ("s:a",)


@pytest.mark.parametrize("free", [24, 25])
def test_the_disk_is_refused_when_its_fullest_moment_does_not_fit(free: int) -> None:
    made = work(CHAIN, base=predicted(10), merged=predicted(10), gguf=predicted(5))
    found = forecast(made, replace(LARGE, free_bytes=free + GB))
    if free == 25:
        assert found.refusal() is None
        return
    (refusal,) = found.refusals()
    assert (refusal.code, refusal.target, refusal.needed_bytes, refusal.available_bytes) == (
        "E-SPACE",
        "s:gguf",
        25,
        24,
    )
    assert refusal.to_dict() == {
        "code": "E-SPACE", "target": "s:gguf", "needed_bytes": 25, "available_bytes": 24, "detail": refusal.what,
    }  # fmt: skip
    error = refusal.error()
    assert isinstance(error, WillNotFit)
    assert "s:base: 10 B predicted from 1 build of the same target" in error.facts
    assert "doit --force builds all the same" in str(error)
    assert "build what fits: doit s:merged;" in str(error), "the largest part that fits, and not its parts"


def test_no_free_byte_beyond_the_reserve_is_used() -> None:
    assert Room(GB, 2 * GB, 0, 0).usable_bytes == 0
    assert forecast(work(CHAIN, base=predicted(1)), Room(GB, GB, 0, 0)).refusal() is not None


def test_memory_is_refused_by_the_target_that_needs_it() -> None:
    made = work(FORK, 2, base=predicted(1), left=predicted(1, memory=5 * GB), right=predicted(1, memory=4 * GB))
    (refusal,) = forecast(made, replace(LARGE, available_bytes=6 * GB)).refusals()
    assert (refusal.code, refusal.target, refusal.needed_bytes) == ("E-MEMORY", "s:left", 9 * GB)
    assert "s:left and s:right at the same time need 9.0 GB of memory, and 6.0 GB are available" in refusal.what
    assert "(-n 1)" in refusal.hint
    alone = forecast(replace(made, parallel=1), replace(LARGE, available_bytes=4 * GB))
    (refusal,) = alone.refusals()
    assert "s:left needs 5.0 GB" in refusal.what
    assert "(-n 1)" not in refusal.hint
    assert "build what fits: doit s:right;" in refusal.hint
    assert forecast(made, replace(LARGE, available_bytes=0, total_bytes=0)).refusal() is None, "nobody says how much"


def test_both_are_told_at_once() -> None:
    made = work(CHAIN, base=predicted(10 * GB, memory=9 * GB), merged=predicted(1), gguf=None)
    error = forecast(made, Room(GB, 0, GB, 2 * GB)).refusal()
    assert error is not None
    assert error.code == "E-SPACE"
    assert "E-MEMORY too: s:base needs 9.0 GB of memory, and 1.0 GB are available" in error.facts
    assert "no history yet, and not counted: s:gguf" in error.facts
    assert "build what fits" not in str(error)


def test_what_is_offered_is_known_to_fit() -> None:
    made = work(planned(big="", other=""), big=predicted(10 * GB), other=None)
    assert "doit s:other" not in str(forecast(made, Room(GB, 0, 0, 0)).refusal())


def test_many_targets_are_counted() -> None:
    made = work(planned(a="", b="", c="", d="", big=""), big=predicted(GB))
    error = forecast(made, Room(0, 0, 0, 0)).refusal()
    assert error is not None
    assert "no history yet, and not counted: s:a, s:b, s:c and 1 more" in error.facts


def test_the_room_of_this_machine(tmp_path: Path) -> None:
    found = capacity.room(tmp_path / "not" / "there")
    assert found.free_bytes > 0
    assert 0 < found.reserve_bytes <= 1 << 30
