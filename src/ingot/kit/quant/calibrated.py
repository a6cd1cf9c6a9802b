"""GPTQ and AWQ: weights that were fitted to calibration texts before they are written, by llm-compressor.

GPTQ (Frantar et al. 2023) rounds a column at a time and corrects the columns after it for what the rounding did to the
layer's output; it gives weights on the grid of scales that it found. AWQ (Lin et al. 2023) divides the inputs of some
layers by a factor each, and multiplies the columns of the weights by it, so that the columns with large inputs lose
less when they are rounded to nearest afterwards. The model computes the same as before, which is checked here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ingot.core.stage import Progress
from ingot.errors import RefusedInput, StageFailed
from ingot.kit import hf, oneshot
from ingot.kit.quant.rounding import Known, Part, Sums
from ingot.kit.quant.scheme import Scheme
from ingot.kit.stream.vocabulary import TORCH_DTYPES, Route, Slot, unchanged

#: Of the largest logit: what AWQ's factors may change in fp32, where they only change the order of rounding.
SMOOTHING_BOUND = 1e-3
#: What the library adds to a module.
_ATTRIBUTES = ("quantization_scheme", "quantization_status", "weight_observer")
_PARAMETERS = ("weight_scale", "weight_zero_point")
#: Tokens of the text on which logits are compared.
PROBE = 128


@dataclass(frozen=True)
class Fit:
    """How weights are fitted: the method, and the numbers of GPTQ."""

    method: str
    act_order: bool = True
    damping: float = 0.01


@dataclass
class Fitted:
    """A model in memory whose weights were fitted. ``known`` holds the scales and zero points that GPTQ found.

    ``smoothing``: the largest difference of the logits that AWQ's factors made, and the largest logit.
    """

    model: Any
    schemes: Mapping[str, Scheme]
    known: Mapping[str, Known] = field(default_factory=dict)
    smoothing: tuple[float, float] | None = None


@dataclass(frozen=True)
class Texts:
    """What weights are fitted to, and how it is computed: token ids, device and threads, and who is told."""

    ids: Sequence[Sequence[int]]
    settings: oneshot.Settings
    progress: Progress


def fit(folder: Path, schemes: Mapping[str, Scheme], how: Fit, texts: Texts) -> Fitted:
    """Fit the weights of the linear layers ``schemes`` to the texts.

    StageFailed: E-QUANTIZE-AWQ (the model with factors computes something else), E-ONESHOT.
    """
    texts.progress.phase(f"fit the weights ({how.method})")
    return _gptq(folder, schemes, how, texts) if how.method == "gptq" else _awq(folder, schemes, texts)


def _gptq(folder: Path, schemes: Mapping[str, Scheme], how: Fit, texts: Texts) -> Fitted:
    model = hf.load_model(folder)
    order = "static" if how.act_order else None
    # no batches of equal shapes: their sums would depend on how much memory a GPU has
    modifier = oneshot.modifier(
        "gptq", "GPTQModifier", config_groups=_groups(schemes), actorder=order, dampening_frac=how.damping,
        batched_quantization=None,
    )  # fmt: skip
    oneshot.apply(model, texts.ids, [modifier], texts.settings, texts.progress)
    known: dict[str, Known] = {}
    for name, scheme in schemes.items():
        module = model.get_submodule(name)
        zero = None if scheme.symmetric else module.weight_zero_point.detach().cpu()
        known[name] = module.weight_scale.detach().cpu(), zero
    _plain(model, schemes)
    return Fitted(model.cpu(), schemes, known)


def _awq(folder: Path, schemes: Mapping[str, Scheme], texts: Texts) -> Fitted:
    model = hf.load_model(folder, "float32")
    before = logits(model, texts.ids[0])
    modifiers = [
        oneshot.modifier("transform.awq", "AWQModifier"),
        oneshot.modifier("quantization", "QuantizationModifier", config_groups=_groups(schemes)),
    ]
    with _unpinned():
        oneshot.apply(model, texts.ids, modifiers, texts.settings, texts.progress)
    _plain(model, schemes)
    model = model.cpu()
    after = logits(model, texts.ids[0])
    difference, largest = float((after - before).abs().max()), float(before.abs().max())
    if not difference <= SMOOTHING_BOUND * max(1.0, largest):
        raise StageFailed(
            "E-QUANTIZE-AWQ",
            "the model computes something else once AWQ's factors are in it",
            facts=[f"largest difference of the logits {difference:.3g}, largest logit {largest:.3g}"],
            hint="use 'method: gptq', which needs to know nothing of the architecture",
        )
    return Fitted(model, schemes, smoothing=(difference, largest))


def _groups(schemes: Mapping[str, Scheme]) -> dict[str, Any]:
    groups = {}
    for at, scheme in enumerate(sorted(set(schemes.values()), key=str)):
        value = scheme.group([name for name, found in schemes.items() if found == scheme])
        groups[f"group_{at}"] = {key: item for key, item in value.items() if key != "format"}
    return groups


def _plain(model: Any, schemes: Mapping[str, Scheme]) -> None:
    """Take off what quantizes while the model runs: what is left computes with the weights as they are."""
    for name in schemes:
        module = model.get_submodule(name)
        module.__dict__.pop("forward", None)
        for what in (*_ATTRIBUTES, *_PARAMETERS):
            if hasattr(module, what):
                delattr(module, what)


@contextlib.contextmanager
def _unpinned() -> Iterator[None]:
    """AWQModifier pins what it caches in page-locked memory, also where there is no accelerator to copy it to.

    Without one, torch answers that with "Cannot access accelerator device when none is available". Nothing is gained
    by pinning there, so it is left out.
    """
    if torch.accelerator.is_available():
        yield
        return
    from llmcompressor.pipelines.cache import IntermediatesCache

    before = IntermediatesCache.pin_memory
    IntermediatesCache.pin_memory = lambda *_, **__: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = before


def logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """The logits of the first tokens of a text, as fp32."""
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.tensor([list(ids[:PROBE])]), use_cache=False).logits.float()
    return found


class Instead:
    """Passes the fitted weights instead of those that come, cast to their dtype; what is not fitted passes as it is.

    The error of weights that lie on a grid already is added up here, where the weights before are seen.
    """

    def __init__(self, fitted: Fitted, sums: Sums) -> None:
        self._state: dict[str, torch.Tensor] = dict(fitted.model.state_dict())
        self._fitted = fitted
        self._sums = sums

    def begin(self, slots: Sequence[Slot]) -> None:
        """See ``Transform``. RefusedInput (E-MODEL-ARCH) where transformers has other names than the files."""
        names = {slot.name for slot in slots}
        missing = sorted(f"{name}.weight" for name in self._fitted.schemes if f"{name}.weight" not in names)
        if missing:
            what = f"the files hold no tensor {missing[0]!r}, which transformers has"
            raise RefusedInput("E-MODEL-ARCH", what, hint="use 'method: rtn', which needs no names but the files'")

    def routes(self, slot: Slot) -> Sequence[Route]:
        """See ``Transform``."""
        new = self._state.get(slot.name)
        if new is None or tuple(new.shape) != slot.shape:
            return [Route(slot, unchanged, identity="")]
        scheme = self._fitted.schemes.get(slot.name.removesuffix(".weight"))
        on_grid = slot.name.removesuffix(".weight") in self._fitted.known
        dtype = TORCH_DTYPES[slot.dtype]

        def instead(rows: torch.Tensor, start: int) -> torch.Tensor:
            after = (new[start : start + rows.shape[0]] if rows.ndim else new).to(dtype)
            if on_grid and scheme is not None:
                error = float((rows.float() - after.float()).double().square().sum())
                weight = float(rows.double().square().sum())
                self._sums.add((slot.name, start), Part(scheme.name, rows.numel(), error, weight, None))
            return after

        return [Route(slot, instead)]

    def finish(self) -> None:
        """See ``Transform``."""
