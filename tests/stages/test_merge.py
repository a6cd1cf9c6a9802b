from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ingot.core.digest import tree_digest
from ingot.core.stage import Done, Given, Virtual, load_kind
from ingot.errors import RefusedInput
from ingot.kit import hf
from ingot.kit.lora.files import Record, write_record
from lorakit import CASES, Case, prepare
from stagekit import Recorder, digest_of, run_stage
from tinymodels import llama, logits, peft_adapter, save, state

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::DeprecationWarning")

#: One rounding of the sum, against PEFT's two (the change, then the sum): 1.5 units in the last place.
BOUND = {torch.float32: 2e-6, torch.bfloat16: 1.5 * 2**-7}


def merged_by_peft(wrapped: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = wrapped.merge_and_unload().state_dict()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_gives_what_peft_gives(tmp_path: Path, dtype: torch.dtype) -> None:
    base = save(llama(), tmp_path / "base", dtype)
    wrapped = peft_adapter(hf.load_model(base), tmp_path / "adapter")
    out, metrics = run_stage("merge", {}, {"model": base, "adapter": tmp_path / "adapter"}, tmp_path)
    ours, theirs, before = state(out), merged_by_peft(wrapped), state(base)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == dtype
        largest = theirs[name].float().abs().max()
        assert (tensor.float() - theirs[name].float()).abs().max() <= BOUND[dtype] * largest, name
    changed = [name for name in ours if not ours[name].equal(before[name])]
    assert len(changed) == metrics["merged_tensors"].value == 14
    assert all("_proj" in name for name in changed)


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_variants_of_lora_give_what_peft_gives(tmp_path: Path, options: dict[str, Any]) -> None:
    base = save(llama(), tmp_path / "base")
    wrapped = peft_adapter(hf.load_model(base), tmp_path / "adapter", **options)
    out, _ = run_stage("merge", {}, {"model": base, "adapter": tmp_path / "adapter"}, tmp_path)
    expected = logits(wrapped)
    assert (logits(hf.load_model(out)) - expected).abs().max() <= 1e-5
    assert (logits(hf.load_model(base)) - expected).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_an_adapted_tied_embedding_is_untied(tmp_path: Path, module: str) -> None:
    base = save(llama(tie_word_embeddings=True), tmp_path / "base")
    wrapped = peft_adapter(hf.load_model(base), tmp_path / "adapter", target_modules=[module, "q_proj"])
    out, _ = run_stage("merge", {}, {"model": base, "adapter": tmp_path / "adapter"}, tmp_path)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert (logits(hf.load_model(out)) - logits(wrapped)).abs().max() <= 1e-5


def test_shards_give_the_same_weights_and_dtype_is_honoured(tmp_path: Path) -> None:
    whole = save(llama(), tmp_path / "whole")
    parts = save(llama(), tmp_path / "parts", max_shard_size="20KB")
    assert len(hf.tensor_files(parts)) > 2
    peft_adapter(hf.load_model(whole), tmp_path / "adapter")
    inputs = {"adapter": tmp_path / "adapter"}
    one, _ = run_stage("merge", {}, {"model": whole, **inputs}, tmp_path, name="one")
    two, _ = run_stage("merge", {}, {"model": parts, **inputs}, tmp_path, name="two")
    first, second = state(one), state(two)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    half, metrics = run_stage("merge", {"dtype": "float16"}, {"model": whole, **inputs}, tmp_path, name="half")
    assert {tensor.dtype for tensor in state(half).values()} == {torch.float16}
    assert json.loads((half / "config.json").read_text())["dtype"] == "float16"
    assert metrics["weight_bytes"].value * 2 == sum(tensor.numel() * 4 for tensor in state(one).values())


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    base = save(llama(), tmp_path / "base")
    peft_adapter(hf.load_model(base), tmp_path / "adapter")
    return base, tmp_path / "adapter"


def refusal(pair: tuple[Path, Path], tmp_path: Path, **params: Any) -> RefusedInput:
    with pytest.raises(RefusedInput) as caught:
        run_stage("merge", params, {"model": pair[0], "adapter": pair[1]}, tmp_path)
    out = tmp_path / "out"
    assert not [path for path in out.rglob("*") if path.suffix == ".json"], "nothing that could be taken for a model"
    return caught.value


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes",
    [{"peft_type": "LOHA"}, {"init_lora_weights": "pissa_niter_4"}, {"alora_invocation_tokens": [1]}],
)
def test_an_adapter_that_is_no_sum_is_refused(pair: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any]) -> None:
    edit(pair[1], **changes)
    assert refusal(pair, tmp_path).code == "E-MERGE-METHOD"


def test_a_tensor_without_a_place_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = pair[1] / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "layers.1.mlp.up_proj.lora_A" in name)
    other = name.replace("layers.1", "layers.7")
    moved = {n.replace("layers.1.mlp.up_proj", "layers.7.mlp.up_proj"): t for n, t in tensors.items()}
    save_file(moved, path)
    error = refusal(pair, tmp_path)
    assert error.code == "E-MERGE-UNMATCHED"
    assert "layers.7.mlp.up_proj" in str(error)
    save_file({**tensors, other.replace("lora_A", "lora_C"): tensors[name].clone()}, path)
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "out-scratch")
    assert refusal(pair, tmp_path).code == "E-MERGE-METHOD"


def test_another_models_adapter_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = save(llama(hidden_size=64, head_dim=16), tmp_path / "other")
    assert refusal((other, pair[1]), tmp_path).code == "E-MERGE-SHAPE"


def test_a_rank_that_is_not_that_of_the_matrices_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    edit(pair[1], r=8)
    assert refusal(pair, tmp_path).code == "E-MERGE-SHAPE"


def test_a_folder_that_is_no_adapter_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert refusal((pair[0], pair[0]), tmp_path).code == "E-NOT-ADAPTER"


def test_a_quantized_base_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    quantized, _ = run_stage("quantize", {}, {"model": pair[0]}, tmp_path, name="quantized")
    assert refusal((quantized, pair[1]), tmp_path).code == "E-QUANTIZED"


def test_an_adapter_that_records_another_base_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = pair
    write_record(adapter, Record(digest_of(base), None))
    first, _ = run_stage("merge", {}, {"model": base, "adapter": adapter}, tmp_path, name="first")
    other = save(llama(rms_norm_eps=1e-5), tmp_path / "other")
    error = refusal((other, adapter), tmp_path)
    assert error.code == "E-MERGE-BASE"
    assert digest_of(base) in str(error)
    assert digest_of(other) in str(error)
    taken, _ = run_stage(
        "merge", {"allow_other_base": True}, {"model": other, "adapter": adapter}, tmp_path, name="taken"
    )
    assert all(tensor.equal(state(taken)[name]) for name, tensor in state(first).items())


def test_a_virtual_base_is_compared_once_it_has_flowed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, first = pair
    second = tmp_path / "second"
    peft_adapter(hf.load_model(base), second, target_modules=["v_proj"])
    merged, _ = run_stage("merge", {}, {"model": base, "adapter": first}, tmp_path, name="merged")
    write_record(second, Record(digest_of(merged), None))
    done = run_over_virtual(base, first, second, tmp_path / "same")
    assert tree_digest(done.passed["model"].files) == digest_of(merged)
    write_record(second, Record(digest_of(base), None))
    with pytest.raises(RefusedInput) as caught:
        run_over_virtual(base, first, second, tmp_path / "another")
    assert caught.value.code == "E-MERGE-BASE"


def run_over_virtual(base: Path, first: Path, second: Path, work: Path) -> Done:
    """Merge ``second`` into what nobody wrote: ``first`` merged into the base."""
    for name in ("out", "outer", "inner"):
        (work / name).mkdir(parents=True)
    below = Given({"model": (base,), "adapter": (first,)}, {"model": (digest_of(base),)}, work / "inner")
    stage = load_kind("merge")()
    given = Given({"adapter": (second,)}, {}, work / "outer", threads=2, virtual={"model": Virtual(stage, below)})
    return Done.of(stage.run(given, work / "out", Recorder()))


def test_several_adapters_have_a_weight_each(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, first = pair
    peft_adapter(hf.load_model(base), tmp_path / "second", target_modules=["q_proj"], lora_alpha=3)
    both: dict[str, Path | list[Path]] = {"model": base, "adapter": [first, tmp_path / "second"]}
    out, metrics = run_stage("merge", {"weights": [0.7, -0.2]}, both, tmp_path)
    before = state(base)
    ones = [
        state(run_stage("merge", {}, {"model": base, "adapter": folder}, tmp_path, name=folder.name + "-alone")[0])
        for folder in (first, tmp_path / "second")
    ]
    for name, tensor in state(out).items():
        expected = before[name] + 0.7 * (ones[0][name] - before[name]) - 0.2 * (ones[1][name] - before[name])
        assert (tensor - expected).abs().max() <= 1e-6, name
    assert metrics["merged_tensors"].value == 14
    for number, weights in enumerate(([1.0], None)):
        with pytest.raises(RefusedInput) as caught:
            run_stage("merge", {"weights": weights} if weights else {}, both, tmp_path, name=f"bad{number}")
        assert caught.value.code == "E-MERGE-WEIGHTS"


@pytest.mark.parametrize(("where", "value"), [("base", "nan"), ("base", "inf"), ("adapter", "nan")])
def test_what_is_no_number_is_refused_unless_allowed(
    pair: tuple[Path, Path], tmp_path: Path, where: str, value: str
) -> None:
    path = pair[0] / "model.safetensors" if where == "base" else pair[1] / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "q_proj" in name)
    tensors[name][1, 2] = float(value)
    save_file(tensors, path, metadata={"format": "pt"})
    error = refusal(pair, tmp_path)
    assert error.code == "E-NONFINITE"
    assert "q_proj" in str(error)
    out, _ = run_stage(
        "merge", {"allow_nonfinite": True}, {"model": pair[0], "adapter": pair[1]}, tmp_path, name="allowed"
    )
    assert not all(bool(tensor.isfinite().all()) for tensor in state(out).values())


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_what_float16_cannot_hold_is_refused(pair: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    path = pair[0] / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[7] = 70000.0
    save_file(tensors, path, metadata={"format": "pt"})
    error = refusal(pair, tmp_path, dtype="float16")
    assert error.code == "E-DTYPE-RANGE"
    assert name in str(error)


def test_a_model_published_without_its_inner_name_is_found(tmp_path: Path) -> None:
    base, adapter = prepare(Case({"target_modules": ["c_attn", "wte"]}, gpt2=True), tmp_path)
    expected, _ = run_stage("merge", {}, {"model": base, "adapter": adapter}, tmp_path, name="expected")
    tensors = {
        name.removeprefix("transformer."): tensor for name, tensor in load_file(base / "model.safetensors").items()
    }
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    out, _ = run_stage("merge", {}, {"model": base, "adapter": adapter}, tmp_path)
    before, found = state(expected), state(out)
    assert all(tensor.equal(before.get(f"transformer.{name}", before.get(name))) for name, tensor in found.items())


def test_a_linear_layer_is_never_added_to_sideways(tmp_path: Path) -> None:
    base = save(llama(), tmp_path / "base")
    model = hf.load_model(base)
    peft_adapter(model, tmp_path / "adapter", target_modules=["up_proj"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    turned = {
        name: torch.ones(4, 48) if "lora_A" in name else torch.ones(32, 4) if "lora_B" in name else tensor
        for name, tensor in tensors.items()
    }
    save_file(turned, path)
    assert refusal((base, tmp_path / "adapter"), tmp_path).code == "E-MERGE-SHAPE"


@pytest.mark.parametrize("name", ["tokens", "modules-to-save", "lora-bias"])
def test_parts_of_another_shape_are_refused(name: str, tmp_path: Path) -> None:
    base, adapter = prepare(CASES[name], tmp_path)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    part = {"tokens": "trainable_tokens_delta", "modules-to-save": "model.norm.weight", "lora-bias": "lora_B.bias"}
    key = next((key for key in tensors if part[name] in key), "base_model.model.model.norm.weight")
    shape = (3, 33) if name == "tokens" else (31,)
    save_file({**tensors, key: torch.ones(shape)}, path)
    assert refusal((base, adapter), tmp_path).code == "E-MERGE-SHAPE"


def test_a_bias_the_base_does_not_have_is_refused(tmp_path: Path) -> None:
    base, adapter = prepare(CASES["lora-bias"], tmp_path)
    tensors = load_file(base / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if not name.endswith("bias")},
        base / "model.safetensors", metadata={"format": "pt"},
    )  # fmt: skip
    assert refusal((base, adapter), tmp_path).code == "E-MERGE-UNMATCHED"


def test_threads_change_no_byte(pair: tuple[Path, Path], tmp_path: Path) -> None:
    inputs = {"model": pair[0], "adapter": pair[1]}
    found = [run_stage("merge", {}, inputs, tmp_path, name=f"on{n}", threads=n) for n in (1, 4)]
    assert digest_of(found[0][0]) == digest_of(found[1][0])
    assert found[0][1] == found[1][1]
