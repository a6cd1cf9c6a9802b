"""A Llama-shaped model from scratch: its config, its seeded weights, and the tokenizer that gives its vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ingot.errors import RefusedInput
from ingot.kit import hf
from ingot.kit.train.distill import size_of

#: Added to the mean square under the root of a norm; that of Llama 3 and SmolLM2.
_EPS = 1e-5


def rows_for(tokenizer: Any, wanted: int | None) -> int:
    """Rows of the embedding: one a token, or ``wanted``. RefusedInput (E-STUDENT-VOCABULARY) where these are fewer."""
    needed = size_of(tokenizer)
    if wanted is not None and wanted < needed:
        raise RefusedInput(
            "E-STUDENT-VOCABULARY",
            f"'vocabulary: {wanted}' has no row for every token of the tokenizer",
            facts=[f"the tokenizer has {needed} tokens"],
            hint="leave 'vocabulary' out, or train a smaller tokenizer ('vocab_size')",
        )
    return needed if wanted is None else wanted


def new_model(sizes: Mapping[str, Any], rows: int, tokenizer: Any, *, deviation: float, seed: int) -> Any:
    """A LlamaForCausalLM in float32 with normal weights of ``deviation``: equal bytes for equal seeds.

    ``sizes`` are fields of config.json (``Shape.config``).
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=rows,
        rms_norm_eps=_EPS,
        initializer_range=deviation,
        attn_implementation="eager",
        **sizes,
        **token_ids(tokenizer),
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


def token_ids(tokenizer: Any) -> dict[str, int]:
    """The ids of the tokens with a role, as config.json names them."""
    found = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "pad")}
    return {name: index for name, index in found.items() if index is not None}


def write_configs(model: Any, out: Path, *, dtype: str) -> None:
    """config.json and generation_config.json."""
    config = {**model.config.to_diff_dict(), "architectures": [type(model).__name__], "dtype": dtype}
    hf.write_json(out / "config.json", config)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    hf.write_json(out / "generation_config.json", {name: config[name] for name in names if name in config})
