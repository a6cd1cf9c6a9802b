"""Hugging Face folders, run by transformers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ingot.kit import device as devices
from ingot.kit import hf, layers, sparsity
from ingot.kit.backends import SEGMENT, Next, segments
from ingot.kit.backends.words import Words


class HfBackend(Words):
    """A Hugging Face model computed in ``dtype``; weights stored narrower are widened, never rounded again."""

    container = "hf"

    def __init__(
        self, folder: Path, *, dtype: str, threads: int, attention: str = "eager", device: str = "cpu"
    ) -> None:
        torch.set_num_threads(threads)
        self.device = devices.resolve(device)
        self.gpu = devices.uuid(self.device)
        config = hf.read_config(folder)
        self.precision = precision(folder, config)
        self.bytes = sum(path.stat().st_size for path in hf.tensor_files(folder))
        super().__init__(hf.load_tokenizer(folder))
        self.model = hf.load_model(folder, dtype, attention=attention).to(self.device)
        # of the architecture: a quantized folder also holds scales and shapes
        weights = sum(parameter.numel() for parameter in layers.skeleton(folder).parameters())
        self.parameters = weights - _repeated(self.model)
        self.context = int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 40)
        self.runtime = f"transformers computing in {dtype}{devices.words(self.device)}"
        self._cache: Any = None
        self._ends = _ends(self.model, self.tokenizer)

    def zeros(self) -> tuple[int, int]:
        """How many weights of the linear layers are zero, the output layer's left out, and of how many."""
        weights = [self.model.get_submodule(name).weight for name in layers.linear_modules(self.model)]
        return sum(map(sparsity.zeros, weights)), sum(weight.numel() for weight in weights)

    def ends(self, token: int) -> bool:
        """Whether transformers' ``generate`` stops at this token, or the tokenizer calls it the end."""
        return token in self._ends

    def logits(self, ids: Sequence[int], first: int) -> Iterator[torch.Tensor]:
        """Logits that predict ``ids[first:]``; only those positions go through the output layer."""
        cache: Any = None
        for start, stop, kept in segments(len(ids), first):
            keep = torch.tensor(list(kept), device=self.device) if kept else 1
            output = self._forward(ids[start:stop], cache, keep, more=stop < len(ids) - 1)
            cache = output.past_key_values
            if kept:
                yield output.logits[0].float().cpu()

    def prefill(self, ids: Sequence[int]) -> Next:
        """Read a prompt into an empty cache; the logits of the next token."""
        self._cache = None
        return self._advance(ids)

    def step(self, token: int) -> Next:
        """Append one token; the logits of the next one."""
        return self._advance([token])

    def resumed(self, ids: Sequence[int], kept: int, first: int) -> Iterator[torch.Tensor]:
        """Logits that follow ``ids[first:]``; the first ``kept`` ids, those that were read last, are not read again."""
        for start in range(self._keep(kept), len(ids), SEGMENT):
            part = ids[start : start + SEGMENT]
            wanted = min(len(part), start + len(part) - first)
            output = self._forward(part, self._cache, max(wanted, 1), more=True)
            self._cache = output.past_key_values
            if wanted > 0:
                yield output.logits[0].float().cpu()

    def _keep(self, count: int) -> int:
        """Forget all but so many tokens; how many are left: none where a cache cannot be cut (windows, states)."""
        layers = getattr(self._cache, "layers", ())
        if count and layers and all(type(layer).__name__ == "DynamicLayer" for layer in layers):
            if more := self._cache.get_seq_length() - count:
                self._cache.crop(-more)
            return count
        self._cache = None
        return 0

    def _advance(self, ids: Sequence[int]) -> Next:
        output = self._forward(ids, self._cache, 1, more=True)
        self._cache = output.past_key_values
        row: Next = output.logits[0, -1].float().cpu().numpy()
        return row

    def _forward(self, ids: Sequence[int], cache: Any, keep: torch.Tensor | int, *, more: bool) -> Any:
        with torch.inference_mode():
            return self.model(
                input_ids=torch.tensor([list(ids)], device=self.device),
                past_key_values=cache,
                use_cache=more or cache is not None,
                logits_to_keep=keep,
            )


def _repeated(model: Any) -> int:
    """Elements of an output layer that says the embedding once more: both were one until they were quantized."""
    inner, head = model.get_input_embeddings(), model.get_output_embeddings()
    one, other = getattr(inner, "weight", None), getattr(head, "weight", None)
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor) or one is other:
        return 0
    return other.numel() if one.dtype == other.dtype and one.equal(other) else 0


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: those of the model's generation settings, and the tokenizer's."""
    found = getattr(model.generation_config, "eos_token_id", None)
    ends = found if isinstance(found, list) else [found]
    return frozenset(int(token) for token in (*ends, tokenizer.eos_token_id) if token is not None)


def precision(folder: Path, config: dict[str, Any]) -> str:
    """How the weights are stored, read from the folder: a quantization scheme (``W8A16``) or a dtype's name.

    Of several dtypes it is the one that holds the most bytes; where schemes leave out linear layers, as one that is
    for the embeddings alone does, the dtype of these is told beside them (``W8A16+float16``).
    """
    scheme = config.get("quantization_config")
    if isinstance(scheme, dict):
        groups = scheme.get("config_groups")
        found = sorted({_scheme(group) for group in groups.values()}) if isinstance(groups, dict) else []
        plain = [_largest(folder, left)] if found and (left := _plain_linear(folder)) else []
        return "+".join(found + plain) or _bitsandbytes(scheme) or str(scheme.get("quant_method", "quantized"))
    return _largest(folder, None)


def _plain_linear(folder: Path) -> set[str]:
    """The weights of linear layers that have no scales."""
    there = set(hf.tensor_names(folder))
    return {f"{it}.weight" for it in layers.linear_weights(folder, there) if f"{it}.weight_scale" not in there}


def _largest(folder: Path, names: Collection[str] | None) -> str:
    """The dtype that holds the most bytes of these tensors (None: of all)."""
    sizes: Counter[str] = Counter()
    for _, entry in hf.entries(folder):
        if names is None or entry.name in names:
            sizes[entry.dtype] += entry.end - entry.begin
    largest = max(sorted(sizes), key=sizes.__getitem__, default="")
    return {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(largest, largest)


def _bitsandbytes(config: dict[str, Any]) -> str:
    if config.get("load_in_4bit"):
        return str(config.get("bnb_4bit_quant_type", "fp4")).upper()
    return "INT8" if config.get("load_in_8bit") else ""


def _scheme(group: Any) -> str:
    weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
    if weights.get("type") == "float":
        return f"FP{weights.get('num_bits', '?')}"
    return f"W{weights.get('num_bits', '?')}A{inputs.get('num_bits', 16)}"
