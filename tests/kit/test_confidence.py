"""Scaling of confidence, on logits whose right temperature is known, and the error that is left."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ingot.errors import RefusedInput
from ingot.kit.bootstrap import percentiles, ratio_interval, resampled_sums
from ingot.kit.confidence import logits as kept
from ingot.kit.confidence import measure
from ingot.kit.confidence.diagram import diagram
from ingot.kit.confidence.logits import InMemory, OnDisk, chance, sure
from ingot.kit.confidence.reliability import Documents, assign, intervals, reliability
from ingot.kit.confidence.scaling import fit_platt, fit_temperature
from stagekit import digest_of, run_done, run_stage
from tinymodels import chat_model

Floats = npt.NDArray[np.float64]
WIDTH = 30


def known(count: int, temperature: float, seed: int = 0) -> InMemory:
    """Logits of which softmax(z / temperature) is the truth: the right tokens are drawn from it."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(0, 2, (count, WIDTH))
    gumbel = -np.log(-np.log(generator.random((count, WIDTH))))
    return InMemory((truth * temperature).astype(np.float32), (truth + gumbel).argmax(axis=1))


def documents(count: int, each: int = 40) -> Documents:
    return Documents(np.arange(count) // each)


def golden(function: Callable[[float], float], low: float, high: float, exact: float = 1e-8) -> float:
    """Where a convex function is lowest, by golden sections: another way than Newton's."""
    share = (math.sqrt(5) - 1) / 2
    left, right = high - share * (high - low), low + share * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > exact:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - share * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + share * (high - low)
            at_right = function(right)
    return (low + high) / 2


def ece_by_hand(confidence: Floats, right: Any, bins: int) -> float:
    total = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        here = [at for at, value in enumerate(confidence) if low < value <= high]
        if here:
            accuracy = sum(bool(right[at]) for at in here) / len(here)
            total += len(here) / len(confidence) * abs(accuracy - sum(confidence[at] for at in here) / len(here))
    return total


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_found(temperature: float) -> None:
    rows = known(6000, temperature)
    fit = fit_temperature(rows)
    found = 1 / fit.values[0]
    assert found == pytest.approx(temperature, rel=0.05)
    ((low, high),) = intervals(fit, documents(6000), 1000, lambda betas: 1 / betas)
    assert low < found < high
    assert low < temperature < high
    assert high - low < 0.2 * temperature

    def nll(log_t: float) -> float:
        return float(sure(rows.rows.astype(np.float64), rows.right, math.exp(log_t)).nll.mean())

    assert math.log(found) == pytest.approx(golden(nll, -3, 3), abs=1e-6)


def test_logits_three_times_as_large_have_three_times_the_temperature() -> None:
    rows = known(2000, 1.7)
    one = 1 / fit_temperature(rows).values[0]
    three = 1 / fit_temperature(InMemory(rows.rows * np.float32(3), rows.right)).values[0]
    assert three == pytest.approx(3 * one, rel=1e-5)


def test_scaling_leaves_the_order_and_lowers_the_error() -> None:
    train, test = known(6000, 3.0), known(6000, 3.0, seed=1)
    wide = test.rows.astype(np.float64)
    before = sure(wide, test.right)
    after = sure(wide, test.right, 1 / fit_temperature(train).values[0])
    assert (before.right == after.right).all()
    left = [
        reliability(chance(found.logit), found.right, documents(6000), (15, "width"), 1000) for found in (before, after)
    ]
    assert left[0].ece > 0.2
    assert left[1].ece < 0.02
    assert percentiles(left[1].resampled - left[0].resampled)[1] < -0.2
    assert after.nll.mean() < before.nll.mean() - 0.3


def test_the_confidence_and_the_likelihood_are_those_of_the_softmax() -> None:
    rows = known(200, 1.3)
    wide = rows.rows.astype(np.float64)
    found = sure(wide.copy(), rows.right, 0.7)
    softmax = np.exp(wide / 0.7) / np.exp(wide / 0.7).sum(axis=1, keepdims=True)
    assert np.allclose(chance(found.logit), softmax.max(axis=1), atol=1e-12)
    assert (found.right == (softmax.argmax(axis=1) == rows.right)).all()
    assert np.allclose(found.nll, -np.log(softmax[np.arange(200), rows.right]), atol=1e-10)
    extreme = sure(np.array([[2000.0, 0.0], [40.0, 0.0]]), np.array([0, 1]))
    assert np.isfinite(extreme.logit).all()
    assert extreme.logit[1] == pytest.approx(40, abs=1e-12), "log-odds keep the digits that a probability near 1 loses"
    assert extreme.nll[1] == pytest.approx(40)


def test_platt_finds_what_was_put_in_and_what_another_minimizer_finds() -> None:
    generator = np.random.default_rng(3)
    logit = generator.normal(1, 2, 8000)
    right = generator.random(8000) < chance(0.6 * logit - 0.4)
    fit = fit_platt(logit, right)
    assert fit.values == pytest.approx((0.6, -0.4), abs=0.06)
    yes, no = right.sum(), (~right).sum()
    target = np.where(right, (yes + 1) / (yes + 2), 1 / (no + 2))

    def loss(a: float, b: float) -> float:
        return float((np.logaddexp(0, a * logit + b) - target * (a * logit + b)).mean())

    a = golden(lambda a: loss(a, golden(lambda b: loss(a, b), -2, 2, 1e-7)), 0, 2, 1e-5)
    assert fit.values == pytest.approx((a, golden(lambda b: loss(a, b), -2, 2)), abs=1e-4)
    (low, high), _ = intervals(fit, documents(8000), 1000)
    assert low < 0.6 < high


@pytest.mark.parametrize("right", [[True] * 9, [False] * 9])
def test_platt_of_one_answer_alone_ends(right: list[bool]) -> None:
    values = fit_platt(np.linspace(-3, 3, 9), np.array(right)).values
    assert all(math.isfinite(value) for value in values)
    assert (chance(values[0] * 0.0 + np.array(values[1])) > 0.5) == right[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_error_is_the_sum_by_hand(seed: int) -> None:
    generator = np.random.default_rng(seed)
    confidence = np.concatenate([generator.random(500), [0.0, 1.0, 0.5, 1 / 15, 2 / 15]])
    right = generator.random(505) < 0.6
    found = reliability(confidence, right, documents(505), (15, "width"), 1000)
    expected = ece_by_hand(np.maximum(confidence, 1e-12), right, 15)  # 0 belongs to the first bin
    assert found.ece == pytest.approx(expected, abs=1e-9)
    assert sum(item.n for item in found.bins) == 505
    low, high = percentiles(found.resampled)
    assert low <= found.ece * 1.5
    assert high >= found.ece


def test_what_is_calibrated_has_an_error_near_0_and_what_is_not_has_all_of_it() -> None:
    generator = np.random.default_rng(5)
    confidence = generator.random(40_000)
    right = generator.random(40_000) < confidence
    for how in ("width", "mass"):
        assert reliability(confidence, right, documents(40_000), (15, how), 1000).ece < 0.012
    sure_and_wrong = reliability(np.full(100, 0.9), np.zeros(100, bool), documents(100), (15, "width"), 1000)
    assert sure_and_wrong.ece == pytest.approx(0.9)


def test_bins_of_equal_mass_hold_equal_numbers() -> None:
    confidence = np.random.default_rng(0).random(100) ** 4
    assert np.bincount(assign(confidence, 5, "mass")).tolist() == [20] * 5
    assert (np.diff(assign(np.sort(confidence), 5, "mass")) >= 0).all()
    assert assign(np.array([0.0, 0.2, 0.2000001, 1.0]), 5, "width").tolist() == [0, 0, 1, 4]


def test_resampled_sums_are_those_of_the_ratio_interval() -> None:
    generator = np.random.default_rng(1)
    values = generator.random((7, 2)) + 0.5
    drawn = resampled_sums(values, 1000)
    assert percentiles(drawn[:, 0] / drawn[:, 1]) == pytest.approx(
        ratio_interval(values[:, 0].tolist(), values[:, 1].tolist(), 1000)
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_no_temperature_is_best(sign: int) -> None:
    rows = np.eye(WIDTH, dtype=np.float32)[:20] * sign
    with pytest.raises(RefusedInput, match=f"still rises at {0.01 if sign > 0 else 100:g}") as caught:
        fit_temperature(InMemory(rows, np.arange(20)))
    assert caught.value.code == "E-CALIBRATE-BOUND"


def test_logits_on_disk_are_read_in_blocks_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = known(500, 1.4)
    disk = OnDisk(tmp_path / "logits")
    for at in range(0, 500, 37):
        disk.add(rows.rows[at : at + 37], rows.right[at : at + 37])
    assert (tmp_path / "logits").stat().st_size == 500 * WIDTH * 4
    expected = fit_temperature(rows)
    monkeypatch.setattr(kept, "_BLOCK", 64 * WIDTH)
    assert [len(right) for _, right in disk.blocks()] == [64] * 7 + [52]
    assert fit_temperature(disk).values == pytest.approx(expected.values, rel=1e-9)


def test_the_diagram_is_a_picture_of_the_bins() -> None:
    confidence = np.linspace(0.05, 0.95, 60)
    found = reliability(confidence, confidence > 0.4, documents(60, 10), (5, "width"), 1000)
    text = diagram({"as it is <": found, "then": found})
    root = ET.fromstring(text)
    bars = [node for node in root.iter("{http://www.w3.org/2000/svg}rect") if node.get("class") == "bar"]
    assert len(bars) == 2 * len(found.bins)
    assert [round(float(bar.get("height") or 0) / 220, 2) for bar in bars[:5]] == [
        round(item.accuracy, 2) for item in found.bins
    ]
    assert f"ECE {found.ece:.4f}, n = 60" in "".join(root.itertext())


@pytest.fixture(scope="module")
def inputs(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "data").mkdir()
    lines = (stories.parent.parent / "sets/tinystories/stories.clean.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{"id": f"{number:04}", "text": json.loads(line)["text"][:300]} for number, line in enumerate(lines[:24])]
    for split in ("train", "eval"):
        (folder / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"model": chat_model(stories, folder / "model"), "data": folder / "data"}


def sharper(model: Path, folder: Path, factor: float) -> Path:
    """The same model with its last layer multiplied: all logits are."""
    import torch
    from transformers import AutoModelForCausalLM

    chat_model(model, folder)
    found = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found.config.tie_word_embeddings = False
    found.lm_head.weight = torch.nn.Parameter(found.lm_head.weight.detach() * factor)
    found.save_pretrained(folder)
    return folder


def test_a_model_whose_logits_are_larger_is_too_sure(inputs: dict[str, Path], tmp_path: Path) -> None:
    params = {"documents": 24, "max_length": 128}
    out, metrics = run_stage("calibrate", params, inputs, tmp_path)
    model = sharper(inputs["model"], tmp_path / "model", 3.0)
    _, sharp = run_stage("calibrate", params, {**inputs, "model": model}, tmp_path, name="sharp")
    assert sharp["temperature"].value == pytest.approx(3 * metrics["temperature"].value, rel=1e-3)
    assert sharp["ece_before"].value > metrics["ece_before"].value + 0.1
    assert sharp["ece_temperature"].value == pytest.approx(metrics["ece_temperature"].value, abs=1e-3)
    change = sharp["ece_temperature_change"]
    assert change.interval is not None
    assert change.interval[1] < 0
    assert sharp["nll_temperature"].value < sharp["nll_before"].value
    assert sharp["ece_platt"].value < sharp["ece_before"].value
    content = json.loads((out / "calibration.json").read_text())
    assert content["temperature"] == metrics["temperature"].value
    assert content["fitted"] == {"documents": 12, "tokens": metrics["tokens_fitted"].value}
    assert content["measured"] == {"documents": 12, "tokens": metrics["tokens_measured"].value}
    for name in ("before", "temperature", "platt"):
        table = content["reliability"][name]
        gaps = [item["n"] * abs(item["accuracy"] - item["confidence"]) for item in table["bins"]]
        assert table["ece"] == pytest.approx(sum(gaps) / content["measured"]["tokens"]) == metrics[f"ece_{name}"].value
    again, _ = run_stage("calibrate", params, inputs, tmp_path, name="again")
    assert digest_of(again) == digest_of(out)
    assert not list((tmp_path / "out").glob("*.f32"))


def test_a_device_is_asked_for_and_noted(inputs: dict[str, Path], tmp_path: Path) -> None:
    params = {"documents": 4, "max_length": 32, "resamples": 1000}
    done = run_done("calibrate", {**params, "device": "cpu"}, inputs, tmp_path)
    assert done.notes == {"device": "cpu", "runtime": "transformers computing in float32"}
    if not torch.cuda.is_available():
        with pytest.raises(RefusedInput) as caught:
            run_stage("calibrate", {**params, "device": "cuda"}, inputs, tmp_path, name="cuda")
        assert caught.value.code == "E-DEVICE"


def test_fitted_and_measured_documents_are_others_whatever_their_order(inputs: dict[str, Path]) -> None:
    rows: Any = [({"id": str(number)}, None) for number in range(11)]
    left, right = ([row["id"] for row, _ in side] for side in measure.divide(rows, 0.4))
    assert (len(left), len(right)) == (4, 7)
    assert not set(left) & set(right)
    assert [[row["id"] for row, _ in side] for side in measure.divide(rows[::-1], 0.4)] == [left, right]
    assert [len(side) for side in measure.divide(rows, 0.01)] == [2, 9]
    assert [len(side) for side in measure.divide(rows, 0.99)] == [9, 2]


def test_too_few_documents_are_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    lines = (inputs["data"] / "eval.jsonl").read_text().splitlines(keepends=True)
    (data / "eval.jsonl").write_text("".join(lines[:3]))
    with pytest.raises(RefusedInput, match="3 held-out documents have tokens to score") as caught:
        run_stage("calibrate", {}, {**inputs, "data": data}, tmp_path)
    assert caught.value.code == "E-CALIBRATE-DOCUMENTS"
