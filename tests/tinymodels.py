"""Small models, adapters and data sets for the tests of training and compression."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from ingot.core.digest import canonical_json, sha256_bytes

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def llama(**changes: Any) -> Any:
    """A random Llama of two layers, the same at every call."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256}
    config = LlamaConfig(**{**sizes, **heads, "tie_word_embeddings": False, **changes})
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config).eval()


def save(model: Any, folder: Path, dtype: torch.dtype = torch.float32, **more: Any) -> Path:
    """Save a model as transformers does; ``more`` goes to ``save_pretrained``."""
    model.to(dtype).save_pretrained(folder, **more)
    return folder


def logits(model: Any, vocabulary: int = 96) -> torch.Tensor:
    """The logits of a fixed row of tokens, fp32."""
    ids = torch.arange(40)[None] * 7 % vocabulary
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return found


def peft_adapter(model: Any, folder: Path, **options: Any) -> Any:
    """A PEFT LoRA adapter with random matrices, saved to ``folder``; returns the wrapped model."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    wrapped = get_peft_model(model, LoraConfig(**{**settings, **options}))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.add_(torch.randn(weight.shape) * 0.05)
    wrapped.save_pretrained(folder)
    return wrapped.eval()


def chat_model(stories: Path, folder: Path) -> Path:
    """The trained 260 K-parameter model with a chat template."""
    shutil.copytree(stories, folder, ignore=shutil.ignore_patterns("*.gguf", "SOURCE*", "LICENSE*"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    return folder


def copy_model(source: Path, target: Path) -> Path:
    """A model that can be changed."""
    target.mkdir()
    for name in (
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        shutil.copyfile(source / name, target / name)
        (target / name).chmod(0o644)
    return target


def lettered(stories: Path, folder: Path) -> Path:
    """The model with a tokenizer that knows no merges: more tokens for the same text."""
    other = copy_model(stories, folder)
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = []
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return other


def dataset(folder: Path, train: int = 40, held_out: int = 12) -> Path:
    """Chat rows of one simple kind, so that a few steps are enough to learn something."""
    folder.mkdir()
    names = ("Tom", "Lily", "Max", "Mia", "Ben", "Sue", "Sam", "Ann")
    things = ("ball", "box", "cat", "hat", "car", "tree", "bird")
    texts = [f"{name} has a red {thing}. {name} likes the {thing}." for name in names for thing in things]
    for split, part in (("train", texts[:train]), ("eval", texts[train : train + held_out])):
        rows = []
        for text in part:
            messages = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": text}]
            content = {"messages": messages}
            rows.append({"id": sha256_bytes(canonical_json(content))[:16], **content})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def state(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model folder."""
    from ingot.kit import hf

    return dict(hf.iter_tensors(folder))
