"""LoRA adapters as GGUF: the reference's file, PEFT's logits, and what such a file cannot say."""

from __future__ import annotations

import ctypes
import json
import math
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
import torch

import archmodels
from ingot.errors import RefusedInput
from ingot.kit.gguf.reader import Gguf, read_gguf
from ingot.kit.hf import load_model
from ingot.kit.llama_cpp import open_model
from llamasource import llama_cpp_source
from stagekit import digest_of, run_stage
from tinymodels import peft_adapter

IDS = [1, *((7 * place + 3) % 90 for place in range(30))]
_KINDS = ("F32", "F16", "BF16", "Q8_0")
_DRIVER = """
import json, runpy, sys
sys.path.insert(0, sys.argv[1])
for arguments in json.loads(sys.argv[2]):
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
"""


def _base(name: str, folder: Path) -> Path:
    folder.mkdir()
    return archmodels.make_model(name, folder, 96)


def _adapted(base: Path, folder: Path, **options: Any) -> Any:
    """PEFT's model with an adapter that is saved to ``folder``."""
    return peft_adapter(load_model(base, "float32"), folder, **options)


@dataclass(frozen=True)
class Pair:
    """A base, an adapter, PEFT's model of both; the reference's files lie beside them."""

    base: Path
    adapter: Path
    model: Any

    def reference(self, kind: str = "F32") -> Gguf:
        return read_gguf(self.base.parent / f"{kind}.gguf")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Adapters and what llama.cpp's own converter makes of them, all in one process of its own."""
    options: dict[str, dict[str, Any]] = {
        "llama": {"r": 8, "rank_pattern": {"q_proj": 32}},
        "gemma2": {},
        "phi3": {},
        "mistral": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    }
    script, found, jobs = llama_cpp_source() / "convert_lora_to_gguf.py", {}, []
    for name, more in options.items():
        folder = tmp_path_factory.mktemp(name)
        base, adapter = _base(name, folder / "base"), folder / "adapter"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PEFT's, about embeddings
            found[name] = Pair(base, adapter, _adapted(base, adapter, **more))
        for kind in _KINDS if name == "llama" else ("F32",):
            place = ["--base", str(base), "--outfile", str(folder / f"{kind}.gguf"), "--outtype", kind.lower()]
            jobs.append([str(script), *place, str(adapter)])
    command = [sys.executable, "-B", "-c", _DRIVER, str(script.parent), json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return found


def _export(base: Path, adapter: Path, tmp_path: Path, kind: str = "F32", **more: Any) -> tuple[Path, Any]:
    out, metrics = run_stage("lora_gguf", {"type": kind, **more}, {"model": base, "adapter": adapter}, tmp_path)
    return out / "adapter.gguf", metrics


def _wanted(model: Any) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        found: npt.NDArray[np.float32] = model(input_ids=torch.tensor([IDS])).logits[0].float().numpy()
    return found


def _found(base: Path, adapter: Path | None, tmp_path: Path) -> npt.NDArray[np.float32]:
    """llama.cpp's logits of the base with the adapter."""
    path = tmp_path / "base.gguf"
    if not path.exists():
        archmodels.export(base, path, "F32")
    with open_model(path, context=64, threads=2) as model:
        if adapter is None:
            return model.logits(IDS)
        opened = llama_cpp.llama_adapter_lora_init(model._model, str(adapter).encode())
        assert opened is not None
        many = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(opened)
        assert llama_cpp.llama_set_adapters_lora(model._context, many, 1, (ctypes.c_float * 1)(1.0)) == 0
        return model.logits(IDS)


def _assert_agree(base: Path, model: Any, adapter: Path, tmp_path: Path) -> None:
    """Equal to PEFT's within what F16 keys and values cost, and far from the base's own."""
    wanted, found, plain = _wanted(model), _found(base, adapter, tmp_path), _found(base, None, tmp_path)
    bound = 1e-2 * np.abs(wanted).max()
    assert np.abs(found - wanted).max() < bound
    assert np.abs(plain - wanted).max() > 3 * bound


@pytest.mark.parametrize("kind", _KINDS)
def test_the_file_equals_the_reference_converters(pairs: dict[str, Pair], tmp_path: Path, kind: str) -> None:
    theirs = pairs["llama"].reference(kind)
    path, metrics = _export(pairs["llama"].base, pairs["llama"].adapter, tmp_path, kind)
    ours = read_gguf(path)
    assert [(i.name, i.shape, i.type) for i in ours.tensors] == [(i.name, i.shape, i.type) for i in theirs.tensors]
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert ours.raw(mine).tobytes() == theirs.raw(other).tobytes(), mine.name
    # names of folders and of a model card are left out; what the file was made of comes in
    dropped = {"name", "tags", "base_model.count", "base_model.0.name", "base_model.0.repo_url"}
    made_of = {f"ingot.{name}" for name in ("kind", "model.digest", "adapter.digest", "tools")}
    assert theirs.metadata.keys() - ours.metadata.keys() == {f"general.{name}" for name in dropped}
    assert ours.metadata.keys() - theirs.metadata.keys() == made_of
    assert all(ours.metadata[key] == theirs.metadata[key] for key in theirs.metadata.keys() & ours.metadata.keys())
    assert metrics["bytes"].value == path.stat().st_size
    assert metrics["adapted_tensors"].value == 14
    types = {info.type for info in ours.tensors}
    assert types == ({"Q8_0", "F16"} if kind == "Q8_0" else {kind})
    assert str(tmp_path).encode() not in path.read_bytes()


@pytest.mark.parametrize("name", ["gemma2", "phi3", "mistral"])
def test_other_models_equal_the_reference(pairs: dict[str, Pair], tmp_path: Path, name: str) -> None:
    """Fused projections of Phi-3; embeddings (Mistral); both compute what PEFT computes."""
    pair = pairs[name]
    theirs, path = pair.reference(), _export(pair.base, pair.adapter, tmp_path)[0]
    ours = read_gguf(path)
    assert {i.name: (i.shape, ours.raw(i).tobytes()) for i in ours.tensors} == {
        i.name: (i.shape, theirs.raw(i).tobytes()) for i in theirs.tensors
    }
    _assert_agree(pair.base, pair.model, path, tmp_path)


def test_llama_cpp_computes_what_peft_computes(pairs: dict[str, Pair], tmp_path: Path) -> None:
    pair = pairs["llama"]
    _assert_agree(pair.base, pair.model, _export(pair.base, pair.adapter, tmp_path)[0], tmp_path)


def test_layers_that_lie_inputs_first(tmp_path: Path) -> None:
    """GPT-2's A and B are as everywhere, though its weights are not; the reference turns them round."""
    base = _base("gpt2", tmp_path / "base")
    model = _adapted(base, tmp_path / "adapter", target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    _assert_agree(base, model, _export(base, tmp_path / "adapter", tmp_path)[0], tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True, "r": 4},
        {"alpha_pattern": {"v_proj": 40, "up_proj": 2}},
        {"use_rslora": True, "r": 4, "rank_pattern": {"q_proj": 16}, "alpha_pattern": {"o_proj": 24}},
    ],
    ids=["rslora", "alphas", "rslora-ranks-alphas"],
)
def test_scales_that_the_reference_loses_are_kept(tmp_path: Path, options: dict[str, Any]) -> None:
    base = _base("llama", tmp_path / "base")
    model = _adapted(base, tmp_path / "adapter", **options)
    path, _ = _export(base, tmp_path / "adapter", tmp_path)
    alpha = read_gguf(path).metadata["adapter.lora.alpha"]
    assert alpha == pytest.approx(8 * math.sqrt(4) if options.get("use_rslora") else 8)
    _assert_agree(base, model, path, tmp_path)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["norm"]}, "replace the base's"),
        ({"trainable_token_indices": [3]}, "replace tokens"),
        ({"lora_bias": True}, "biases"),
        ({"lora_alpha": 0}, "alpha is 0"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "one tensor with the other embedding"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's, about embeddings
def test_what_the_file_cannot_say_is_refused(tmp_path: Path, options: dict[str, Any], what: str) -> None:
    base = _base("llama-3.1" if "lora_bias" in options else "llama", tmp_path / "base")
    _adapted(base, tmp_path / "adapter", **options)
    with pytest.raises(RefusedInput, match=what) as caught:
        _export(base, tmp_path / "adapter", tmp_path)
    assert caught.value.code == "E-GGUF-LORA"
    assert caught.value.hint is not None
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("change", "code"), [("rename", "E-MERGE-UNMATCHED"), ("width", "E-MERGE-SHAPE")])
def test_an_adapter_of_another_model_is_refused(tmp_path: Path, change: str, code: str) -> None:
    base = _base("llama", tmp_path / "base")
    _adapted(base, tmp_path / "adapter")
    config = json.loads((base / "config.json").read_text())
    other = {"num_hidden_layers": 1} if change == "rename" else {"intermediate_size": 128}
    (base / "config.json").write_text(json.dumps({**config, **other}))
    with pytest.raises(RefusedInput, match="another model") as caught:
        _export(base, tmp_path / "adapter", tmp_path)
    assert caught.value.code == code
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("given", ["none", "allowed"])
def test_the_recorded_base_must_be_this_one(tmp_path: Path, given: str) -> None:
    from ingot.kit.lora.files import Record, write_record

    base = _base("llama", tmp_path / "base")
    _adapted(base, tmp_path / "adapter")
    write_record(tmp_path / "adapter", Record(known=True, base_digest="0" * 64))
    if given == "allowed":
        assert _export(base, tmp_path / "adapter", tmp_path, allow_other_base=True)[0].is_file()
        return
    with pytest.raises(RefusedInput, match="another base") as caught:
        _export(base, tmp_path / "adapter", tmp_path)
    assert caught.value.code == "E-MERGE-BASE"


@pytest.mark.parametrize(
    ("value", "kind", "code"),
    [(math.nan, "F32", "E-NONFINITE"), (math.inf, "Q8_0", "E-NONFINITE"), (1e30, "F16", "E-GGUF-NONFINITE")],
)
def test_values_that_are_none_are_refused(tmp_path: Path, value: float, kind: str, code: str) -> None:
    from safetensors.torch import load_file, save_file

    base = _base("llama", tmp_path / "base")
    _adapted(base, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = value
    save_file(tensors, path)
    with pytest.raises(RefusedInput) as caught:
        _export(base, tmp_path / "adapter", tmp_path, kind)
    assert caught.value.code == code


def test_equal_bytes_at_other_thread_counts(tmp_path: Path) -> None:
    base = _base("llama", tmp_path / "base")
    _adapted(base, tmp_path / "adapter", use_rslora=True, alpha_pattern={"v_proj": 3})
    inputs = {"model": base, "adapter": tmp_path / "adapter"}
    outs = [
        run_stage("lora_gguf", {"type": "Q8_0"}, inputs, tmp_path, threads=threads, name=f"run{threads}")[0]
        for threads in (1, 3)
    ]
    assert len({digest_of(out) for out in outs}) == 1
