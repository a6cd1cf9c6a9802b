"""What is measured of a GGUF that was written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ingot.core.stage import Metric
from ingot.kit.gguf.check import Checked
from ingot.kit.gguf.export import Written
from ingot.kit.stream.vocabulary import Weights


def of_written(written: Written, weights: Weights, checked: Checked) -> dict[str, Metric]:
    """The metrics of a file that the exporter wrote."""
    sink = written.sink
    kinds = [choice.type for choice in sink.choices.values()] + ["F32"] * len(sink.content.extra)
    read = sum(slot.nbytes for slot in weights.source.slots)
    method = "matrices whose rows are no whole number of blocks of the type they would have"
    found = of_file((sink.bytes_written, read, sink.parameters), kinds, checked)
    return found | _reused(written) | {"fallback_tensors": Metric(len(written.fallbacks), "1", method)}


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


def of_file(counts: tuple[int, int, int], kinds: Sequence[str], checked: Checked) -> dict[str, Metric]:
    """The metrics of any file. ``counts``: its bytes, those of the tensors that were read, the model's weights."""
    size, read, parameters = counts
    return {
        "bytes": Metric(size, "B", "size of the file, or of its parts"),
        "bytes_written": Metric(size, "B", "bytes written, each once"),
        "bytes_read": Metric(read, "B", "data of the tensors that it was made from, read once"),
        "parameters": Metric(parameters, "parameters", "weights of the source model, counted"),
        "bits_per_weight": Metric(8 * size / parameters, "1", "bits of the whole file over the parameters"),
        "probe_texts": Metric(
            checked.texts, "1", "texts on which llama.cpp and the Hugging Face tokenizer gave equal ids"
        ),
        "load_s": Metric(checked.load_seconds, "s", "time for llama.cpp to open the file, once, page cache warm"),
        **{
            f"tensors_{name.lower()}": Metric(count, "1", f"tensors of type {name} in the file")
            for name, count in sorted(Counter(kinds).items())
        },
    }
