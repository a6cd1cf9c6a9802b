"""Floors: what arithmetic says of chains that never ran; shown as at least, refused when even that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from ingot.core import capacity
from ingot.core.capacity import Peak, Room, Work
from ingot.core.floors import Floor, floors
from ingot.core.forecast import Forecast
from ingot.core.graph import Node
from ingot.core.plan import Planned
from ingot.core.predict import Prediction
from ingot.core.stage import Least
from ingot.core.store import Store
from ingot.view.forecast import lines
from projectkit import Sandbox
from stagekit import stage_of

GB = 10**9
EXPECT = "expect: {bytes: 5000000000, parameters: 8000000000}"
CHAIN = f"""targets:
  base: {{kind: fetch, url: "https://example.invalid/model.gguf", sha256: {"a" * 64}, {EXPECT}}}
  hf: {{kind: convert, from: {{model: base}}, to: hf, dtype: bfloat16}}
  again: {{kind: gguf, from: {{model: hf}}, matrix: {{type: [Q8_0, Q4_K_M]}}}}
"""


def at_least(sandbox: Sandbox) -> dict[str, Any]:
    return {item["target"]: item["at_least"] for item in sandbox.json("plan")["targets"]}


def test_a_chain_that_never_ran_is_counted_by_what_the_spec_expects(sandbox: Sandbox) -> None:
    sandbox.spec(CHAIN)
    found = at_least(sandbox)
    assert found["s:base"]["bytes"] == 5 * GB
    assert found["s:hf"]["bytes"] == pytest.approx(16 * GB, rel=0.002)
    assert found["s:again@Q8_0"]["bytes"] == pytest.approx(8.5 * GB, rel=0.003)
    assert found["s:again@Q4_K_M"]["bytes"] == pytest.approx(4.5 * GB, rel=0.003)
    plan = sandbox.json("plan")
    assert plan["totals"]["unknown"] == list(found), "no build says anything of them"
    assert plan["disk"]["needed_bytes"] == sum(item["bytes"] for item in found.values())
    text = sandbox.ok("plan")
    assert "≥ 16.0 GB" in text
    assert "predicted: nothing, there is no history yet; by arithmetic disk at least +34.0 GB" in text


def test_what_is_not_expected_is_not_known(sandbox: Sandbox) -> None:
    sandbox.spec(CHAIN.replace(f", {EXPECT}", ""))
    assert set(at_least(sandbox).values()) == {None}


def test_even_the_floor_does_not_fit_on_the_disk(sandbox: Sandbox) -> None:
    sandbox.spec(CHAIN.replace("bytes: 5000000000", "bytes: 5000000000000000"))
    (refused,) = sandbox.json("plan")["refused"]
    assert (refused["code"], refused["needed_bytes"] > 5 * 10**15) == ("E-SPACE", True)
    done = sandbox.doit()
    assert done.returncode == 2
    assert "s:base: at least 5000.00 TB by arithmetic" in done.stdout + done.stderr
    assert not (sandbox.root / "registry").exists()


def test_a_result_that_is_known_counts_as_recorded(sandbox: Sandbox) -> None:
    """The weights of a file that was fetched are those in its header; of what is no model nothing is known."""
    from ggufkit import raw_gguf, tensor_info

    tensors = [tensor_info("token_embd.weight", [64, 32], 0, 0)]
    path = sandbox.root / "specs" / "model.gguf"
    path.write_bytes(raw_gguf([], tensors, b"\0" * (64 * 32 * 4)))
    sandbox.spec(
        "targets:\n  base: {kind: fetch, path: model.gguf}\n"
        "  hf: {kind: convert, from: {model: base}, to: hf, dtype: float32}\n"
        "  text: {kind: command, command: [sh, -c, 'echo x > {out}/x']}\n"
        "  odd: {kind: convert, from: {model: text}, to: hf}\n"
    )
    sandbox.ok("s:base", "s:text")
    found = at_least(sandbox)
    assert found["s:hf"]["bytes"] == 64 * 32 * 999 // 1000 * 4
    assert (found["s:base"], found["s:odd"]) == (None, None)


def test_more_is_expected_than_there_is(sandbox: Sandbox) -> None:
    sandbox.file("specs/in.txt", "x" * 10)
    sandbox.spec("targets:\n  a: {kind: fetch, path: in.txt, expect: {bytes: 11}}\n")
    done = sandbox.doit()
    assert done.returncode == 2
    assert "E-FETCH-EXPECT: what was fetched has fewer bytes than 'expect' says" in done.stdout + done.stderr
    sandbox.spec("targets:\n  a: {kind: fetch, path: in.txt, expect: {bytes: 10, parameters: 1}}\n")
    assert "fewer parameters" in sandbox.doit().stdout
    sandbox.spec("targets:\n  a: {kind: fetch, path: in.txt, expect: {bytes: 10}}\n")
    sandbox.ok()
    sandbox.spec("targets:\n  a: {kind: fetch, path: in.txt}\n")
    (target,) = sandbox.json("plan")["targets"]
    assert target["state"] == "fresh"  # what was expected is in no key


MODEL = {"model": Least(weights=1000_000)}


@pytest.mark.parametrize(
    ("kind", "params", "inputs", "bits"),
    [
        ("convert", {"dtype": "float32"}, MODEL, 32),
        ("convert", {"dtype": "float16"}, MODEL, 16),
        ("merge", {}, MODEL, 16),
        ("merge", {"dtype": "float32"}, MODEL, 32),
        ("gguf", {"type": "Q5_K_M"}, MODEL, 5.5),
        ("gguf", {"type": "IQ2_XXS"}, MODEL, 1.5),
        ("gguf", {"type": "Q8_0", "token_embedding_type": "Q2_K"}, MODEL, 2.625),
        ("gguf", {"type": "Q8_0", "overrides": [{"tensors": "x", "type": "Q4_0"}]}, MODEL, 4.5),
    ],
)
def test_what_a_kind_writes_at_the_least(
    kind: str, params: dict[str, Any], inputs: Mapping[str, Least], bits: float
) -> None:
    assert stage_of(kind, params).least_output(inputs) == Least(int(999_000 * bits / 8), 999_000)


class Closed:
    """A store that nobody may look into."""

    def object_path(self, digest: str) -> Path:
        raise AssertionError(digest)


def test_only_what_the_work_is_made_of_is_looked_at() -> None:
    """A project may hold hundreds of results; their headers tell nothing of a target that is made of none of them."""
    plan = {
        name: Planned(Node("command", 1, "seeded", "any", {"command": ["true"]}, spec="s", name=name), "stale")
        for name in ("old", "new")
    }
    receipt: dict[str, Any] = {"files": [], "metrics": {}, "digest": "0" * 64}
    known = {f"s:{name}": item for name, item in plan.items()} | {"s:old": replace(plan["old"], receipt=receipt)}
    assert floors(known, {"s:new"}, cast("Store", Closed())) == {}
    made_of = replace(plan["new"], node=replace(plan["new"].node, inputs={"data": ("old",)}))
    with pytest.raises(AssertionError):
        floors({**known, "s:new": made_of}, {"s:new"}, cast("Store", Closed()))


# --- what counts, and what is refused ----------------------------------------------------------------------------


def made(floors: Mapping[str, Floor], room: Room, **predictions: Prediction | None) -> Forecast:
    """A forecast of targets ``a`` and ``b``."""
    plan = {
        f"s:{name}": Planned(Node("full", 1, "seeded", "hf", {"is": name}, spec="s", name=name, target=name), "waiting")
        for name in ("a", "b")
    }
    named = {name: predictions.get(name.partition(":")[2]) for name in plan}
    work: Work = replace(capacity.work(plan, list(plan), named), floors={f"s:{n}": it for n, it in floors.items()})
    unknown = tuple(name for name in work.names if named[name] is None)
    return Forecast(work, named, unknown, work.disk(), work.memory(), room)


def predicted(size: int, memory: int) -> Prediction:
    return Prediction(1.0, memory, size, 0, 1, "same_kind")


ROOM = Room(100 * GB, GB, 24 * GB, 24 * GB)


def test_memory_that_even_arithmetic_denies_is_refused() -> None:
    found = made({"a": Floor(112 * GB, 16 * GB)}, ROOM)
    (refusal,) = found.refusals()
    assert (refusal.code, refusal.target, refusal.needed_bytes) == ("E-MEMORY", "s:a", 112 * GB)
    assert refusal.what == "s:a needs at least 112.0 GB of memory, and 24.0 GB are available"
    assert refusal.facts[0] == "s:a: at least 112.0 GB by arithmetic on its parameters and inputs"
    assert refusal.facts[-1] == "no history yet, and not counted: s:b"
    # The machine has 24 GB: ending programs cannot make 112 of them.
    assert refusal.hint.startswith("make it smaller, or build it on a machine with more memory; ")
    assert made({"a": Floor(24 * GB, 16 * GB)}, ROOM).refusal() is None
    assert made({"a": Floor(0, 99 * GB)}, ROOM).refusal() is None
    (space,) = made({"a": Floor(0, 99 * GB + 1)}, ROOM).refusals()
    assert space.code == "E-SPACE"
    assert "cache/ grows by at least 99.0 GB" in space.what


def test_the_larger_of_floor_and_prediction_counts() -> None:
    found = made({"a": Floor(5, 7)}, ROOM, a=predicted(6, 6), b=predicted(1, 1))
    assert (found.memory, found.disk) == (Peak(6, ("s:a",)), Peak(8, ("s:b",)))
    found = made({"a": Floor(9, 2)}, ROOM, a=predicted(6, 6), b=predicted(1, 1))
    assert (found.memory, found.disk) == (Peak(9, ("s:a",)), Peak(7, ("s:b",)))
    assert found.work.by_arithmetic("s:a")
    assert not found.work.by_arithmetic("s:b")


def test_what_a_gpu_holds_is_no_memory_of_the_machine() -> None:
    floors = {"a": Floor(112 * GB, 1, "cuda")}
    assert made(floors, ROOM).memory is None
    assert made(floors, ROOM).refusal() is None, "how much there is is not known"
    (refusal,) = made(floors, replace(ROOM, gpu_bytes=80 * GB)).refusals()
    assert refusal.what == "s:a needs at least 112.0 GB of GPU memory, and the largest GPU has 80.0 GB"
    assert made(floors, replace(ROOM, gpu_bytes=112 * GB)).refusal() is None


def test_a_plan_says_what_a_gpu_will_compute() -> None:
    found = made({}, ROOM)
    assert not any("GPU" in line for line in lines(found))
    plan = found.work.plan
    for name in ("s:a", "s:b"):
        cast("dict[str, Planned]", plan)[name] = replace(plan[name], node=replace(plan[name].node, device="cuda"))
    assert "on the GPU: s:a, s:b" in list(lines(found))


def test_checkpoints_that_lie_there_are_not_counted_again() -> None:
    found = made({}, ROOM, a=Prediction(1.0, 1, 10, 50, 1, "same_kind"))
    assert found.disk == Peak(60, ("s:a",))
    assert replace(found.work, kept={"s:a": 40}).disk() == Peak(20, ("s:a",))
    assert replace(found.work, kept={"s:a": 90}).disk() == Peak(10, ("s:a",))
