"""``classify``: labels by likelihood and by what is said, against figures by hand and by plain transformers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ingot.errors import RefusedInput
from ingot.kit import classify
from ingot.kit.bootstrap import share_interval
from ingot.kit.classify import Prediction
from ingot.kit.confidence.reliability import Documents, reliability
from ingot.stages.classify import names
from stagekit import Recorder, run_stage, stage_of
from tinymodels import chat_model
from toolskit import Scripted, lines

LABELS = ("cat", "dog", "a big bird")
FAST = {"resamples": 1000}


def dataset(folder: Path, completions: Sequence[str] = LABELS * 3) -> Path:
    folder.mkdir()
    rows = [
        {
            "id": f"{number:02}",
            "prompt": f"Once upon a time there was a pet number {number}. It was a ",
            "completion": text,
        }
        for number, text in enumerate(completions)
    ]
    lines(folder / "train.jsonl", *rows[:1])
    lines(folder / "eval.jsonl", *rows)
    return folder


def predictions(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def model(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(stories, tmp_path_factory.mktemp("model") / "model")


def by_transformers(model: Path, prompt: str, label: str) -> tuple[float, int]:
    """The log-likelihood of a label and of the end after a prompt, and its tokens; written without ingot."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = [*tokenizer(prompt + label)["input_ids"], tokenizer.eos_token_id]
    start = 0
    for one, other in zip(tokenizer(prompt)["input_ids"], ids, strict=False):
        if one != other:
            break
        start += 1
    with torch.no_grad():
        log = torch.log_softmax(network(input_ids=torch.tensor([ids])).logits[0].double(), -1)
    return sum(float(log[at - 1, ids[at]]) for at in range(start, len(ids))), len(ids) - start


def test_likelihoods_are_those_of_the_labels_and_their_end(model: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    out, metrics = run_stage("classify", FAST, {"candidate": model, "data": data}, tmp_path)
    found = predictions(out)
    labels = tuple(sorted(LABELS))
    assert list(found[0]["log_likelihood"]) == list(labels)
    prompt = json.loads((data / "eval.jsonl").read_text().splitlines()[0])["prompt"]
    for label in labels:
        wanted, _ = by_transformers(model, prompt, label)
        assert found[0]["log_likelihood"][label] == pytest.approx(wanted, abs=2e-3)
    for one in found:
        assert one["found"] == max(labels, key=one["log_likelihood"].__getitem__)
    right = [one["found"] == one["wanted"] for one in found]
    assert metrics["accuracy"].value == sum(right) / 9
    counts = json.loads((out / "confusion.json").read_text())
    assert counts["labels"] == list(labels)
    assert [sum(row) for row in counts["counts"]] == [3, 3, 3]
    assert metrics["f1_macro"].value == pytest.approx(plain_f1(found, labels))
    assert metrics["calibration_error"].value == pytest.approx(plain_error(found))
    shares = [metrics[f"{name}_share"].value for name in ("a_big_bird", "cat", "dog")]
    assert shares == [sum(one["found"] == label for one in found) / 9 for label in labels]
    written = stage_of("classify", {**FAST, "labels": list(labels)})
    assert set(metrics) == set(written.measured(frozenset()))


def plain_f1(found: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> float:
    scores: list[float] = []
    for label in labels:
        right = sum(one["found"] == one["wanted"] == label for one in found)
        both = sum(one["found"] == label for one in found) + sum(one["wanted"] == label for one in found)
        scores += [2 * right / both] if both else []
    return sum(scores) / len(scores)


def plain_error(found: Sequence[Mapping[str, Any]]) -> float:
    bins: dict[int, list[float]] = {}
    for one in found:
        weights = [math.exp(score) for score in one["log_likelihood"].values()]
        sure = max(weights) / sum(weights)
        bins.setdefault(math.ceil(sure * 15), []).append(sure - (one["found"] == one["wanted"]))
    return sum(abs(sum(gaps)) for gaps in bins.values()) / len(found)


@pytest.mark.parametrize(("said", "right"), [(0, 0), (1, 20)])
def test_what_is_all_right_or_all_wrong_is_not_certain_for_that(said: int, right: int) -> None:
    found = [Prediction(str(number), 1, said) for number in range(20)]
    f1 = classify.metrics(found, ["x", "y"], ["x", "y"], 1000)["f1_macro"]
    assert (f1.value, f1.interval) == (right / 20, share_interval(right, 20))
    assert classify.metrics(found[:1], ["x", "y"], ["x", "y"], 1000)["f1_macro"].interval is None


def test_a_confidence_between_two_bins_is_of_the_lower_one_as_everywhere() -> None:
    """5/15 of three equal labels, beside one of 0.36 that is right: in one bin they would cancel out in part."""
    rest = math.log(0.32)
    found = [
        Prediction("a", 1, 0, None, (0.0, 0.0, 0.0)),
        Prediction("b", 0, 0, None, (math.log(0.36), rest, rest)),
    ]
    error = classify.metrics(found, ["x", "y", "z"], ["x", "y", "z"], 1000)["calibration_error"]
    confidence, right = np.array([1 / 3, 0.36]), np.array([False, True])
    expected = reliability(confidence, right, Documents(np.arange(2)), (15, "width"), 1000)
    assert [item.n for item in expected.bins] == [1, 1]
    assert error.value == pytest.approx(expected.ece)
    assert error.value == pytest.approx((1 / 3 + 0.64) / 2)


def test_by_token_no_short_label_is_favoured(model: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    inputs = {"candidate": model, "data": data}
    total, _ = run_stage("classify", {**FAST, "documents": 1}, inputs, tmp_path, name="sum")
    mean, _ = run_stage("classify", {**FAST, "documents": 1, "length": "mean"}, inputs, tmp_path, name="mean")
    ((of_all,), (of_one,)) = (predictions(out) for out in (total, mean))
    prompt = json.loads((data / "eval.jsonl").read_text().splitlines()[0])["prompt"]
    for label in LABELS:
        _, tokens = by_transformers(model, prompt, label)
        assert of_one["log_likelihood"][label] == pytest.approx(of_all["log_likelihood"][label] / tokens)


def test_a_gguf_finds_what_the_folder_it_was_made_of_finds(model: Path, stories_gguf: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", LABELS)
    (tmp_path / "gguf").mkdir()
    shutil.copy(stories_gguf, tmp_path / "gguf" / "model.gguf")
    outs = [
        run_stage("classify", FAST, {"candidate": folder, "data": data}, tmp_path, name=name)[0]
        for name, folder in (("of_hf", model), ("of_gguf", tmp_path / "gguf"))
    ]
    for one, other in zip(*(predictions(out) for out in outs), strict=True):
        assert one["found"] == other["found"]
        for label in LABELS:
            assert other["log_likelihood"][label] == pytest.approx(one["log_likelihood"][label], abs=0.02)


def test_what_can_only_be_a_label_is_one_and_what_is_free_may_be_none(model: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    inputs = {"candidate": model, "data": data}
    out, metrics = run_stage("classify", {**FAST, "by": "choice"}, inputs, tmp_path, name="choice")
    assert all(one["found"] is not None and one["said"].strip() == one["found"] for one in predictions(out))
    assert metrics["other_share"].value == 0
    out, metrics = run_stage("classify", {**FAST, "by": "text"}, inputs, tmp_path, name="text")
    assert metrics["other_share"].value == 1, "it tells stories"
    assert (metrics["accuracy"].value, metrics["f1_macro"].value) == (0, 0)
    assert "calibration_error" not in metrics
    assert json.loads((out / "confusion.json").read_text())["counts"] == [[0, 0, 0, 3]] * 3
    named = stage_of("classify", {**FAST, "by": "text", "labels": list(LABELS)})
    assert set(metrics) == set(named.measured(frozenset()))


def test_of_what_is_said_case_space_and_a_full_stop_do_not_count() -> None:
    said = {"a": " Dog.\n", "b": "dog!", "c": "CAT"}
    backend = Scripted(lambda prompt: said[prompt[6]])
    predict = classify.by_text(backend, ["cat", "dog"], 1000, 20, None)
    rows = [
        {"id": name, "messages": [{"role": "user", "content": name}, {"role": "assistant", "content": "dog"}]}
        for name in said
    ]
    found = classify.predict_all(classify.labelled(rows, ["cat", "dog"]), predict, Recorder())
    assert [one.found for one in found] == [1, None, 0]
    measured = classify.metrics(found, ["cat", "dog"], names(["cat", "dog"]), 1000)
    assert measured["accuracy"].value == pytest.approx(1 / 3)
    assert measured["other_share"].value == measured["dog_share"].value == pytest.approx(1 / 3)
    assert measured["f1_macro"].value == pytest.approx((0 + 2 / 4) / 2)


def test_a_better_classifier_has_better_figures_and_intervals_hold_them() -> None:
    random = np.random.default_rng(0)

    def made(right: float) -> list[Prediction]:
        found = []
        for number in range(200):
            wanted = number % 4
            label = wanted if random.random() < right else int(random.integers(4))
            found.append(Prediction(str(number), wanted, label, "", ()))
        return found

    good, bad = (classify.metrics(made(right), "abcd", names("abcd"), 1000) for right in (0.9, 0.1))
    for name in ("accuracy", "f1_macro"):
        assert good[name].value > bad[name].value + 0.4
        low, high = good[name].interval or (1, 0)
        assert low < good[name].value < high


@pytest.mark.parametrize(
    ("params", "completions", "code", "what"),
    [
        ({"labels": ["cat"]}, ["cat"], "E-CLASSIFY-LABELS", "two labels at the least"),
        ({"labels": ["cat", "Cat."]}, ["cat"], "E-CLASSIFY-LABELS", "text of its own"),
        ({"labels": ["cat", "dog"]}, ["cat", "cow"], "E-CLASSIFY-LABELS", "row 01 is none of the labels: 'cow'"),
        ({}, ["cat", "cat"], "E-CLASSIFY-LABELS", "two labels at the least"),
        ({}, [f"number {n}" for n in range(201)], "E-CLASSIFY-LABELS", "201 different answers"),
        ({"max_length": 12}, ["cat", "dog"], "E-EVAL-CONTEXT", "row 00 and its answer"),
        ({"max_length": 12, "by": "text"}, ["cat", "dog"], "E-EVAL-CONTEXT", "row 00 and its answer"),
        ({}, [], "E-EVAL-EMPTY", "no held-out row"),
    ],
)
def test_what_cannot_be_classified_is_refused(
    params: dict[str, Any], completions: list[str], code: str, what: str, request: pytest.FixtureRequest
) -> None:
    model, tmp_path = request.getfixturevalue("model"), request.getfixturevalue("tmp_path")
    data = dataset(tmp_path / "data", completions)
    with pytest.raises(RefusedInput, match=what) as caught:
        run_stage("classify", params, {"candidate": model, "data": data}, tmp_path)
    assert caught.value.code == code
    assert list((tmp_path / "out").iterdir()) == []


def test_rows_of_plain_text_have_no_label(model: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    lines(data / "eval.jsonl", {"id": "x", "text": "Once."})
    with pytest.raises(RefusedInput) as caught:
        run_stage("classify", {}, {"candidate": model, "data": data}, tmp_path)
    assert caught.value.code == "E-CLASSIFY-ROWS"


def test_labels_give_metrics_their_names() -> None:
    assert names(["Very good!", "so-so", "bad"]) == ("very_good", "so_so", "bad")
    assert names(["+", "-", "other", "A", "a "]) == ("class_1", "class_2", "class_3", "class_4", "class_5")
    assert "CLASS_share" in stage_of("classify", {}).measured(frozenset())
    assert "calibration_error" not in stage_of("classify", {"by": "choice"}).measured(frozenset())
