"""Each method of ``adapter``: what it writes is what PEFT computes with, and ``merge`` gives the model it trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama import make_llama

from ingot.core.stage import load_kind
from ingot.errors import IngotError, RefusedInput, StageFailed
from ingot.kit import hf
from ingot.kit.lora import four_bit
from stagekit import run_stage, stage_of
from tinymodels import dataset

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::DeprecationWarning")

SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32, "tie_word_embeddings": False}
FAST: dict[str, Any] = {"steps": 6, "rank": 4, "batch_size": 4, "learning_rate": 2e-2, "device": "cpu"}
#: Mean difference of a merged model's logits from the trained one's, over the spread of the logits. In float32 only the
#: order of additions differs; in bfloat16 the merged weights are rounded once, the trained ones were not.
BOUNDS = {"float32": 1e-5, "bfloat16": 0.06}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tmp = tmp_path_factory.mktemp("inputs")
    return {"model": make_llama(tmp / "model", dtype="float32", **SIZES), "data": dataset(tmp / "data")}


def build(params: dict[str, Any], inputs: dict[str, Path], tmp_path: Path) -> tuple[Path, Any]:
    return run_stage("adapter", {**FAST, **params}, inputs, tmp_path, seed=7, threads=1, name="adapter")


def logits(model: Any) -> torch.Tensor:
    ids = (torch.arange(48) * 7 % 300)[None]
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return found


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The mean difference over the spread."""
    return float((one - other).abs().mean() / other.std())


def trained(adapter: Path, base: Path, params: dict[str, Any]) -> Any:
    """The model as it was trained: PEFT over the base as it was loaded then."""
    from peft import PeftModel

    qlora = params["method"] == "qlora"
    load = four_bit.load if qlora else hf.load_model
    return PeftModel.from_pretrained(load(base, params["dtype"], attention="sdpa"), adapter).eval()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "qlora"])
def test_the_merged_model_is_the_trained_one(method: str, dtype: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    if method == "qlora":
        pytest.importorskip("bitsandbytes", reason="it quantizes the base: pip install 'ingot[ml]'")
    params = {"method": method, "dtype": dtype}
    adapter, metrics = build(params, inputs, tmp_path)
    assert metrics["eval_loss_change"].value < -0.3
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["use_dora"]) == (method == "rslora", method == "dora")
    folders = {"model": inputs["model"], "adapter": adapter}
    merged, _ = run_stage("merge", {"dtype": dtype}, folders, tmp_path, name="merged")
    wanted = logits(trained(adapter, inputs["model"], params))
    found = logits(hf.load_model(merged, dtype, attention="sdpa"))
    plain = logits(hf.load_model(inputs["model"], dtype, attention="sdpa"))
    assert apart(found, wanted) <= BOUNDS[dtype]
    assert apart(plain, wanted) > 0.2


def test_qlora_names_its_quantization_and_merge_needs_it(inputs: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="it quantizes the base: pip install 'ingot[ml]'")
    params = {"method": "qlora", "dtype": "float32"}
    adapter, _ = build(params, inputs, tmp_path)
    record = json.loads((adapter / "ingot_adapter.json").read_text())["quantization"]
    assert record == {**record, "method": "nf4", "blocksize": 64, "double_quant": True, "dtype": "float32"}
    assert len(record["identity"]) == 64
    again, _ = run_stage("adapter", {**FAST, **params}, inputs, tmp_path, seed=7, threads=1, name="again")
    for path in adapter.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    # Without the record the adapter would be added to weights that it never saw.
    (adapter / "ingot_adapter.json").unlink()
    merged, _ = run_stage("merge", {}, {"model": inputs["model"], "adapter": adapter}, tmp_path, name="merged")
    wanted = logits(trained(adapter, inputs["model"], params))
    assert apart(logits(hf.load_model(merged, "float32")), wanted) > 0.05


def test_ranks_and_scales_by_pattern(inputs: dict[str, Path], tmp_path: Path) -> None:
    patterns = {
        "rank_pattern": {"q_proj": 2, r"layers\.0\.mlp\..*": 6},
        "alpha_pattern": {r"layers\.1\..*down_proj": 3},
    }
    adapter, metrics = build({"dtype": "float32", **patterns}, inputs, tmp_path)
    tensors = dict(hf.iter_tensors(adapter))
    ranks = {name.split("model.layers.")[1].removesuffix(".lora_A.weight"): tensor.shape[0]
             for name, tensor in tensors.items() if "lora_A" in name}  # fmt: skip
    for module, rank in ranks.items():
        assert rank == (2 if "q_proj" in module else 6 if module.startswith("0.mlp") else 4), module
    assert metrics["trainable_parameters"].value == sum(tensor.numel() for tensor in tensors.values())
    merged, _ = run_stage("merge", {}, {"model": inputs["model"], "adapter": adapter}, tmp_path, name="merged")
    wanted = logits(trained(adapter, inputs["model"], {"method": "lora", "dtype": "float32"}))
    assert apart(logits(hf.load_model(merged, "float32")), wanted) <= BOUNDS["float32"]


@pytest.mark.parametrize(
    ("field", "patterns", "fact"),
    [
        ("rank_pattern", {"c_attn": 4}, "'c_attn' matches no adapted module"),
        ("alpha_pattern", {"_proj": 4}, "'_proj' matches no adapted module"),
        ("rank_pattern", {r"layers\.77\..*": 4}, r"'layers\.77\..*' matches no adapted module"),
        ("rank_pattern", {"q_proj": 4, ".*_proj": 2}, "'.*_proj' and 'q_proj' both match model.layers.0.self_attn.q"),
        ("rank_pattern", {"(": 4}, "no regular expression"),
        ("rank_pattern", {"k_proj": 4}, "'k_proj' matches no adapted module"),
    ],
)  # fmt: skip
def test_patterns_that_say_nothing_or_two_things_are_refused(
    field: str, patterns: dict[str, int], fact: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    named = {"target_modules": ["q_proj", "v_proj"]} if "k_proj" in patterns else {}
    with pytest.raises(RefusedInput) as caught:
        build({field: patterns, **named}, inputs, tmp_path)
    assert caught.value.code == "E-ADAPTER-PATTERN"
    assert fact in caught.value.what
    assert "q_proj" in str(caught.value.facts)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
def test_a_base_that_is_quantized_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    quantized, _ = run_stage("quantize", {"scheme": "W8A16"}, {"model": inputs["model"]}, tmp_path, name="quantized")
    with pytest.raises(RefusedInput) as caught:
        build({"method": "qlora"}, {**inputs, "model": quantized}, tmp_path)
    assert caught.value.code == "E-QUANTIZED"


def test_a_kernel_that_multiplies_by_other_weights_is_noticed(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="it quantizes the base: pip install 'ingot[ml]'")
    forward = bitsandbytes.nn.Linear4bit.forward
    monkeypatch.setattr(bitsandbytes.nn.Linear4bit, "forward", lambda self, x: forward(self, x) * 1.02)
    with pytest.raises(StageFailed) as caught:
        build({"method": "qlora"}, inputs, tmp_path)
    assert caught.value.code == "E-ADAPTER-NF4"


def test_a_model_without_linear_layers_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=330, n_positions=64)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((inputs["model"] / name).read_bytes())
    with pytest.raises(RefusedInput) as caught:
        build({}, {**inputs, "model": folder}, tmp_path)
    assert caught.value.code == "E-MODEL-ARCH"
    assert "gpt2" in caught.value.what


def test_a_gpu_that_is_not_there_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(RefusedInput) as caught:
        build({"device": "cuda"}, inputs, tmp_path)
    assert caught.value.code == "E-DEVICE"


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"too_long": "refuse", "max_length": 24}, "E-DATASET-LONG"),
        ({"too_long": "refuse", "max_length": 4096}, "E-CONTEXT"),
    ],
)
def test_documents_that_are_too_long_are_refused(
    params: dict[str, Any], code: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    short = make_llama(tmp_path / "short", dtype="float32", **SIZES, max_position_embeddings=32)
    with pytest.raises(IngotError) as caught:
        build({"dtype": "float32", "too_long": "refuse", **params}, {**inputs, "model": short}, tmp_path)
    assert caught.value.code == code
    # Cut as the spec says by default, to max_length and to what the model can read.
    for length in (24, 4096):
        cut = {"dtype": "float32", "steps": 1, "max_length": length, "packing": False}
        out, _ = build(cut, {**inputs, "model": short}, tmp_path / f"cut{length}")
        curve = json.loads((out / "training.json").read_text())
        assert 0 < curve["train"][0]["tokens"] <= 4 * min(length, 32)


def test_bitsandbytes_is_in_the_key_where_it_changes_the_bytes() -> None:
    def used(**params: Any) -> bool:
        return "bitsandbytes" in stage_of("adapter", {"steps": 1, **params}).tools_used()

    assert not used()
    assert used(method="qlora")
    assert used(optimizer="adamw_8bit")
    assert (
        stage_of("adapter", {"steps": 1, "method": "qlora", "optimizer": "adamw_8bit"})
        .tools_used()
        .count("bitsandbytes")
        == 1
    )
    assert load_kind("adapter").resumes
    assert stage_of("adapter", {"steps": 1}).reproduces() == "device_dependent"
    assert stage_of("adapter", {"steps": 1, "device": "cpu"}).reproduces() == "seeded"
