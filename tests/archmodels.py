"""Small random models of every architecture that GGUF files are written for, and llama.cpp's own converter."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ingot.kit.stream.vocabulary import Slot
from llamasource import llama_cpp_source

_SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 256,
    "short_factor": [1.0 + 0.01 * i for i in range(8)], "long_factor": [1.0 + 0.5 * i for i in range(8)],
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One model: transformers' class, what its configuration changes, how many positions the two must agree on."""

    model: str
    changes: dict[str, Any] = field(default_factory=dict)
    positions: int = 60


#: GQA, head sizes other than hidden / heads where there may be, tied and untied, every rule for positions, windows
#: shorter than the texts.
CASES: dict[str, Case] = {
    "llama": Case("Llama", {"tie_word_embeddings": True}),
    "llama-3.1": Case("Llama", {"rope_parameters": _LLAMA3, "attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    "mistral": Case("Mistral", {"head_dim": 32, "sliding_window": None}),
    "mistral-window": Case("Mistral", {"sliding_window": 24, "rope_parameters": _LINEAR}, positions=24),
    "qwen2": Case("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-yarn": Case("Qwen2", {"rope_parameters": _YARN}),
    "qwen3": Case("Qwen3", {"head_dim": 32, "tie_word_embeddings": True, "num_key_value_heads": 1}),
    "gemma2": Case("Gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16,
                              "attn_logit_softcapping": 8.0, "final_logit_softcapping": 5.0}),
    "gemma3": Case("Gemma3Text", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16,
                                  "num_hidden_layers": 7, "final_logit_softcapping": 5.0, "rope_parameters": {
                                      "full_attention": {**_LINEAR, "rope_theta": 1000000.0},
                                      "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}}),
    "phi3": Case("Phi3", {"sliding_window": None}),
    "phi3-longrope": Case("Phi3", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 256,
                                   "max_position_embeddings": 512}, positions=320),
    "phi3-partial": Case("Phi3", {"sliding_window": 24, "tie_word_embeddings": True,
                                  "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                                      "partial_rotary_factor": 0.75}}, positions=24),
    "smollm3": Case("SmolLM3", {"num_hidden_layers": 5, "rope_parameters": {"rope_theta": 5000.0,
                                                                             "rope_type": "default"}}),
    "gpt2": Case("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_ctx": 128}),
}  # fmt: skip


def make_model(name: str, folder: Path, vocabulary: int, *, dtype: str = "float32") -> Path:
    """Write the model's configuration and weights beside whatever lies in ``folder``; the same at every call."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    case = CASES[name]
    sizes = {} if case.model == "GPT2" else _SIZES
    config = getattr(transformers, f"{case.model}Config")(**{**sizes, **case.changes, "vocab_size": vocabulary})
    classes = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}
    torch.manual_seed(0)
    model = getattr(transformers, classes.get(case.model, f"{case.model}ForCausalLM"))(config)
    with torch.no_grad():  # the initial weights are so small that every logit would look alike
        for parameter in model.parameters():
            parameter.normal_(0, 0.2) if parameter.dim() > 1 else parameter.uniform_(0.25, 0.75)
    model.to(getattr(torch, dtype)).save_pretrained(str(folder))
    return folder


def stories_tokenizer(stories: Path, folder: Path) -> int:
    """A SentencePiece tokenizer that the reference converter takes too; returns its size."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(stories / name, folder / name)
    return 512


def gpt2_tokenizer(vocabulary: Path, folder: Path) -> int:
    """GPT-2's own tokenizer, from llama.cpp's vocabulary file; returns its size."""
    from ingot.kit.gguf.reader import read_gguf
    from ingot.kit.gguf.tokenizer import write_tokenizer

    folder.mkdir(parents=True)
    metadata = read_gguf(vocabulary).metadata
    write_tokenizer(metadata, folder, max_length=1024)
    return len(metadata["tokenizer.ggml.tokens"])


_DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import convert_hf_to_gguf
for arguments in json.loads(sys.argv[2]):
    sys.argv = ["convert_hf_to_gguf.py", *arguments]
    convert_hf_to_gguf.main()
"""


def reference_convert(jobs: Sequence[tuple[Path, Path, str]]) -> None:
    """llama.cpp's converter on (folder, file, type) after another, in one process of its own."""
    arguments = [[str(folder), "--outfile", str(file), "--outtype", kind] for folder, file, kind in jobs]
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, str(llama_cpp_source()), json.dumps(arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def export(folder: Path, path: Path, kind: str) -> Path:
    """A GGUF of the model, each tensor mapped in the smallest blocks that its route allows; its tokens are numbers."""
    from ingot.kit import hf
    from ingot.kit.gguf.layout import gguf_layout
    from ingot.kit.gguf.writer import TensorInfo, f32s, i32s, text, texts, write_gguf

    layout = gguf_layout(hf.read_config(folder))
    numbers = {"F32": (0, torch.float32), "F16": (1, torch.float16), "BF16": (32, torch.bfloat16)}
    infos, data = [], []
    for name, tensor in layout.extra().items():
        infos.append(TensorInfo(name, tuple(tensor.shape), "F32"))
        data.append(memoryview(tensor.numpy()))
    tensors = dict(hf.iter_tensors(folder))
    for name, tensor in mapped(layout.names(), tensors).items():
        info = TensorInfo(name, tuple(tensor.shape), layout.plain_type(name, tensor.shape, kind))
        infos.append(info)
        data.append(memoryview(tensor.to(numbers[info.type][1]).flatten().view(torch.uint8).numpy()))
    count = sum(tensor.numel() for tensor in tensors.values())
    size = layout.sizes.vocabulary
    vocabulary = [
        text("tokenizer.ggml.model", "llama"),
        texts("tokenizer.ggml.tokens", ["<unk>", "<s>", "</s>", "<0x0A>", *map(str, range(4, size))]),
        f32s("tokenizer.ggml.scores", [0.0] * size),
        i32s("tokenizer.ggml.token_type", [2, 3, 3, 6, *[1] * (size - 4)]),
    ]
    write_gguf(path, [*layout.fields(numbers[kind][0], count), *vocabulary], infos, data)
    return path


def mapped(names: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All tensors through a transform, in the smallest blocks that each route allows."""
    kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    slots = [Slot(name, tuple(tensor.shape), kinds[tensor.dtype]) for name, tensor in tensors.items()]
    names.begin(slots)
    found = {}
    for slot in slots:
        for route in names.routes(slot):
            size = slot.rows if route.whole else route.grain
            starts = range(0, slot.rows, size)
            parts = [route.apply(tensors[slot.name][start : start + size], start) for start in starts]
            found[route.slot.name] = whole = torch.cat(parts).contiguous()
            assert (tuple(whole.shape), kinds[whole.dtype]) == (route.slot.shape, route.slot.dtype), route.slot
    names.finish()
    return found


def back(path: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The GGUF as a Hugging Face folder in float32, mapped in the smallest blocks; returns its tensors."""
    from ingot.kit import hf
    from ingot.kit.gguf.hf_view import GgufModel
    from ingot.kit.gguf.reader import read_gguf

    gguf = read_gguf(path)
    model = GgufModel(gguf)
    tensors = mapped(model.names(), {info.name: torch.from_numpy(gguf.dequantized(info)) for info in gguf.tensors})
    folder.mkdir()
    hf.write_json(folder / "config.json", model.config)
    hf.write_safetensors(folder / "model.safetensors", tensors)
    return tensors
