"""``convert``: what comes out is what transformers and llama.cpp read from the same GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from ggufkit import write_llama
from ingot.errors import RefusedInput
from ingot.kit import hf
from stagekit import digest_of, run_stage

TEXTS = [
    "Once upon a time, there was a little girl named Lily.",
    " leading and  double spaces\n\nand lines\t",
    "numbers 2024, 12345 and ½; été, 漢字, 😀",
    "<s>marks</s> in <unk> text",
    "",
]


def folder_with(tmp_path: Path, gguf: Path) -> Path:
    folder = tmp_path / "fetched"
    folder.mkdir()
    (folder / "file").write_bytes(gguf.read_bytes())
    return folder


def convert(tmp_path: Path, model: Path, name: str = "out", **params: Any) -> Path:
    out, _ = run_stage("convert", {"dtype": "float32", **params}, {"model": model}, tmp_path, name=name)
    return out


def test_the_model_is_the_one_that_transformers_reads(stories_gguf: Path, tmp_path: Path) -> None:
    out = convert(tmp_path, folder_with(tmp_path, stories_gguf))
    # the file's padding id is outside its vocabulary, which transformers does not survive: it gets our configuration
    config = AutoConfig.from_pretrained(out)
    reference = AutoModelForCausalLM.from_pretrained(
        str(stories_gguf.parent),
        gguf_file=stories_gguf.name,
        config=config,
        dtype=torch.float32,
        attn_implementation="eager",
    )
    model = hf.load_model(out)
    ours, theirs = model.state_dict(), reference.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with torch.no_grad():
        ids = torch.tensor([[1, 403, 407, 261, 378]])
        assert torch.equal(model(ids).logits, reference.eval()(ids).logits)


def test_it_is_the_trained_model_that_the_gguf_was_made_from(stories: Path, stories_gguf: Path, tmp_path: Path) -> None:
    model, original = hf.load_model(convert(tmp_path, folder_with(tmp_path, stories_gguf))), hf.load_model(stories)
    ids = torch.tensor([[1, 403, 407, 261, 378, 31, 298]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, rtol=1e-4, atol=1e-4)


def test_grouped_heads_are_put_back_in_order(tmp_path: Path) -> None:
    """llama.cpp rotates neighbours, transformers halves: the wrong order gives other logits, not an error."""
    gguf = write_llama(tmp_path / "x.gguf", {"theta": 5000.0})
    out = convert(tmp_path, folder_with(tmp_path, gguf))
    reference = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file="x.gguf", dtype=torch.float32)
    tensors = load_file(out / "model.safetensors")
    for name, tensor in reference.state_dict().items():
        if name != "lm_head.weight":
            assert torch.equal(tensors[name], tensor), name
    assert "lm_head.weight" not in tensors  # tied


def test_token_ids_are_those_of_llama_cpp(stories_gguf: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    bpe = write_llama(tmp_path / "bpe.gguf", {"pre": "smollm"})
    for number, gguf in enumerate((stories_gguf, bpe)):
        (tmp_path / str(number)).mkdir()
        out = convert(tmp_path / str(number), folder_with(tmp_path / str(number), gguf))
        tokenizer = hf.load_tokenizer(out)
        reference = llama_cpp.Llama(str(gguf), vocab_only=True, verbose=False)
        add_bos = gguf == stories_gguf
        for text in [*TEXTS, "<|im_start|>user\nhi<|im_end|>"]:
            expected = reference.tokenize(text.encode(), add_bos=add_bos, special=True)
            assert tokenizer(text)["input_ids"] == expected, text
        reference.close()


def test_config_template_and_ids_are_kept(tmp_path: Path) -> None:
    out = convert(tmp_path, folder_with(tmp_path, write_llama(tmp_path / "x.gguf", {"theta": 5000.0})))
    config = json.loads((out / "config.json").read_text())
    assert (config["rms_norm_eps"], config["rope_theta"], config["head_dim"]) == (1e-5, 5000.0, 8)
    assert (config["num_key_value_heads"], config["max_position_embeddings"], config["vocab_size"]) == (2, 128, 260)
    assert config["tie_word_embeddings"] is True
    ids = {"bos_token_id": 257, "eos_token_id": 258, "pad_token_id": 259}
    assert json.loads((out / "generation_config.json").read_text()) == ids
    assert config | ids == config
    tokenizer = hf.load_tokenizer(out)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|pad|>")
    chat = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|im_start|>user\nhi<|im_end|>\n"


def test_same_input_same_bytes_and_shards_hold_the_same_tensors(stories_gguf: Path, tmp_path: Path) -> None:
    model = folder_with(tmp_path, stories_gguf)
    first = convert(tmp_path, model, "first", dtype="bfloat16")
    assert digest_of(first) == digest_of(convert(tmp_path, model, "second", dtype="bfloat16"))
    sharded = convert(tmp_path, model, "sharded", dtype="bfloat16", shard_bytes=100_000)
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 2
    assert all(path.stat().st_size < 110_000 for path in files)
    whole, parts = dict(hf.iter_tensors(first)), dict(hf.iter_tensors(sharded))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    hf.load_model(sharded)


def test_metrics_are_counted(tmp_path: Path) -> None:
    gguf = write_llama(tmp_path / "x.gguf")
    out, metrics = run_stage("convert", {"dtype": "float16"}, {"model": folder_with(tmp_path, gguf)}, tmp_path)
    tensors = load_file(out / "model.safetensors")
    assert metrics["parameters"].value == sum(tensor.numel() for tensor in tensors.values())
    assert metrics["tensors"].value == len(tensors) == 20
    assert metrics["bits_per_weight_in"].value == 32
    assert metrics["bits_per_weight"].value == 16
    assert metrics["weight_bytes"].value == (out / "model.safetensors").stat().st_size


def test_a_hugging_face_folder_is_cast(stories: Path, tmp_path: Path) -> None:
    out = convert(tmp_path, stories, dtype="bfloat16")
    original = dict(hf.iter_tensors(stories))
    assert all(torch.equal(tensor, original[name].bfloat16()) for name, tensor in hf.iter_tensors(out))
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def llama3_factors(factor: float) -> list[float]:
    wave = 2 * np.pi * 500000.0 ** (np.arange(0, 8, 2) / 8)
    smooth = np.clip((8192 / wave - 1) / 3, 0, 1)
    return list(1 / ((1 - smooth) / factor + smooth))


def test_the_scaling_of_llama_3_is_recovered(tmp_path: Path) -> None:
    gguf = write_llama(tmp_path / "x.gguf", {"theta": 500000.0, "rope_freqs": llama3_factors(8.0)})
    out = convert(tmp_path, folder_with(tmp_path, gguf))
    rope = json.loads((out / "config.json").read_text())["rope_parameters"]
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("llama3", 8.0, 8192)
    model = hf.load_model(out)
    plain = 1 / 500000.0 ** (torch.arange(0, 8, 2).double() / 8)
    expected = (plain / torch.tensor(llama3_factors(8.0), dtype=torch.float64)).float()
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("changes", "drop", "code"),
    [
        ({"architecture": "mamba"}, [], "E-ARCH"),
        ({"experts": 8}, [], "E-ARCH"),
        ({"rope_dims": 4}, [], "E-ARCH"),
        ({"layers": 2}, ["blk.1.ffn_up.weight"], "E-GGUF-TENSOR"),
        ({}, ["token_embd.weight"], "E-GGUF-TENSOR"),
        ({"rope_freqs": [1.0, 2.0, 3.0, 4.0]}, [], "E-GGUF-ROPE"),
        ({"pre": "a-rule-of-tomorrow"}, [], "E-GGUF-TOKENIZER"),
    ],
)
def test_what_it_cannot_convert_is_refused(tmp_path: Path, changes: dict[str, Any], drop: list[str], code: str) -> None:
    gguf = write_llama(tmp_path / "x.gguf", changes, drop)
    with pytest.raises(RefusedInput) as error:
        convert(tmp_path, folder_with(tmp_path, gguf))
    assert error.value.code == code


def folder_like(stories: Path, tmp_path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    known = json.loads((stories / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**known, **config}))
    if tensors:
        hf.write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.mark.parametrize(
    ("config", "tensors", "code"),
    [
        ({"auto_map": {"AutoModel": "code.Model"}}, {"a": torch.ones(1)}, "E-CONFIG-CODE"),
        ({"sub": [{"trust_remote_code": True}]}, {"a": torch.ones(1)}, "E-CONFIG-CODE"),
        ({"quantization_config": {}}, {"a": torch.ones(1)}, "E-QUANTIZED"),
        ({}, {"a": torch.tensor([70000.0])}, "E-DTYPE-RANGE"),
        ({}, {}, "E-NOT-HF"),
    ],
)
def test_a_folder_that_cannot_be_cast_is_refused(
    stories: Path, tmp_path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], code: str
) -> None:
    with pytest.raises(RefusedInput) as error:
        convert(tmp_path, folder_like(stories, tmp_path, config, tensors), dtype="float16")
    assert error.value.code == code


def test_pickled_weights_and_empty_folders_are_refused(stories: Path, tmp_path: Path) -> None:
    folder = folder_like(stories, tmp_path, {}, {})
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(RefusedInput) as error:
        convert(tmp_path, folder, "pickle")
    assert error.value.code == "E-FORMAT-PICKLE"
    (tmp_path / "empty").mkdir()
    with pytest.raises(RefusedInput) as error:
        convert(tmp_path, tmp_path / "empty", "empty-out")
    assert error.value.code == "E-NOT-HF"
