from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ingot.errors import RefusedInput, StageFailed
from ingot.kit import compressed, hf
from stagekit import run_stage
from tinymodels import llama, logits, save, state

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [None, 16])
def test_every_weight_reads_back_within_half_a_step(tmp_path: Path, dtype: torch.dtype, group: int | None) -> None:
    base = save(llama(), tmp_path / "base", dtype)
    params = {} if group is None else {"group_size": group}
    out, metrics = run_stage("quantize", params, {"model": base}, tmp_path)
    before, raw, plain = state(base), state(out), dict(compressed.iter_plain_tensors(out))
    assert set(plain) == set(before)
    worst = 0.0
    for name, weight in before.items():
        if "_proj" not in name:
            assert raw[name].equal(weight)
            continue
        module = name.removesuffix(".weight")
        scale = raw[f"{module}.weight_scale"].float().repeat_interleave(group or weight.shape[1], dim=1)
        whole = (plain[name].double() / scale.double()).round()
        assert whole.abs().max() <= 127
        assert ((whole * scale.double() - weight.double()).abs() <= scale * 0.5000001).all()
        worst = max(worst, float(((plain[name].float() - weight.float()).abs() / scale).max()))
    assert metrics["max_error_steps"].value == pytest.approx(worst)
    assert metrics["weight_bytes"].value == (out / "model.safetensors").stat().st_size
    assert metrics["quantized_layers"].value == 14
    assert 0 < metrics["relative_error"].value < 0.02


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_it_and_computes_with_the_dequantized_weights(tmp_path: Path, *, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    base = save(llama(tie_word_embeddings=tied), tmp_path / "base")
    out, _ = run_stage("quantize", {}, {"model": base}, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager")
    expected = llama(tie_word_embeddings=tied)
    expected.load_state_dict(dict(compressed.dequantize_model(out)), strict=not tied)
    assert (logits(loaded) - logits(expected)).abs().max() <= 1e-5
    assert (logits(hf.load_model(out)) - logits(expected)).abs().max() <= 1e-5
    original = logits(hf.load_model(base))
    assert 0 < (logits(loaded) - original).abs().max() < 0.05 * original.abs().max()


def test_packing_is_that_of_the_library() -> None:
    from compressed_tensors.compressors.pack_quantized import pack_to_int32

    torch.manual_seed(0)
    for columns in (32, 12, 7, 64):
        values = torch.randint(-128, 128, (5, columns), dtype=torch.int8)
        assert compressed.pack(values).equal(pack_to_int32(values, 8))


def test_scales_never_clip_and_zeros_stay_zero() -> None:
    torch.manual_seed(0)
    weight = (torch.randn(64, 16) * torch.logspace(-6, 3, 64)[:, None]).to(torch.bfloat16)
    weight[3] = 0
    scale = compressed.scales_of(weight, None)
    assert (scale.double() * 127 >= weight.double().abs().amax(dim=1, keepdim=True)).all()
    below = torch.nextafter(scale, torch.zeros_like(scale))
    tight = below.double() * 127 < weight.double().abs().amax(dim=1, keepdim=True)
    assert tight[weight.abs().amax(dim=1) > 0].all()
    assert not compressed.quantize(weight, scale, None)[3].any()
    weight[5, 5] = torch.inf
    with pytest.raises(RefusedInput, match="finite"):
        compressed.scales_of(weight, None)


def test_a_group_size_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    base = save(llama(), tmp_path / "base")
    with pytest.raises(RefusedInput) as caught:
        run_stage("quantize", {"group_size": 20}, {"model": base}, tmp_path)
    assert caught.value.code == "E-QUANTIZE-SHAPE"


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    base = save(llama(), tmp_path / "base")
    once, _ = run_stage("quantize", {}, {"model": base}, tmp_path, name="once")
    with pytest.raises(RefusedInput) as caught:
        run_stage("quantize", {}, {"model": once}, tmp_path, name="twice")
    assert caught.value.code == "E-QUANTIZED"


@pytest.mark.parametrize("part", ["scales_of", "quantize", "pack"])
def test_what_is_packed_wrong_is_found_on_decoding_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    base = save(llama(), tmp_path / "base")
    right = getattr(compressed, part)

    def wrong(*given: Any) -> torch.Tensor:
        result: torch.Tensor = right(*given)
        if part == "scales_of":
            return result * 0.5
        result[0, 0] += 1 << (12 if part == "pack" else 2)
        return result

    monkeypatch.setattr(compressed, part, wrong)
    with pytest.raises(StageFailed) as caught:
        run_stage("quantize", {}, {"model": base}, tmp_path)
    assert caught.value.code == "E-QUANTIZE-VERIFY"


def test_plain_folders_are_read_as_they_are(tmp_path: Path) -> None:
    base = save(llama(), tmp_path / "base")
    assert {n: t.sum() for n, t in compressed.iter_plain_tensors(base)} == {n: t.sum() for n, t in state(base).items()}
    with pytest.raises(RefusedInput, match="not a compressed-tensors"):
        next(compressed.dequantize_model(base))


def test_a_format_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    base = save(llama(), tmp_path / "base")
    out, _ = run_stage("quantize", {}, {"model": base}, tmp_path)
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["format"] = "nvfp4-pack-quantized"
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(RefusedInput, match="pack-quantized"):
        next(compressed.dequantize_model(out))
