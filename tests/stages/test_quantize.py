"""``quantize`` by rounding to nearest: what it writes, what transformers makes of it, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ingot.errors import IngotError, RefusedInput, StageFailed
from ingot.kit import hf
from ingot.kit.quant import numbers, reload
from ingot.kit.quant.choose import Choice
from ingot.kit.quant.plain import PlainSource, iter_plain_tensors
from ingot.kit.quant.rounding import Rounding
from ingot.kit.quant.scheme import Scheme
from stagekit import run_done, run_stage, stage_of
from tinymodels import llama, logits, save, state

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:You passed `quantization_config`:UserWarning"
)
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 8}
MIXED: dict[str, Any] = {
    "scheme": "W4A16",
    "group_size": 16,
    "overrides": [
        {"modules": ["down_proj"], "scheme": "W8A16"},
        {"modules": ["*.layers.0.self_attn.*"], "scheme": "FP8"},
        {"modules": ["embed_tokens"], "scheme": "W8A16", "symmetric": False},
        {"modules": ["*.layers.1.self_attn.v_proj"], "scheme": "W8A8"},
    ],
}
EVERY: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, "W8A16"),
    ({"symmetric": False}, "W8A16"),
    ({"scheme": "W4A16"}, "W4A16"),
    ({"scheme": "W4A16", "group_size": 16, "symmetric": False}, "W4A16"),
    ({"scheme": "W8A8"}, "W8A8"),
    ({"scheme": "FP8"}, "FP8"),
    ({"scheme": "NF4"}, "NF4"),
    ({"scheme": "INT8"}, "INT8"),
    (MIXED, "FP8+W4A16+W8A16+W8A8"),
)


def refused(params: Mapping[str, Any], base: Path, tmp_path: Path, name: str = "out") -> IngotError:
    with pytest.raises(IngotError) as caught:
        run_stage("quantize", dict(params), {"model": base}, tmp_path, name=name)
    assert not (tmp_path / name / "config.json").exists() or isinstance(caught.value, StageFailed)
    return caught.value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [None, 16])
def test_every_weight_reads_back_within_half_a_step(tmp_path: Path, dtype: torch.dtype, group: int | None) -> None:
    base = save(llama(), tmp_path / "base", dtype)
    params = {} if group is None else {"group_size": group}
    out, metrics = run_stage("quantize", params, {"model": base}, tmp_path)
    before, raw, plain = state(base), state(out), dict(iter_plain_tensors(out))
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
    assert metrics["quantized_layers"].value == metrics["layers_w8a16"].value == 14
    assert 0 < metrics["relative_error"].value < 0.02


@pytest.mark.parametrize(("params", "precision"), EVERY, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_every_scheme_as_what_was_meant(
    tmp_path: Path, params: dict[str, Any], precision: str, *, tied: bool
) -> None:
    """Read by transformers, by our own reader, and by the evaluation: the same weights; close to the model's own."""
    from ingot.kit.backends.hf import precision as told

    changes = {"tie_word_embeddings": tied, **(WIDE if params.get("scheme") == "NF4" else {})}
    base = save(llama(**changes), tmp_path / "base", torch.bfloat16)
    out, metrics = run_stage("quantize", params, {"model": base}, tmp_path)
    assert told(out, hf.read_config(out)) == precision
    loaded, plain, before = hf.load_model(out), dict(iter_plain_tensors(out)), state(base)
    apart = tied and params is MIXED
    assert set(plain) - set(before) == ({"lm_head.weight"} if apart else set())
    kept = {name: tensor for name, tensor in loaded.state_dict().items() if name in plain}
    assert all(kept[name].equal(tensor) for name, tensor in plain.items())
    assert all(plain[name].dtype == tensor.dtype for name, tensor in before.items())
    original, found = logits(hf.load_model(base)), logits(loaded)
    assert 0 < (found - original).abs().max() < 0.6 * original.abs().max()
    assert metrics["reload_difference"].value <= 1e-4
    assert metrics["reloaded_weights"].value == metrics["quantized_layers"].value


@pytest.mark.parametrize("scheme", ["W8A8", "FP8"])
def test_inputs_are_rounded_while_it_runs(tmp_path: Path, scheme: str) -> None:
    """What transformers computes is not what the plain weights compute, and is what the reference of the proof does."""
    base = save(llama(), tmp_path / "base")
    out, _ = run_stage("quantize", {"scheme": scheme}, {"model": base}, tmp_path)
    plain = llama()
    plain.load_state_dict(dict(iter_plain_tensors(out)))
    found, without = logits(hf.load_model(out)), logits(plain)
    assert (found - without).abs().max() > 1e-4 * without.abs().max()
    with reload._inputs_rounded(plain, dict.fromkeys((f"model.layers.{n}.{m}" for n in (0, 1) for m in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
        "mlp.down_proj",
    )), Scheme(scheme))):  # fmt: skip
        assert (found - logits(plain)).abs().max() < 1e-5 * without.abs().max()


@pytest.mark.parametrize(("scheme", "dtype"), [("FP16", torch.float16), ("BF16", torch.bfloat16)])
def test_a_cast_rounds_every_weight_once(tmp_path: Path, scheme: str, dtype: torch.dtype) -> None:
    base = save(llama(), tmp_path / "base")
    out, metrics = run_stage("quantize", {"scheme": scheme}, {"model": base}, tmp_path)
    assert all(tensor.equal(state(base)[name].to(dtype)) for name, tensor in state(out).items())
    assert "quantization_config" not in hf.read_config(out)
    assert "quantized_layers" not in metrics
    assert metrics["relative_error"].value > 0


def test_embeddings_of_one_byte_and_the_rest_half(tmp_path: Path) -> None:
    """A tied model is written untied: each of the two gets what its name says."""
    params = {"scheme": "FP16", "overrides": [{"modules": ["embed_tokens", "lm_head"], "scheme": "W8A16"}]}
    base = save(llama(tie_word_embeddings=True), tmp_path / "base")
    out, metrics = run_stage("quantize", params, {"model": base}, tmp_path)
    raw = state(out)
    assert raw["model.embed_tokens.weight"].dtype == torch.int8
    assert raw["lm_head.weight_packed"].dtype == torch.int32
    assert raw["model.layers.0.mlp.up_proj.weight"].dtype == torch.float16
    assert hf.read_config(out)["tie_word_embeddings"] is False
    assert {name: metrics[f"layers_{name}"].value for name in ("fp16", "w8a16")} == {"fp16": 14, "w8a16": 2}
    plain = dict(iter_plain_tensors(out))
    assert plain["lm_head.weight"].equal(plain["model.embed_tokens.weight"])


def test_an_output_embedding_without_weights_of_its_own_is_not_passed_over(tmp_path: Path) -> None:
    params = {"overrides": [{"modules": ["lm_head"], "scheme": "W8A16"}]}
    error = refused(params, save(llama(tie_word_embeddings=True), tmp_path / "base"), tmp_path)
    assert error.code == "E-QUANTIZE-MODULES"
    assert "embed_tokens" in error.what
    run_stage("quantize", params, {"model": save(llama(), tmp_path / "apart")}, tmp_path, name="apart-out")


def test_a_weight_beyond_half_precision_is_refused(tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 3] = 1e5
    base = save(model, tmp_path / "base")
    assert refused({"scheme": "FP16"}, base, tmp_path).code == "E-DTYPE-RANGE"
    assert refused({"scheme": "INT8"}, base, tmp_path, "int8").code == "E-DTYPE-RANGE"


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_is_that_of_the_library(bits: int) -> None:
    from compressed_tensors.compressors.pack_quantized import pack_to_int32

    torch.manual_seed(0)
    most = 1 << (bits - 1)
    for rows, columns in ((5, 32), (8, 12), (13, 7), (3, 64)):
        values = torch.randint(-most, most, (rows, columns), dtype=torch.int8)
        assert numbers.pack(values, bits).equal(pack_to_int32(values, bits))
        assert numbers.pack_zeros(values, bits).equal(pack_to_int32(values, bits, packed_dim=0))


@pytest.mark.parametrize("scheme", [Scheme("W8A16"), Scheme("W4A16"), Scheme("W4A16", 8, symmetric=False)], ids=str)
def test_scales_never_clip_and_zeros_stay_zero(scheme: Scheme) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(64, 16) * torch.logspace(-6, 3, 64)[:, None]).to(torch.bfloat16)
    weight[3] = 0
    scale, zero = numbers.scales_of(weight, scheme)
    values = numbers.quantize(weight, scale, zero, scheme).float()
    step = numbers.spread(scale, 16)
    back = (values - (0 if zero is None else zero.float().repeat_interleave(16 // zero.shape[1], dim=1))) * step
    assert ((back.double() - weight.double()).abs() <= step * 0.5000001).all()
    assert not back[3].any()
    tight = numbers.quantize(weight, torch.nextafter(scale, torch.zeros_like(scale)), zero, scheme)
    assert tight.shape == weight.shape
    weight[5, 5] = torch.inf
    with pytest.raises(RefusedInput, match="finite"):
        numbers.scales_of(weight, scheme)


def test_the_library_rounds_to_the_same_integers() -> None:
    from compressed_tensors.compressors import BaseCompressor

    from ingot.kit.quant.library import library_scheme

    torch.manual_seed(0)
    weight = torch.randn(24, 32)
    for scheme in (Scheme("W8A16"), Scheme("W4A16", 8), Scheme("W8A8"), Scheme("FP8"), Scheme("W4A16", 8, False)):
        made = numbers.rounded(weight, scheme, torch.float32, None)
        parts = {"weight": weight, "weight_scale": made.scale}
        parts |= {} if made.zero is None else {"weight_zero_point": made.zero}
        theirs = BaseCompressor.get_value_from_registry(scheme.format).compress(
            parts, library_scheme(scheme.group(["Linear"]))
        )
        if not scheme.packed:
            assert theirs["weight"].float().equal(made.values.float())
        elif made.zero is None:  # with a zero point they round after adding it: ties go to the other side
            assert theirs["weight_packed"].equal(numbers.pack(made.values, scheme.bits))
        else:
            assert theirs["weight_zero_point"].equal(numbers.pack_zeros(made.zero, scheme.bits))


def test_a_group_size_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    base = save(llama(), tmp_path / "base")
    error = refused({"group_size": 20}, base, tmp_path)
    assert error.code == "E-QUANTIZE-SHAPE"
    assert any("mlp.down_proj" in fact for fact in error.facts)


def test_four_bit_rows_that_the_library_reads_wrong_are_refused(tmp_path: Path) -> None:
    """bitsandbytes 0.50's kernel for a CPU; a library that reads them right is believed."""
    from ingot.kit.quant.bnb import dequantized, library

    lib = library()
    codes, made = lib.quantize_4bit(torch.randn(32, 48), blocksize=64, compress_statistics=False, quant_type="nf4")
    base = save(llama(), tmp_path / "base")
    if dequantized(codes, made).equal(lib.dequantize_4bit(codes, made)):
        run_stage("quantize", {"scheme": "NF4"}, {"model": base}, tmp_path)
    else:
        assert refused({"scheme": "NF4"}, base, tmp_path).code == "E-QUANTIZE-SHAPE"


@pytest.mark.parametrize(
    "params",
    [
        {"ignore": ["no_proj"]},
        {"overrides": [{"modules": ["*.attention.*"], "scheme": "FP8"}]},
        {"overrides": [{"modules": ["embed_tokens"], "scheme": "W4A16"}]},
        {"ignore": ["*"]},
    ],
)
def test_patterns_that_mean_nothing_are_refused(tmp_path: Path, params: dict[str, Any]) -> None:
    error = refused(params, save(llama(), tmp_path / "base"), tmp_path)
    assert error.code == "E-QUANTIZE-MODULES"
    if "no_proj" in str(error):
        assert "q_proj" in error.facts[0]


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    base = save(llama(), tmp_path / "base")
    once, _ = run_stage("quantize", {}, {"model": base}, tmp_path, name="once")
    assert refused({}, once, tmp_path, "twice").code == "E-QUANTIZED"


@pytest.mark.parametrize("part", ["scales_of", "quantize", "pack"])
def test_what_is_packed_wrong_is_found_on_decoding_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    base = save(llama(), tmp_path / "base")
    right = getattr(numbers, part)

    def wrong(*given: Any) -> Any:
        result = right(*given)
        if part == "scales_of":
            return result[0] * 0.5, result[1]
        result[0, 0] += 1 << (12 if part == "pack" else 2)
        return result

    monkeypatch.setattr(numbers, part, wrong)
    assert refused({}, base, tmp_path).code == "E-QUANTIZE-VERIFY"


@pytest.mark.parametrize("whole", [1 << 30, 0], ids=["whole", "by weight"])
@pytest.mark.parametrize("scheme", ["W4A16", "W8A8", "INT8"])
def test_a_wrong_scale_in_the_file_is_found_on_loading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int, scheme: str
) -> None:
    """The scale of one row of one weight, wrong after it was compared: written as half of what was meant."""
    monkeypatch.setattr(reload, "WHOLE", whole)
    base = save(llama(), tmp_path / "base")
    run_stage("quantize", {"scheme": scheme}, {"model": base}, tmp_path, name="right")
    sink = pytest.importorskip("ingot.kit.stream.safetensors_sink").SafetensorsSink
    right = sink.encode
    ending = "0.mlp.up_proj.SCB" if scheme == "INT8" else "0.mlp.up_proj.weight_scale"

    def wrong(self: Any, block: Any) -> Any:
        if self._slots[block.index].name.endswith(ending):
            rows = block.rows.clone()
            rows[3] *= 0.5
            block = replace(block, rows=rows)
        return right(self, block)

    monkeypatch.setattr(sink, "encode", wrong)
    assert refused({"scheme": scheme}, base, tmp_path).code == "E-QUANTIZE-RELOAD"


@pytest.mark.parametrize("whole", [1 << 30, 0], ids=["whole", "by weight"])
def test_a_config_that_says_something_else_is_found_on_loading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    monkeypatch.setattr(reload, "WHOLE", whole)
    right = Choice.config

    def wrong(self: Choice) -> dict[str, Any] | None:
        found = right(self)
        assert found is not None
        return {**found, "ignore": []}

    monkeypatch.setattr(Choice, "config", wrong)
    assert refused({}, save(llama(), tmp_path / "base"), tmp_path).code == "E-QUANTIZE-RELOAD"


def test_other_logits_are_found_on_loading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that is not quantized, written as another: no scale is wrong, only the logits are."""
    right = Rounding._cast

    def wrong(self: Rounding, slot: Any, *more: Any) -> Any:
        route = right(self, slot, *more)
        return replace(route, apply=lambda rows, _start: rows * 2) if slot.name == "model.norm.weight" else route

    reference = llama()
    monkeypatch.setattr(Rounding, "_cast", wrong)
    monkeypatch.setattr(reload, "_rebuilt", lambda _folder, _meant: reference)
    assert refused({}, save(llama(), tmp_path / "base"), tmp_path).code == "E-QUANTIZE-RELOAD"


@pytest.mark.parametrize("params", [MIXED, {"scheme": "NF4"}, {"scheme": "FP16"}], ids=["mixed", "NF4", "FP16"])
def test_a_large_model_is_proved_weight_by_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: dict[str, Any]
) -> None:
    monkeypatch.setattr(reload, "WHOLE", 0)
    base = save(llama(tie_word_embeddings=True, **WIDE), tmp_path / "base")
    done = run_done("quantize", params, {"model": base}, tmp_path)
    assert "reload_difference" not in done.metrics
    quantized = done.metrics.get("quantized_layers")
    assert done.metrics["reloaded_weights"].value == (quantized.value if quantized else 0)


def test_bytes_do_not_depend_on_the_height_of_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save(llama(), tmp_path / "base", torch.bfloat16)
    params = {**MIXED, "symmetric": False}
    out, _ = run_stage("quantize", params, {"model": base}, tmp_path, name="one")
    monkeypatch.setattr("ingot.kit.stream.chain.TILE_ROWS", 4)
    again, _ = run_stage("quantize", params, {"model": base}, tmp_path, name="two")
    assert (out / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("params", "roles", "where"),
    [
        ({"method": "gptq"}, {"model"}, "calibration"),
        ({"method": "awq", "scheme": "W4A16"}, {"model"}, "calibration"),
        ({"method": "gptq", "scheme": "NF4"}, {"model", "calibration"}, "method"),
        ({"method": "awq", "scheme": "W8A8"}, {"model", "calibration"}, "method"),
        ({"method": "gptq", "symmetric": False}, {"model", "calibration"}, "symmetric"),
        ({"scheme": "NF4", "overrides": [{"modules": ["q_proj"], "scheme": "W8A16"}]}, {"model"}, "overrides"),
    ],
)
def test_what_does_not_go_together_is_told_when_the_spec_is_read(
    params: dict[str, Any], roles: set[str], where: str
) -> None:
    assert [name for name, _ in stage_of("quantize", params).misfits(frozenset(roles))] == [where]


def test_group_size_is_about_integers_alone() -> None:
    with pytest.raises(ValueError, match="not about NF4"):
        stage_of("quantize", {"scheme": "NF4", "group_size": 64})


def test_tools_are_those_that_make_the_bytes() -> None:
    def used(**params: Any) -> set[str]:
        return set(stage_of("quantize", params).tools_used())

    assert used() == {"compressed-tensors", "torch", "transformers"}
    assert used(scheme="BF16") == {"torch", "transformers"}
    assert used(scheme="NF4") == {"bitsandbytes", "torch", "transformers"}
    assert used(scheme="W4A16", method="awq") >= {"llmcompressor", "compressed-tensors", "tokenizers"}
    assert stage_of("quantize", {"method": "gptq"}).reproduces() == "device_dependent"
    assert stage_of("quantize", {"method": "gptq", "device": "cpu"}).reproduces() == "deterministic"
    assert not stage_of("quantize", {"method": "gptq"}).windowed()
    assert stage_of("quantize", {"scheme": "NF4"}).windowed()


def test_plain_folders_are_read_as_they_are(tmp_path: Path) -> None:
    base = save(llama(), tmp_path / "base")
    assert {n: t.sum() for n, t in iter_plain_tensors(base)} == {n: t.sum() for n, t in state(base).items()}
    with pytest.raises(RefusedInput, match="not known"):
        PlainSource(base)


def test_a_format_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    base = save(llama(), tmp_path / "base")
    out, _ = run_stage("quantize", {}, {"model": base}, tmp_path)
    config = json.loads((out / "config.json").read_text())
    group = config["quantization_config"]["config_groups"]["group_0"]
    group["format"] = "nvfp4-pack-quantized"
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(RefusedInput, match="plain weights"):
        next(iter_plain_tensors(out))
    config["quantization_config"] = {"quant_method": "gptq"}
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(RefusedInput, match="not known"):
        next(iter_plain_tensors(out))


@pytest.mark.parametrize(("params", "precision"), EVERY, ids=lambda value: value if isinstance(value, str) else "")
def test_convert_makes_plain_weights_of_every_scheme(tmp_path: Path, params: dict[str, Any], precision: str) -> None:
    del precision
    base = save(llama(**(WIDE if params.get("scheme") == "NF4" else {})), tmp_path / "base")
    quantized, _ = run_stage("quantize", params, {"model": base}, tmp_path, name="quantized")
    done = run_done("convert", {"dtype": "float32"}, {"model": quantized}, tmp_path, name="plain")
    plain = tmp_path / "plain"
    assert "quantization_config" not in hf.read_config(plain)
    assert done.notes["dequantized_from"] in {"compressed-tensors", "bitsandbytes"}
    wanted = dict(iter_plain_tensors(quantized))
    assert set(wanted) == set(state(base)) == set(state(plain))
    assert all(tensor.equal(wanted[name].float()) for name, tensor in state(plain).items())
    assert done.metrics["bits_per_weight_in"].value < 32
