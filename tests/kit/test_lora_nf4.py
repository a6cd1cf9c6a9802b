"""An adapter that was trained over four-bit weights is added to what the quantization left of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ingot.errors import RefusedInput
from ingot.kit import hf, layers
from ingot.kit.lora import nf4, trained_on
from ingot.kit.lora.files import Quantization, Record, write_record
from lorakit import by_ingot, ulps
from stagekit import run_stage
from tinymodels import llama, peft_adapter, save, state

pytest.importorskip("bitsandbytes", reason="bitsandbytes repeats what training did: pip install 'ingot[ml]'")
pytestmark = pytest.mark.filterwarnings("ignore")

NF4 = Quantization("nf4")


def one_call(weight: torch.Tensor, how: Quantization) -> torch.Tensor:
    """bitsandbytes' own round trip of a whole tensor."""
    from bitsandbytes import functional

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        packed, found = functional.quantize_4bit(
            weight, blocksize=how.blocksize, compress_statistics=how.double_quant, quant_type=how.method
        )
        back: torch.Tensor = functional.dequantize_4bit(packed, found)
    finally:
        torch.set_num_threads(threads)
    return back


def by_definition(weight: torch.Tensor, how: Quantization) -> torch.Tensor:
    """Blocks over the flattened tensor: each code's value times its block's largest value, rounded to the dtype."""
    from bitsandbytes import functional

    packed, found = functional.quantize_4bit(weight, blocksize=how.blocksize, quant_type=how.method)
    codes = torch.stack([packed.reshape(-1) >> 4, packed.reshape(-1) & 15], dim=1).reshape(-1)[: weight.numel()]
    largest = found.absmax.repeat_interleave(how.blocksize)[: weight.numel()]
    values = functional.get_4bit_type(how.method, device="cpu")[codes.long()] * largest
    return values.to(weight.dtype).reshape(weight.shape)


SINGLE = replace(NF4, double_quant=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("how", [NF4, SINGLE, replace(NF4, method="fp4"), replace(NF4, blocksize=256)])
@pytest.mark.parametrize("shape", [(48, 256), (1100, 512), (37, 130)])
def test_pieces_give_what_one_call_gives(shape: tuple[int, int], how: Quantization, dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    read, whole = nf4.RoundTrip(how).reader(weight), one_call(weight, how)
    assert read(0, shape[0]).equal(whole.float())
    for start, stop in ((0, 1), (5, 30), (shape[0] - 3, shape[0])):
        assert read(start, stop).equal(whole[start:stop].float())
    assert not whole.equal(weight)


@pytest.mark.parametrize("how", [SINGLE, replace(SINGLE, method="fp4"), replace(SINGLE, blocksize=256)])
@pytest.mark.parametrize("shape", [(48, 32), (33, 32), (64, 160), (31, 96), (48, 256)])
def test_rows_that_end_within_a_block_follow_the_definition(shape: tuple[int, int], how: Quantization) -> None:
    # bitsandbytes 0.50's AVX-512 kernel takes the wrong scales for such rows when it is given the shape.
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3)).bfloat16()
    read = nf4.RoundTrip(how).reader(weight)
    assert read(0, shape[0]).equal(by_definition(weight, how).float())
    assert read(1, 3).equal(by_definition(weight, how)[1:3].float())


def test_double_quantization_looks_at_the_whole_tensor() -> None:
    weight = torch.randn((128, 512), generator=torch.Generator().manual_seed(3))
    weight[64:] *= 40
    half = nf4.RoundTrip(NF4).reader(weight[:64])(0, 64)
    assert not half.equal(nf4.RoundTrip(NF4).reader(weight)(0, 64))


def four_bit(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def qlora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """A base, an adapter made over it in four bits, and what PEFT merges it to over the dequantized base."""
    from peft import PeftModel

    folder = tmp_path_factory.mktemp("qlora")
    base = save(llama(hidden_size=128, intermediate_size=192, head_dim=32), folder / "base", torch.bfloat16)
    peft_adapter(four_bit(base), folder / "adapter")
    plain = four_bit(base).dequantize()
    plain.config.__dict__.pop("quantization_config", None)
    merged = PeftModel.from_pretrained(plain, folder / "adapter").merge_and_unload()
    return base, folder / "adapter", merged.state_dict()


def test_it_gives_what_peft_gives_over_the_dequantized_base(
    qlora: tuple[Path, Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    base, adapter, theirs = qlora
    stated = {"method": "nf4", "double_quant": True}
    out, metrics = run_stage("merge", {"quantization": stated}, {"model": base, "adapter": adapter}, tmp_path)
    ours = state(out)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert tensor.equal(theirs[name].to(tensor.dtype)), name
    assert 0.05 < metrics["quantization_change"].value < 0.2
    assert metrics["merged_tensors"].value == 14
    plain, more = run_stage("merge", {}, {"model": base, "adapter": adapter}, tmp_path, name="plain")
    assert any(not tensor.equal(ours[name]) for name, tensor in state(plain).items())
    assert "quantization_change" not in more


def test_layers_without_an_adapter_were_quantized_too(
    qlora: tuple[Path, Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    base, _, _ = qlora
    peft_adapter(hf.load_model(base), tmp_path / "adapter", target_modules=["q_proj"])
    ours = by_ingot(
        base, tmp_path / "adapter", trip=nf4.RoundTrip(NF4), quantized=layers.four_bit_weights(base), rows=8
    )
    given = state(base)
    name = "model.layers.0.mlp.up_proj.weight"
    assert ours[name].equal(one_call(given[name], NF4))
    assert ours["lm_head.weight"].equal(given["lm_head.weight"])
    assert ulps(ours[name], one_call(given[name], NF4)) == 0


def with_record(adapter: Path, folder: Path, record: Record) -> Path:
    folder.mkdir()
    for path in adapter.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    write_record(folder, record)
    return folder


def refusal(base: Path, adapter: Path, tmp_path: Path, **params: Any) -> RefusedInput:
    with pytest.raises(RefusedInput) as caught:
        run_stage("merge", params, {"model": base, "adapter": adapter}, tmp_path)
    return caught.value


def test_a_recorded_quantization_is_repeated(qlora: tuple[Path, Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    base, adapter, theirs = qlora
    record = Record(None, replace(NF4, identity=nf4.identity(NF4)), known=True)
    recorded = with_record(adapter, tmp_path / "recorded", record)
    out, _ = run_stage("merge", {}, {"model": base, "adapter": recorded}, tmp_path)
    assert all(tensor.equal(theirs[name].to(tensor.dtype)) for name, tensor in state(out).items())


@pytest.mark.parametrize(
    ("recorded", "stated", "fact"),
    [
        (NF4, {"method": "nf4", "double_quant": False}, "double_quant false"),
        (NF4, {"method": "fp4", "double_quant": True}, "fp4"),
        (NF4, {"method": "nf4", "double_quant": True, "blocksize": 128}, "blocks of 128"),
        (replace(NF4, dtype="float16"), {"method": "nf4", "double_quant": True, "dtype": "bfloat16"}, "from float16"),
        (None, {"method": "nf4", "double_quant": True}, "plain weights"),
        (replace(NF4, identity="0" * 64), None, "there 0000"),
        (NF4, None, "double_quant true"),
    ],
)
def test_a_quantizer_that_is_not_the_recorded_one_is_refused(
    qlora: tuple[Path, Path, dict[str, torch.Tensor]],
    tmp_path: Path,
    recorded: Quantization | None,
    stated: dict[str, Any] | None,
    fact: str,
) -> None:
    adapter = with_record(qlora[1], tmp_path / "recorded", Record(None, recorded, known=True))
    error = refusal(qlora[0], adapter, tmp_path, **({"quantization": stated} if stated else {}))
    assert error.code == "E-MERGE-QUANTIZER"
    assert fact in str(error)


def test_the_identity_is_of_what_is_done() -> None:
    assert nf4.identity(NF4) == nf4.identity(NF4)
    others = [replace(NF4, method="fp4"), replace(NF4, blocksize=128), replace(NF4, double_quant=False)]
    assert len({nf4.identity(how) for how in [NF4, *others]}) == 4


def test_an_identity_that_another_library_gives_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Record(None, replace(NF4, identity=nf4.identity(NF4)), known=True)
    assert trained_on.quantization([recorded], None) == replace(NF4, identity=None)
    packed = nf4.RoundTrip.packed

    def other(self: nf4.RoundTrip, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes, largest = packed(self, weight)
        codes[-1] ^= 1
        return codes, largest

    monkeypatch.setattr(nf4.RoundTrip, "packed", other)
    with pytest.raises(RefusedInput, match="does not quantize as it did"):
        trained_on.quantization([recorded], None)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"base_digest": "sha256:0"},
        {"quantization": {"method": "int8"}},
        {"quantization": {"method": "nf4", "blocksize": "64"}},
        {"quantization": {"method": "nf4", "path": "x"}},
        {"more": 1},
    ],
)
def test_a_record_that_cannot_be_is_refused(
    qlora: tuple[Path, Path, dict[str, torch.Tensor]], tmp_path: Path, change: dict[str, Any]
) -> None:
    adapter = with_record(qlora[1], tmp_path / "recorded", Record(None, NF4, known=True))
    path = adapter / "ingot_adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert refusal(qlora[0], adapter, tmp_path).code == "E-MERGE-RECORD"


def test_a_model_of_other_layers_is_refused(tmp_path: Path) -> None:
    from lorakit import Case, prepare

    base, adapter = prepare(Case({"target_modules": ["c_attn"]}, gpt2=True), tmp_path)
    stated = {"method": "nf4", "double_quant": True}
    assert refusal(base, adapter, tmp_path, quantization=stated).code == "E-MODEL-ARCH"
