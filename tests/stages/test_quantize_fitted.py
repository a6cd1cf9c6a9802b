"""``quantize`` by GPTQ and AWQ, on a machine without an accelerator: better than rounding to nearest, and proved."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ingot.core.stage import Done
from ingot.errors import RefusedInput, StageFailed
from ingot.kit import hf
from ingot.kit.quant import calibrated
from ingot.kit.quant.plain import iter_plain_tensors
from stagekit import run_done, run_stage
from tinymodels import chat_model, dataset, state

pytestmark = pytest.mark.filterwarnings("ignore")  # llm-compressor's and torch.fx's own

FIT: dict[str, Any] = {"scheme": "W4A16", "documents": 6, "max_length": 48, "device": "cpu"}


@pytest.fixture(scope="module")
def model(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(stories, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("rows") / "rows")


@pytest.fixture(scope="module")
def built(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Done]]:
    """The same model by each method."""
    folder, found = tmp_path_factory.mktemp("built"), {}
    for method in ("rtn", "gptq", "awq"):
        done = run_done(
            "quantize", {**FIT, "method": method}, {"model": model, "calibration": rows}, folder, name=method
        )
        found[method] = folder / method, done
    return found


def logits(folder: Path, rows: Path) -> torch.Tensor:
    """The logits of the held-out rows of the data set, fp32."""
    from ingot.kit import chat

    model, tokenizer = hf.load_model(folder, "float32"), hf.load_tokenizer(folder)
    held_out = [chat.encode(tokenizer, row, max_length=48).ids for row in chat.read_rows(rows, "eval")]
    return torch.cat([calibrated.logits(model, ids)[0] for ids in held_out])


def divergence(found: torch.Tensor, wanted: torch.Tensor) -> float:
    parts = torch.nn.functional.kl_div(found.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="none")
    return float(parts.sum(-1).mean())


def test_fitted_weights_are_closer_to_the_model_than_rounded_ones(
    built: dict[str, tuple[Path, Done]], model: Path, rows: Path
) -> None:
    wanted = logits(model, rows)
    found = {method: divergence(logits(folder, rows), wanted) for method, (folder, _) in built.items()}
    assert found["gptq"] < 0.6 * found["rtn"], found
    assert found["awq"] < 0.95 * found["rtn"], found
    sizes = {done.metrics["weight_bytes"].value for _, done in built.values()}
    assert len(sizes) == 1


def test_it_tells_what_it_was_fitted_to_and_where(built: dict[str, tuple[Path, Done]]) -> None:
    for method in ("gptq", "awq"):
        _, done = built[method]
        assert done.notes == {"method": method, "device": "cpu", "dtype": "float32"}
        assert done.metrics["calibration_documents"].value == 6
        assert done.metrics["reload_difference"].value <= 1e-4 * 100
        assert done.metrics["reloaded_weights"].value == 35
    assert built["awq"][1].metrics["smoothing_difference"].value < 1e-3
    assert "max_error_steps" not in built["gptq"][1].metrics
    worse, best = (built[method][1].metrics["relative_error"].value for method in ("gptq", "rtn"))
    assert worse > best  # a weight is further from its own value, and the layer's output closer


def test_the_error_told_is_that_of_the_written_weights(built: dict[str, tuple[Path, Done]], model: Path) -> None:
    folder, done = built["gptq"]
    before = state(model)
    error = weight = 0.0
    for name, tensor in iter_plain_tensors(folder):
        if "_proj" in name:
            error += float((tensor.double() - before[name].double()).square().sum())
            weight += float(before[name].double().square().sum())
    assert done.metrics["relative_error"].value == pytest.approx(math.sqrt(error / weight))


def test_factors_change_weights_and_norms_but_not_what_is_computed(model: Path, rows: Path) -> None:
    """AWQ before anything is rounded: other weights, the same function."""
    from ingot.kit import chat, oneshot
    from ingot.kit.quant.scheme import Scheme
    from stagekit import Recorder

    tokenizer = hf.load_tokenizer(model)
    texts = [chat.encode(tokenizer, row, max_length=48).ids for row in chat.read_rows(rows, "train")][:4]
    before = hf.load_model(model, "float32")
    schemes = dict.fromkeys((n for n, m in before.named_modules() if n.endswith("_proj")), Scheme("W4A16"))
    to = calibrated.Texts(texts, oneshot.Settings(torch.device("cpu"), 2), Recorder())
    fitted = calibrated.fit(model, schemes, calibrated.Fit("awq"), to)
    new, old = fitted.model.state_dict(), before.state_dict()
    changed = {name for name in old if not new[name].equal(old[name])}
    assert any(name.endswith("layernorm.weight") for name in changed)
    assert any(name.endswith("_proj.weight") for name in changed)
    assert "model.embed_tokens.weight" not in changed
    wanted, found = (calibrated.logits(one, texts[-1]) for one in (before, fitted.model))
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert fitted.smoothing is not None
    assert fitted.smoothing[0] <= 1e-4 * fitted.smoothing[1]


def test_factors_that_change_the_model_are_found(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = calibrated._plain

    def wrong(found: Any, schemes: Any) -> None:
        right(found, schemes)
        found.model.layers[0].input_layernorm.weight.data[5] *= 1.1

    monkeypatch.setattr(calibrated, "_plain", wrong)
    with pytest.raises(StageFailed) as caught:
        run_stage("quantize", {**FIT, "documents": 1, "method": "awq"}, {"model": model, "calibration": rows}, tmp_path)
    assert caught.value.code == "E-QUANTIZE-AWQ"
    assert list((tmp_path / "out").iterdir()) == []


def test_what_awq_stumbles_over_without_an_accelerator_is_put_back() -> None:
    from llmcompressor.pipelines.cache import IntermediatesCache

    before = IntermediatesCache.pin_memory
    with calibrated._unpinned():
        assert (IntermediatesCache.pin_memory is before) == torch.accelerator.is_available()
    assert IntermediatesCache.pin_memory is before


def test_mixed_schemes_and_embeddings_go_with_gptq(model: Path, rows: Path, tmp_path: Path) -> None:
    """Packed layers are fitted, floats and embeddings rounded; on bfloat16 weights, asymmetric."""
    half, _ = run_stage("convert", {"dtype": "bfloat16"}, {"model": model}, tmp_path, name="half")
    params = {
        **FIT, "method": "gptq", "documents": 2, "group_size": 4, "symmetric": False, "act_order": False,
        "overrides": [
            {"modules": ["down_proj"], "scheme": "W8A16"}, {"modules": ["o_proj"], "scheme": "FP8"},
            {"modules": ["embed_tokens"], "scheme": "W8A16"}, {"modules": ["up_proj"], "scheme": "W8A8"},
        ],
    }  # fmt: skip
    done = run_done("quantize", params, {"model": half, "calibration": rows}, tmp_path)
    told = {name: done.metrics[f"layers_{name}"].value for name in ("w4a16", "w8a16", "fp8", "w8a8")}
    assert told == {"w4a16": 20, "w8a16": 6, "fp8": 5, "w8a8": 5}


def test_modules_that_are_only_rounded_stand_beside_fitted_ones(model: Path, rows: Path, tmp_path: Path) -> None:
    """The docs' own example. The proof takes the rounding of a cast for what was meant, not for a fault."""
    params = {
        **FIT, "method": "gptq", "documents": 2, "group_size": 4,
        "overrides": [
            {"modules": ["*.layers.0.*"], "scheme": "BF16"}, {"modules": ["down_proj"], "scheme": "W8A16"},
            {"modules": ["embed_tokens"], "scheme": "FP16"},
        ],
    }  # fmt: skip
    done = run_done("quantize", params, {"model": model, "calibration": rows}, tmp_path)
    told = {name: done.metrics[f"layers_{name}"].value for name in ("w4a16", "w8a16", "bf16", "fp16")}
    assert told == {"w4a16": 24, "w8a16": 4, "bf16": 7, "fp16": 1}
    written = state(tmp_path / "out")["model.layers.0.mlp.up_proj.weight"]
    assert written.equal(state(model)["model.layers.0.mlp.up_proj.weight"].to(torch.bfloat16))


def test_the_same_documents_give_the_same_bytes(
    built: dict[str, tuple[Path, Done]], model: Path, rows: Path, tmp_path: Path
) -> None:
    again, _ = run_stage("quantize", {**FIT, "method": "gptq"}, {"model": model, "calibration": rows}, tmp_path)
    name = "model.safetensors"
    assert (again / name).read_bytes() == (built["gptq"][0] / name).read_bytes()


def refusals() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"method": "gptq"}, "E-DATASET-EMPTY"
    if not torch.cuda.is_available():
        yield {"method": "awq", "device": "cuda"}, "E-DEVICE"


@pytest.mark.parametrize(("params", "code"), list(refusals()))
def test_nothing_to_look_at_and_no_device_are_refused(
    model: Path, tmp_path: Path, params: dict[str, Any], code: str
) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    (nothing / "train.jsonl").write_text("")
    with pytest.raises(RefusedInput) as caught:
        run_stage("quantize", {**FIT, **params}, {"model": model, "calibration": nothing}, tmp_path)
    assert caught.value.code == code
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_in_16_bits_loads_as_it_was_in_memory(model: Path, rows: Path, tmp_path: Path) -> None:
    """Rotary frequencies are no weights: rounding them with the weights would make the comparison fail."""
    run_stage("convert", {"to": "hf", "dtype": "bfloat16"}, {"model": model}, tmp_path, name="half")
    inputs = {"model": tmp_path / "half", "calibration": rows}
    done = run_done("quantize", {**FIT, "documents": 2, "method": "gptq"}, inputs, tmp_path, name="gptq")
    assert done.notes["dtype"] == "bfloat16"
    assert done.metrics["reload_difference"].value <= 1e-3
