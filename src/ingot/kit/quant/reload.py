"""Proof of what was written: transformers loads it, finds each weight that was meant, and computes the same logits.

A model whose weights fill at most ``WHOLE`` bytes as fp32 is loaded whole. Of a larger one every tensor's name and
shape is compared with what the library expects for its config.json, and every quantized weight is decoded from the
files once more, one at a time, by the scheme that the library finds for it, and compared with what was meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ingot.core.stage import Metric
from ingot.errors import StageFailed
from ingot.kit import hf, layers
from ingot.kit.quant.calibrated import PROBE, logits
from ingot.kit.quant.plain import PlainSource, quantization
from ingot.kit.quant.rounding import Seen, digest_of
from ingot.kit.quant.scheme import CAST_DTYPES, Scheme

#: The most bytes of a model as fp32 that are held in memory for the comparison of logits.
WHOLE = 1 << 30
#: Largest difference of logits over the largest logit, both computed in fp32: weights alone are equal, so only the
#: order of sums may differ; where inputs are rounded while it runs, a value that lies between two steps may fall to
#: either side.
WEIGHTS_BOUND, INPUTS_BOUND = 1e-4, 2e-2


@dataclass
class Meant:
    """What must come back: the weights decoded on the way, and the model in memory, if there is one.

    ``ids`` are the tokens whose logits are compared; the weights of modules in ``fitted`` are the model's own, not what
    was decoded.
    """

    schemes: Mapping[str, Scheme]
    seen: Seen
    model: Any = None
    ids: Sequence[int] = ()
    fitted: frozenset[str] = frozenset()


def prove(folder: Path, meant: Meant) -> dict[str, Metric]:
    """Compare what was written with what was meant. StageFailed (E-QUANTIZE-RELOAD)."""
    return _whole(folder, meant) if meant.seen.whole else _by_weight(folder, meant)


def _failed(what: str, facts: Sequence[str]) -> StageFailed:
    return StageFailed("E-QUANTIZE-RELOAD", f"the checkpoint does not give back what was meant: {what}", facts=facts)


def _whole(folder: Path, meant: Meant) -> dict[str, Metric]:
    loaded, report = hf.load_with_report(folder)
    bad = {kind: sorted(map(str, names)) for kind, names in report.items() if names and kind.endswith("_keys")}
    if bad:
        raise _failed(
            "transformers finds other tensors", [f"{kind}: {', '.join(some[:4])}" for kind, some in bad.items()]
        )
    for name in _weights(meant):
        weight = loaded.get_submodule(name).weight.data
        if not weight.equal(meant.seen.weight(f"{name}.weight").to(weight.dtype)):
            raise _failed(f"{name!r} loads as other weights", [f"scheme {meant.schemes[name]}"])
    loaded = loaded.float()
    ids = list(meant.ids) or _fixed_ids(loaded.config)
    found = logits(loaded, ids)
    del loaded
    model = _in_memory(folder, meant) if meant.model is not None else _rebuilt(folder, meant)
    with _inputs_rounded(model, meant.schemes):
        wanted = logits(model, ids)
    difference, largest = float((found - wanted).abs().max()), float(wanted.abs().max())
    inputs = any(scheme.name in {"W8A8", "FP8"} for scheme in meant.schemes.values())
    allowed = (INPUTS_BOUND if inputs else WEIGHTS_BOUND) * max(1.0, largest)
    if not difference <= allowed:
        facts = [f"largest difference of the logits {difference:.3g}, allowed {allowed:.3g}"]
        raise _failed("its logits are others", facts)
    how = "largest absolute difference of the fp32 logits of what transformers loads from those of the model in memory"
    return {"reload_difference": Metric(difference, "1", how, n=len(ids[:PROBE]))} | _counted(meant)


def _weights(meant: Meant) -> list[str]:
    return sorted({name.removesuffix(".weight") for name, _ in meant.seen.hashes})


def _counted(meant: Meant) -> dict[str, Metric]:
    how = "quantized weights that read back from the files bit for bit as they were meant"
    return {"reloaded_weights": Metric(len(_weights(meant)), "1", how)}


def _fixed_ids(config: Any) -> list[int]:
    length = min(64, int(getattr(config, "max_position_embeddings", 64) or 64))
    generator = torch.Generator().manual_seed(0)
    return [int(token) for token in torch.randint(config.get_text_config().vocab_size, (length,), generator=generator)]


def _in_memory(folder: Path, meant: Meant) -> Any:
    """The fitted model in the dtype in which it is stored, rounded to nearest where that was meant."""
    stored = hf.read_config(folder).get("dtype") or hf.read_config(folder).get("torch_dtype") or "float32"
    model, dtype = meant.model, hf.torch_dtype(str(stored))
    with torch.no_grad():
        # Not ``model.to``: it would round the rotary frequencies, too, which no file holds.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        for name, scheme in meant.schemes.items():
            if scheme.name in CAST_DTYPES:
                weight = model.get_submodule(name).weight
                # In place: an output embedding that shares it is rounded with it, as in the files.
                weight.copy_(weight.to(hf.torch_dtype(CAST_DTYPES[scheme.name])))
        for name in set(_weights(meant)) - meant.fitted:
            weight = meant.seen.weight(f"{name}.weight")
            if name in meant.schemes and weight.shape == model.get_submodule(name).weight.shape:
                model.get_submodule(name).weight = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
    return model.float()


def _rebuilt(folder: Path, meant: Meant) -> Any:
    """The architecture with plain weights: the quantized ones as they were decoded on the way, others as written."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(
        config, trust_remote_code=False, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    chosen = _weights(meant)
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in hf.iter_tensors(folder):
            if name in state and name.removesuffix(".weight") not in chosen:
                state[name].copy_(tensor.to(stored))
        for name in chosen:
            state[f"{name}.weight"].copy_(meant.seen.weight(f"{name}.weight").to(stored))
    return model


@contextmanager
def _inputs_rounded(model: Any, schemes: Mapping[str, Scheme]) -> Iterator[None]:
    """While it is open, the inputs of layers whose scheme says so are rounded, one scale a token."""
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(_rounder(scheme))
        for name, scheme in schemes.items()
        if scheme.name in {"W8A8", "FP8"}
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rounder(scheme: Scheme) -> Any:
    def rounded(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        peak = inputs[0].abs().amax(dim=-1, keepdim=True).clamp(min=1e-12)
        if scheme.floating:
            scale = peak / 448
            return ((inputs[0] / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(inputs[0].dtype) * scale,)
        scale = peak / 127.5
        return ((inputs[0] / scale).round().clamp(-128, 127) * scale,)

    return rounded


def _by_weight(folder: Path, meant: Meant) -> dict[str, Metric]:
    wanted, found = expected_tensors(folder), {entry.name: tuple(entry.shape) for _, entry in hf.entries(folder)}
    if wanted is not None:
        off = sorted(name for name in found if wanted.get(name) != found[name])
        off += sorted(name for name in wanted if name not in found)
        if off:
            facts = [f"{name}: {found.get(name)} in the files, {wanted.get(name)} expected" for name in off[:4]]
            raise _failed("the library expects other tensors", facts)
    if quantization(hf.read_config(folder)) is None:
        return _counted(meant)
    source = PlainSource(folder)
    places = {slot.name: index for index, slot in enumerate(source.slots)}
    for module in _weights(meant):
        name = f"{module}.weight"
        tensor = source.tensor(places[name])
        for start, (rows, digest) in meant.seen.of(name).items():
            if digest_of(tensor[start : start + rows]) != digest:
                raise _failed(f"{name!r} reads as other weights", [f"rows {start} to {start + rows - 1}"])
    return _counted(meant)


def expected_tensors(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Name and shape of every tensor that compressed-tensors expects for a config.json; None for another format.

    The model is on the meta device: nothing is held.
    """
    config = hf.read_config(folder).get("quantization_config")
    if not config or config.get("quant_method") != "compressed-tensors":
        return None
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    model = layers.skeleton(folder)
    quantization_config = QuantizationConfig.model_validate(config)
    apply_quantization_config(model, quantization_config, show_progress=False)
    ModelCompressor(quantization_config=quantization_config).compress_model(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    head = layers.output_module(folder)
    if model.config.get_text_config().tie_word_embeddings and head is not None:
        shapes.pop(f"{head}.weight", None)
    return shapes
