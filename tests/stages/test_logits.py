"""``logits``: stored once, equal to the full distributions to three digits, a tenth of their bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_evaluate import FAST, write_rows

from ingot.errors import RefusedInput
from ingot.kit.backends.gguf import GgufBackend
from ingot.kit.backends.hf import HfBackend
from ingot.kit.scoring import codec
from quantref import quantize
from stagekit import run_stage, stage_of

SCORING = {"documents": 12, "max_length": 128}


@pytest.fixture(scope="module")
def data(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = (shared_data / "sets" / "tinystories" / "stories.clean.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{"text": json.loads(line)["text"]} for line in lines[:12]]
    return write_rows(tmp_path_factory.mktemp("data") / "data", rows)


@pytest.fixture(scope="module")
def logits(stories: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, metrics = run_stage("logits", SCORING, {"reference": stories, "data": data}, tmp_path_factory.mktemp("logits"))
    assert metrics["share_of_dump"].value <= 0.1
    assert metrics["stored_bytes"].value <= (out / "logits.bin").stat().st_size
    return out


@pytest.fixture(scope="module", params=["Q8_0", "Q4_0"])
def quantized(request: pytest.FixtureRequest, stories_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp(request.param)
    quantize(stories_gguf, folder / "model.gguf", request.param, threads=2)
    return folder


def test_what_is_stored_gives_the_figures_of_the_full_dump(
    quantized: Path, stories: Path, data: Path, logits: Path, tmp_path: Path
) -> None:
    inputs = {"candidate": quantized, "data": data}
    params = {**FAST, **SCORING}
    _, full = run_stage("evaluate", params, {**inputs, "reference": stories}, tmp_path, name="full")
    out, found = run_stage("evaluate", params, {**inputs, "reference": logits}, tmp_path, name="stored")
    for name in ("kl_divergence", "kl_p99"):
        assert found[name].value == pytest.approx(full[name].value, rel=1e-3)
        assert found[name].interval == pytest.approx(full[name].interval, rel=5e-3)
    for name in ("top1_agreement", "nll", "nll_difference", "bits_per_byte", "bits_per_byte_difference"):
        assert found[name].value == pytest.approx(full[name].value, rel=1e-9)
    evaluation = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    whole = json.loads((tmp_path / "full" / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["reference"] == whole["reference"]


class Passes:
    """Counts the texts that each model reads, by what it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: dict[str, int] = {}
        for kind in (HfBackend, GgufBackend):
            self._count(kind, monkeypatch)

    def _count(self, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        before = kind.logits_of

        def counted(backend: Any, examples: Sequence[Any]) -> Any:
            examples = list(examples)
            name = backend.container
            self.texts[name] = self.texts.get(name, 0) + len(examples)
            return before(backend, examples)

        monkeypatch.setattr(kind, "logits_of", counted)


def test_variants_cost_one_pass_each_and_the_reference_one(
    stories: Path, stories_gguf: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(monkeypatch)
    params = {**FAST, **SCORING}
    stored, _ = run_stage("logits", SCORING, {"reference": stories, "data": data}, tmp_path, name="logits")
    assert passes.texts == {"hf": 12}
    _, own = run_stage("evaluate", params, {"candidate": stories, "data": data, "logits": stored}, tmp_path, name="own")
    assert passes.texts == {"hf": 12}, "the reference is not run again"
    (tmp_path / "gguf").mkdir()
    shutil.copyfile(stories_gguf, tmp_path / "gguf" / "model.gguf")
    for number in range(3):
        inputs = {"candidate": tmp_path / "gguf", "data": data, "reference": stored}
        run_stage("evaluate", params, inputs, tmp_path, name=f"variant{number}")
    assert passes.texts == {"hf": 12, "gguf": 36}
    _, alone = run_stage("evaluate", params, {"candidate": stories, "data": data}, tmp_path, name="alone")
    measured = {"tokens", "documents", "nll", "perplexity", "bits_per_byte", "calibration_error"}
    assert {name: own[name] for name in measured} == {name: alone[name] for name in measured}
    assert set(own) == set(alone)
    assert without_energy(own) == measured_by("evaluate", params, "candidate", "data", "logits")


def without_energy(metrics: Mapping[str, Any]) -> set[str]:
    return {name for name in metrics if "energy" not in name}


def measured_by(kind: str, params: dict[str, Any], *roles: str) -> set[str]:
    """What it says that it will measure, but for energy, which few machines tell."""
    return {name for name in stage_of(kind, params).measured(frozenset(roles)) if "energy" not in name}


def test_what_is_said_to_be_measured_is_measured(stories: Path, data: Path, logits: Path, tmp_path: Path) -> None:
    params = {**FAST, **SCORING}
    inputs = {"candidate": stories, "data": data, "reference": logits}
    _, found = run_stage("evaluate", params, inputs, tmp_path, name="against")
    assert without_energy(found) == measured_by("evaluate", params, *inputs)
    _, made = run_stage("logits", SCORING, {"reference": stories, "data": data}, tmp_path, name="logits")
    assert set(made) == measured_by("logits", SCORING, "reference", "data")
    assert "worst_kl_divergence" not in measured_by("report", {}, "data", "candidates")
    assert "worst_kl_divergence" in measured_by("report", {}, "data", "candidates", "reference")


def test_a_reference_and_logits_of_its_own_do_not_go_together() -> None:
    stage = stage_of("evaluate", FAST)
    assert [name for name, _ in stage.misfits(frozenset({"candidate", "data", "reference", "logits"}))] == ["logits"]
    assert list(stage.misfits(frozenset({"candidate", "data", "logits"}))) == []


def test_a_model_does_not_diverge_from_its_own_logits(stories: Path, data: Path, logits: Path, tmp_path: Path) -> None:
    inputs = {"candidate": stories, "data": data, "reference": logits}
    _, metrics = run_stage("evaluate", {**FAST, **SCORING}, inputs, tmp_path)
    assert metrics["kl_divergence"].value == metrics["kl_p99"].value == metrics["nll_difference"].value == 0
    assert metrics["bits_per_byte_difference"].value == 0
    assert metrics["top1_agreement"].value == 1


def test_the_same_bytes_again(stories: Path, data: Path, logits: Path, tmp_path: Path) -> None:
    again, _ = run_stage("logits", SCORING, {"reference": stories, "data": data}, tmp_path)
    for name in ("logits.bin", "units.jsonl", "logits.json"):
        assert (again / name).read_bytes() == (logits / name).read_bytes()


@pytest.mark.parametrize("change", [{"max_length": 64}, {"documents": 11}])
def test_logits_of_other_settings_are_refused(
    change: dict[str, Any], stories: Path, data: Path, logits: Path, tmp_path: Path
) -> None:
    inputs = {"candidate": stories, "data": data, "reference": logits}
    with pytest.raises(RefusedInput, match="not made of this text") as refused:
        run_stage("evaluate", {**FAST, **SCORING, **change}, inputs, tmp_path)
    assert refused.value.code == "E-EVAL-LOGITS"
    assert refused.value.facts[0].startswith("settings")


def test_logits_of_other_data_or_another_model_are_refused(
    stories: Path, data: Path, logits: Path, quantized: Path, tmp_path: Path
) -> None:
    other = write_rows(tmp_path / "other", [{"text": "Once upon a time there was a cat."}] * 12)
    for number, (role, candidate, rows) in enumerate(
        [("reference", stories, other), ("logits", stories, other), ("logits", quantized, data)]
    ):
        inputs = {"candidate": candidate, "data": rows, role: logits}
        with pytest.raises(RefusedInput) as refused:
            run_stage("evaluate", {**FAST, **SCORING}, inputs, tmp_path, name=f"out{number}")
        assert refused.value.code == "E-EVAL-LOGITS"


def _damage(name: str, folder: Path) -> None:
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if name != "logits.json" else b"{}")


@pytest.mark.parametrize("name", ["logits.bin", "units.jsonl", "logits.json"])
def test_damaged_logits_are_refused(name: str, stories: Path, data: Path, logits: Path, tmp_path: Path) -> None:
    shutil.copytree(logits, tmp_path / "bad")
    for path in (tmp_path / "bad").iterdir():
        path.chmod(0o644)
    _damage(name, tmp_path / "bad")
    inputs = {"candidate": stories, "data": data, "reference": tmp_path / "bad"}
    if name == "logits.json":  # without a sound one it is a folder like any other
        inputs = {"candidate": stories, "data": data, "logits": tmp_path / "bad"}
    with pytest.raises(RefusedInput) as refused:
        run_stage("evaluate", {**FAST, **SCORING}, inputs, tmp_path)
    assert refused.value.code == "E-LOGITS-FORMAT"


@pytest.mark.parametrize("width", [3, 700, 20_000])
@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_a_frame_gives_the_divergence_of_the_full_rows(width: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(7)
    log_p = (torch.randn(40, width, generator=generator) * spread).log_softmax(-1)
    log_q = (log_p + torch.randn(40, width, generator=generator) * 0.1).log_softmax(-1)
    frame = codec.decode(codec.encode(log_p), width)
    assert (frame.divergence(log_p) == 0).all()
    assert (frame.top == log_p.argmax(-1).numpy()).all()
    exact = (log_p.double().exp() * (log_p.double() - log_q.double())).sum(-1).numpy()
    assert frame.divergence(log_q).mean() == pytest.approx(exact.mean(), rel=5e-3, abs=1e-7)
    assert frame.share.double().sum(-1).numpy() == pytest.approx(np.ones(40), rel=1e-5)


def test_frames_do_not_grow_beyond_a_tenth() -> None:
    """Whatever the spread of a large vocabulary's logits, the floor gives way."""
    generator = torch.Generator().manual_seed(7)
    for spread in (0.5, 2.0, 6.0):
        log_p = (torch.randn(64, 32_000, generator=generator) * spread).log_softmax(-1)
        assert len(codec.encode(log_p)) <= 0.1 * 4 * log_p.numel()
