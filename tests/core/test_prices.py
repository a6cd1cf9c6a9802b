"""Prices of a spec: what builds cost is a metric, predicted in the plan, and no part of a key."""

from __future__ import annotations

from typing import Any

import pytest

from ingot.core.prices import Prices, metrics
from projectkit import Sandbox
from recordkit import receipts, simple

TARGETS = "targets:\n" + simple("a") + simple("b", depends="a")
PRICES = "prices: {machine_hour: 3600, currency: EUR}\n"


def test_what_a_build_cost_is_a_metric(sandbox: Sandbox) -> None:
    sandbox.spec(PRICES + TARGETS)
    sandbox.ok()
    receipt = receipts(sandbox)["s:a"]
    cost = receipt["metrics"]["cost"]
    assert cost == {
        "value": pytest.approx(receipt["timings"]["wall_s"]),
        "unit": "EUR",
        "method": "wall time at 3600 EUR an hour of the machine",
    }
    assert "gpu_hours" not in receipt["metrics"]
    assert "EUR" in sandbox.ok("show", "s:a")
    sandbox.ok("audit")


def test_prices_are_part_of_no_key_and_can_be_judged(sandbox: Sandbox) -> None:
    sandbox.spec(TARGETS)
    sandbox.ok()
    assert "cost" not in receipts(sandbox)["s:a"]["metrics"]
    sandbox.spec(PRICES + TARGETS)
    assert set(sandbox.states().values()) == {"fresh"}
    sandbox.ok("forget", "s:a")
    sandbox.spec(PRICES + TARGETS + 'gates: {"a.cost": {max: 0}}\n')
    assert sandbox.doit("s:a").returncode == 1


def test_a_plan_predicts_money(sandbox: Sandbox) -> None:
    sandbox.spec(PRICES + TARGETS)
    assert sandbox.json("plan")["totals"]["costs"] == {}
    sandbox.ok()
    sandbox.ok("forget")
    plan = sandbox.json("plan")
    costs = [item["cost"] for item in plan["targets"]]
    walls = [item["predicted"]["wall_s"] for item in plan["targets"]]
    assert costs == [{"value": pytest.approx(wall), "currency": "EUR"} for wall in walls]
    assert plan["totals"]["costs"] == {"EUR": pytest.approx(sum(walls))}
    assert f"{plan['totals']['costs']['EUR']:.2f} EUR, " in sandbox.ok("plan")
    sandbox.spec(TARGETS)
    assert [item["cost"] for item in sandbox.json("plan")["targets"]] == [None, None]


def receipt(**more: Any) -> dict[str, Any]:
    return {"timings": {"wall_s": 1800.0}, **more}


def test_a_gpu_costs_where_one_was_used() -> None:
    prices = Prices.of({"machine_hour": 1.0, "gpu_hour": 2.0, "currency": "USD"})
    assert metrics(prices, receipt())["cost"]["value"] == 0.5
    for used in ({"notes": {"device": "cuda"}}, {"timings": {"wall_s": 1800.0, "peak_device_bytes": 5}}):
        found = metrics(prices, receipt(**used))
        assert (found["cost"]["value"], found["gpu_hours"]["value"]) == (1.5, 0.5)
        assert found["cost"]["method"] == "wall time at 1 USD an hour of the machine and 2 USD an hour of a GPU"
    assert metrics(prices, receipt(notes={"device": "cpu"})).keys() == {"cost"}
    assert metrics(Prices.of({}), receipt()) == {}


def test_what_ended_attempts_cost_is_not_known_and_said() -> None:
    timings = {"wall_s": 3600.0, "resumed_checkpoints": 2}
    found = metrics(Prices.of({"machine_hour": 1.0, "currency": "USD"}), receipt(timings=timings))
    assert found["cost"]["method"].startswith("wall time since its last checkpoint at")


def test_targets_of_one_pass_bear_equal_parts() -> None:
    found = metrics(Prices.of({"machine_hour": 1.0, "currency": "USD"}), receipt(shared_with=["s:b"]))
    assert found["cost"]["value"] == 0.25
    assert found["cost"]["method"] == "wall time of the pass over its 2 targets at 1 USD an hour of the machine"


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("5", "E-SPEC-TYPE: prices: must be a mapping of prices"),
        ("{machine_hour: 1}", "E-SPEC-MISSING: prices: a required field is missing: currency"),
        ("{currency: USD}", "E-SPEC-MISSING: prices: needs a price: machine_hour or gpu_hour"),
        ("{machine_hour: -1, currency: USD}", "E-SPEC-VALUE: prices.machine_hour: must be at least 0, not -1"),
        ("{machine_hour: cheap, currency: USD}", "E-SPEC-TYPE: prices.machine_hour: must be a number"),
        ("{machine_hour: true, currency: USD}", "E-SPEC-TYPE: prices.machine_hour: must be a number"),
        ("{machine_hours: 1, currency: USD}", "E-SPEC-FIELD: prices.machine_hours: unknown field"),
        ("{gpu_hour: 1, currency: 7}", "E-SPEC-TYPE: prices.currency: must be the name of a currency"),
        ("{gpu_hour: 1, currency: ' '}", "E-SPEC-TYPE: prices.currency: must be the name of a currency"),
    ],
)
def test_what_is_wrong_with_prices_is_said_with_its_place(sandbox: Sandbox, written: str, code: str) -> None:
    sandbox.spec(f"prices: {written}\n" + TARGETS)
    done = sandbox.doit("plan")
    assert done.returncode == 2
    assert code in done.stderr
