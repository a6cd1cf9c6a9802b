"""From a plain model and a wish to quantized weights that flow, and from what was written to what is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ingot.core.stage import Done, Given, Metric, Progress
from ingot.kit import device, hf, layers, oneshot
from ingot.kit.calibration import read_texts
from ingot.kit.quant import bnb, reload
from ingot.kit.quant.calibrated import PROBE, Fit, Fitted, Instead, Texts, fit
from ingot.kit.quant.choose import Choice, Wish, check_shapes, choose, modules_of
from ingot.kit.quant.reload import Meant
from ingot.kit.quant.rounding import Known, Rounding, Seen, Sums
from ingot.kit.quant.scheme import BITSANDBYTES, CAST_DTYPES, CASTS
from ingot.kit.stream.chain import slots
from ingot.kit.stream.inputs import open_input, side_folder, written
from ingot.kit.stream.vocabulary import Counted, Slot, Weights


@dataclass(frozen=True)
class Settings:
    """A quantization: what is wished, how weights are fitted (None: to nearest), on what, and where.

    ``keep``: whether decoded weights are held for the comparison of a model that is small enough.
    """

    wish: Wish
    fit: Fit | None
    documents: int
    max_length: int
    device: str
    finite: bool
    keep: bool


@dataclass
class Flow:
    """Weights that flow, and what they must read back as."""

    weights: Weights
    meant: Meant


def flow(settings: Settings, given: Given, progress: Progress) -> Flow:
    """The quantized model. RefusedInput: see ``Quantize.run``."""
    passed: dict[str, Any] = {}
    where = device.resolve(settings.device) if settings.fit else torch.device("cpu")
    if settings.fit is not None:
        given, passed = written(given, "model", progress)
    weights = open_input(given, "model", progress, finite=settings.finite)
    folder = weights.folder
    layers.refuse_quantized(folder, "quantize")
    found = slots(weights)
    choice = choose(modules_of(folder, {slot.name for slot in found}), settings.wish)
    check_shapes(choice, found)
    seen = Seen(whole=settings.keep and 4 * sum(slot.elements for slot in found) <= reload.WHOLE)
    sums, meant = Sums(), Meant(choice.schemes, seen)
    extra: dict[str, Metric] = {}
    notes: dict[str, object] = {}
    known: Mapping[str, Known] = {}
    if settings.fit is not None:
        fitted, texts = _fit(settings, choice, given, where, progress)
        weights.chain.append(Instead(fitted, sums))
        meant = replace(meant, model=fitted.model, ids=texts[0], fitted=frozenset(fitted.known))
        extra, known = _told(fitted, texts), fitted.known
        notes = {"method": settings.fit.method, **device.described(where)}
        notes["dtype"] = str(fitted.model.dtype).removeprefix("torch.")
    config, dtype = _config(hf.read_config(folder), choice, settings.wish)
    rounding = Rounding(choice.schemes, dtype, known, _apart(choice), sums, seen)
    four_or_eight = choice.having(BITSANDBYTES)
    side = side_folder(given)
    layers.copy_model_files(folder, side, config=config)
    progress.phase("quantize")
    weights.chain.append(bnb.BnbRounding(four_or_eight, rounding, sums, seen) if four_or_eight else rounding)
    weights.folder = side
    weights.passed |= passed
    weights.measure = lambda counted: Done(_metrics(sums, counted, found, choice) | extra, notes=notes)
    return Flow(weights, meant)


def _apart(choice: Choice) -> tuple[str, str] | None:
    return None if choice.apart is None else (f"{choice.modules.tied}.weight", f"{choice.apart}.weight")


def _config(config: dict[str, Any], choice: Choice, wish: Wish) -> tuple[dict[str, Any], torch.dtype | None]:
    """config.json of the result, and the dtype of all that is not quantized (None: as it comes)."""
    value, dtype = dict(config), None
    if wish.scheme.name in CASTS:
        name = CAST_DTYPES[wish.scheme.name]
        value, dtype = {**value, "dtype": name}, hf.torch_dtype(name)
        value.pop("torch_dtype", None)
    if choice.apart is not None:
        value["tie_word_embeddings"] = False
    quantization = choice.config()
    if bits := choice.having(BITSANDBYTES):
        stated = str(value.get("dtype") or value.get("torch_dtype") or "float16")
        skip = [name for name in choice.modules.linear if name not in bits]
        quantization = bnb.quantization_config(wish.scheme.name, stated, skip)
    return (value if quantization is None else {**value, "quantization_config": quantization}), dtype


def _fit(
    settings: Settings, choice: Choice, given: Given, where: torch.device, progress: Progress
) -> tuple[Fitted, Sequence[Sequence[int]]]:
    assert settings.fit is not None
    progress.phase("read the calibration documents")
    model = given.one("model")
    texts = read_texts(
        given.one("calibration"), hf.load_tokenizer(model),
        documents=settings.documents, max_length=settings.max_length,
    )  # fmt: skip
    linear = {name: scheme for name, scheme in choice.schemes.items() if name in choice.modules.linear}
    chosen = {name: scheme for name, scheme in linear.items() if scheme.name not in (*CASTS, "FP8")}
    if settings.fit.method == "awq":
        chosen = {name: scheme for name, scheme in chosen.items() if scheme.packed}
    to = Texts(texts, oneshot.Settings(where, given.threads), progress)
    return fit(model, chosen, settings.fit, to), texts


def _told(fitted: Fitted, texts: Sequence[Sequence[int]]) -> dict[str, Metric]:
    found = {
        "calibration_documents": Metric(len(texts), "documents", "calibration documents that gave tokens"),
        "calibration_tokens": Metric(sum(map(len, texts)), "tokens", "tokens of these documents that the model read"),
    }
    if fitted.smoothing is not None:
        how = "largest absolute difference of the fp32 logits that the factors made, before anything was rounded"
        found["smoothing_difference"] = Metric(fitted.smoothing[0], "1", how, n=len(texts[0][:PROBE]))
    return found


def _metrics(sums: Sums, counted: Counted, found: Sequence[Slot], choice: Choice) -> dict[str, Metric]:
    """The metrics of the whole; ``found`` are the input's tensors, whose elements are the parameters."""
    parameters, before = sum(slot.elements for slot in found), sum(slot.nbytes for slot in found)
    size = counted.file_bytes
    names = sorted({scheme.name for scheme in choice.schemes.values()})
    metrics = {
        "weight_bytes": Metric(size, "B", "size of the safetensors files"),
        "bits_per_weight": Metric(size * 8 / parameters, "bits", "size of the files over all parameters"),
        "compression": Metric(before / size, "1", "bytes of the input's tensors over those of the files"),
    }
    for name in names:
        metrics[f"layers_{name.lower()}"] = Metric(
            sum(scheme.name == name for scheme in choice.schemes.values()), "1", f"modules stored as {name}"
        )
    quantized = [parts for name in names if name not in CASTS for parts in sums.of(name).values()]
    error = "Frobenius norm of the error over that of these weights, decoded from what was written"
    if quantized:
        count = sum(part.count for parts in quantized for part in parts)
        metrics["quantized_layers"] = Metric(len(quantized), "1", "modules with weights of 8 bits or fewer")
        metrics["quantized_parameters"] = Metric(count, "parameters", "weights of these modules")
    if sums.of():
        metrics["relative_error"] = Metric(sums.relative_error(), "1", error)
    if len(names) > 1:
        metrics |= {
            f"relative_error_{name.lower()}": Metric(sums.relative_error(name), "1", f"of the weights stored as {name}")
            for name in names
            if sums.of(name)
        }
    if sums.worst is not None:
        metrics["max_error_steps"] = Metric(
            sums.worst, "1", "largest |w − dequantized w| over its scale, decoded from what was written"
        )
    return metrics


def proved(flow: Flow, done: Done, out: Path, progress: Progress) -> Done:
    """What is told of a checkpoint that reads back as it was meant. StageFailed (E-QUANTIZE-RELOAD)."""
    progress.phase("load it again")
    return replace(done, metrics={**done.metrics, **reload.prove(out, flow.meant)})
