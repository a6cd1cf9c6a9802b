"""What is measured of a GGUF that was written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ingot.core.stage import Metric
from ingot.kit.gguf.check import Checked
from ingot.kit.gguf.export import Written
from ingot.kit.stream.vocabulary import Weights


@dataclass(frozen=True)
class Sizes:
    """Bytes of a file, of the tensors that were read for it, and of the model's as they flowed in; its parameters."""

    file: int
    read: int
    model: int
    parameters: int


def of_written(written: Written, weights: Weights, model_bytes: int, checked: Checked) -> dict[str, Metric]:
    """The metrics of a file that the exporter wrote. ``model_bytes``: see ``Sizes.model``."""
    sink = written.sink
    kinds = [choice.type for choice in sink.choices.values()] + ["F32"] * len(sink.content.extra)
    read = sum(slot.nbytes for slot in weights.source.slots)
    method = "matrices whose rows are no whole number of blocks of the type they would have"
    found = of_file(Sizes(sink.bytes_written, read, model_bytes, sink.parameters), kinds, checked)
    return found | _reused(written) | {"fallback_tensors": Metric(len(written.fallbacks), "1", method)}


def notes_of(written: Written, limits: Sequence[str]) -> dict[str, object]:
    """What is to be told beside numbers: tensors of another type than the file's, what llama.cpp does otherwise."""
    found: dict[str, object] = {}
    if written.fallbacks:
        found["fallbacks"] = written.fallbacks
    if limits:
        found["limits"] = list(limits)
    return found


def _reused(written: Written) -> dict[str, Metric]:
    if not written.taken:
        return {}
    size = sum(making.nbytes for making in written.taken)
    method = "processor time of encoding them when that was done, less the time of copying them"
    return {
        "reused_tensors": Metric(len(written.taken), "1", "quantized tensors copied from earlier results"),
        "reused_bytes": Metric(size, "B", "bytes of these tensors"),
        "saved_s": Metric(written.saved_s, "s", method),
    }


def of_file(sizes: Sizes, kinds: Sequence[str], checked: Checked) -> dict[str, Metric]:
    """The metrics of any file."""
    size, compressed = sizes.file, "bytes of the model's tensors as they flowed in, over bytes of the file or its parts"
    return {
        "bytes": Metric(size, "B", "size of the file, or of its parts"),
        "bytes_written": Metric(size, "B", "bytes written, each once"),
        "bytes_read": Metric(sizes.read, "B", "data of the tensors that it was made from, read once"),
        "parameters": Metric(sizes.parameters, "parameters", "weights of the source model, counted"),
        "bits_per_weight": Metric(8 * size / sizes.parameters, "1", "bits of the whole file over the parameters"),
        "compression": Metric(sizes.model / size, "1", compressed),
        "probe_texts": Metric(
            checked.texts, "1", "texts on which llama.cpp and the Hugging Face tokenizer gave equal ids"
        ),
        "load_s": Metric(checked.load_seconds, "s", "time for llama.cpp to open the file, once, page cache warm"),
        **{
            f"tensors_{name.lower()}": Metric(count, "1", f"tensors of type {name} in the file")
            for name, count in sorted(Counter(kinds).items())
        },
    }
