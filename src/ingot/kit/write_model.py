"""A trained model as a Hugging Face folder: its weights through the sink that streams write to, hashed on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ingot.core.stage import Metric, Progress
from ingot.errors import RefusedInput
from ingot.kit import hf
from ingot.kit.stream import pipeline
from ingot.kit.stream.cast import Cast
from ingot.kit.stream.memory_source import MemorySource
from ingot.kit.stream.nonfinite import RefuseNonFinite
from ingot.kit.stream.safetensors_sink import SafetensorsSink
from ingot.kit.stream.vocabulary import Route, Slot, Weights

#: What describes a tokenizer among the files of a folder.
_TOKENIZER_PARTS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "merges.txt", "vocab.txt", "*.model", "*.tiktoken", "tekken.json",
)  # fmt: skip


Dtypes = str | Mapping[str, torch.dtype]


@dataclass(frozen=True)
class _CastEach:
    """Rounds each tensor to the dtype of its name; see ``Cast``."""

    dtypes: Mapping[str, torch.dtype]

    def begin(self, slots: Sequence[Slot]) -> None:
        """See ``Transform``."""
        del slots

    def routes(self, slot: Slot) -> Sequence[Route]:
        """See ``Transform``."""
        return Cast(self.dtypes[slot.name]).routes(slot)

    def finish(self) -> None:
        """See ``Transform``."""


def write_weights(
    model: Any, out: Path, *, dtype: Dtypes, threads: int, watch: Progress | None = None
) -> SafetensorsSink:
    """Write a model's weights in the order of their names, tied ones once, in one dtype or each in that of its name.

    Equal weights give equal bytes. Returns what was written: records, tensor hashes, counts. RefusedInput: E-NONFINITE,
    E-DTYPE-RANGE.
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in sorted(model.named_parameters())}
    tensors |= {name: tensor.detach().cpu() for name, tensor in sorted(stored_buffers(model).items())}
    cast = Cast(hf.torch_dtype(dtype)) if isinstance(dtype, str) else _CastEach(dtype)
    weights = Weights(MemorySource(tensors), out, [RefuseNonFinite(), cast])
    sink = SafetensorsSink(out)
    pipeline.run(weights, [sink], threads=threads, watch=watch)
    return sink


def sizes(sink: SafetensorsSink) -> dict[str, Metric]:
    """The metrics of what was written."""
    return {
        "parameters": Metric(sink.parameters, "parameters", "elements of the tensors written, tied ones once"),
        "weight_bytes": Metric(sink.file_bytes, "B", "size of the safetensors files"),
    }


def stored_buffers(model: Any) -> dict[str, Any]:
    """The buffers that belong to a model's state: those that it computes by itself do not."""
    state = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name in state}


#: Written by old versions of transformers, which compute it today.
_COMPUTED = ".rotary_emb.inv_freq"


def refuse_other_names(model: Any, folder: Path) -> None:
    """Refuse a model whose weights lie in its folder under other names or in other pieces than transformers has them.

    RefusedInput (E-MODEL-ARCH): written as they are in memory, nobody could load them.
    """
    buffers = set(stored_buffers(model))
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)} | buffers
    single = {name for name, _ in model.named_parameters()} | buffers
    found = set(hf.tensor_names(folder))
    strange = sorted((single - found) | {name for name in found - known if not name.endswith(_COMPUTED)})
    if strange:
        raise RefusedInput(
            "E-MODEL-ARCH",
            f"transformers holds the weights of a {model.config.model_type} in other tensors than its folder does",
            facts=[f"{name}: {'only in memory' if name in single else 'only in the folder'}" for name in strange[:5]],
            hint="train it with an adapter, or use a model of another architecture",
        )


def copy_tokenizer(folder: Path, out: Path, *, context: int) -> None:
    """The files of a folder's tokenizer, for a model that reads ``context`` tokens."""
    names = sorted({path for pattern in _TOKENIZER_PARTS for path in folder.glob(pattern)})
    for path in names:
        hf.copy_side_file(path, out / path.name)
    config = out / "tokenizer_config.json"
    settings = hf.read_json_file(config) if config.exists() else {}
    hf.write_json(config, {**settings, "model_max_length": context})
