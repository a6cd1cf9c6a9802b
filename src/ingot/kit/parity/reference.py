"""The source of an export, run by transformers in fp32: what it computes on golden texts, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch

from ingot.errors import StageFailed
from ingot.kit.architectures import refuse_unknown_architecture
from ingot.kit.hf import load_model, read_config
from ingot.kit.parity.golden import Golden
from ingot.kit.parity.lazy import Lacking, Readers, lazy_model
from ingot.kit.parity.trace import Array, Trace, Traced
from ingot.kit.quant.plain import plain_weights, quantization


class Source(Traced, Protocol):
    """A source that can be asked what it makes of another model's values."""

    def given(self, ids: Sequence[int], trace: Trace) -> Trace:
        """As ``trace``, where each layer, and what follows the last, gets what ``trace`` has in place of its input."""
        ...


@dataclass(frozen=True)
class Reference:
    """What a source computed on golden texts (kept on the disk), and how it is opened again where they differ."""

    traces: tuple[Trace, ...]
    reopen: Callable[[], AbstractContextManager[Source]]


def record(open_source: Callable[[], AbstractContextManager[Source]], texts: Golden, folder: Path) -> Reference:
    """Run a source on golden texts and let it go; its traces are kept in ``folder``, which is made for them.

    StageFailed (E-PARITY) when the source's own logits are not finite: nothing can be compared with them.
    """
    folder.mkdir(parents=True)
    traces = []
    with open_source() as source:
        for index, ids in enumerate(texts.ids):
            trace = source.trace(ids, probes=True)
            if not np.isfinite(trace.logits).all():
                raise StageFailed("E-PARITY", "the source's own logits are not finite numbers: it cannot be exported")
            traces.append(_kept(trace, folder / str(index)))
    return Reference(tuple(traces), open_source)


def _kept(trace: Trace, stem: Path) -> Trace:
    arrays = []
    for number, array in enumerate((trace.logits, *trace.hidden)):
        path = stem.with_name(f"{stem.name}-{number}.npy")
        np.save(path, array)
        arrays.append(np.load(path, mmap_mode="r"))
    return Trace(arrays[0], tuple(arrays[1:]))


class HookedModel:
    """A causal language model whose layers are watched: transformers', or ingot's own decoder.

    ``body`` has ``layers`` and ``norm``; ``run`` gives logits (n, vocabulary) of ids (1, n).
    """

    def __init__(self, body: Any, run: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._body, self._run = body, run
        self._stops = [*body.layers, body.norm]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the weights go; further calls are errors."""
        del self._body, self._run, self._stops

    def trace(self, ids: Sequence[int], *, probes: bool) -> Trace:
        """See ``Traced``."""
        hidden: list[Array] = []
        logits = self._watched(ids, [_Stop(hidden)] * len(self._stops) if probes else [])
        return Trace(logits, tuple(hidden))

    def given(self, ids: Sequence[int], trace: Trace) -> Trace:
        """See ``Source``."""
        seen: list[Array] = []
        logits = self._watched(ids, [_Stop(seen, torch.from_numpy(np.array(value))) for value in trace.hidden])
        return Trace(logits, tuple(seen))

    def _watched(self, ids: Sequence[int], stops: Sequence[_Stop]) -> Array:
        hooks = [
            module.register_forward_pre_hook(stop, with_kwargs=True)
            for module, stop in zip(self._stops, stops, strict=bool(stops))
        ]
        try:
            with torch.no_grad():
                logits: Array = self._run(torch.tensor([list(ids)])).float().numpy()
        finally:
            for hook in hooks:
                hook.remove()
        return logits


class _Stop:
    """A hook before a layer: keeps what comes in, and where there is something else to put in, puts that in."""

    def __init__(self, seen: list[Array], instead: torch.Tensor | None = None) -> None:
        self._seen, self._instead = seen, instead

    def __call__(
        self, _module: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        value = args[0] if args else kwargs["hidden_states"]
        self._seen.append(value[0].float().numpy().copy())
        if self._instead is None:
            return None
        new = self._instead[None].to(value.dtype)
        return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})


#: The output layer's matrix, as transformers calls it in all the models that exports know.
HEAD = "lm_head.weight"


class SourceModel(HookedModel):
    """A model folder as transformers computes it in fp32; quantized checkpoints with the weights their users get.

    ``weights`` replace the folder's by name: so the weights that an export stores are run, dequantized. With an
    ``lm_head.weight`` among them the output layer is no longer the embedding. Weights are read when the module that
    holds them runs (``kit.parity.lazy``), where the architecture lets them.
    """

    def __init__(self, folder: Path, *, threads: int, weights: Readers | None = None) -> None:
        """StageFailed (E-PARITY): ``weights`` lack one of the model's."""
        torch.set_num_threads(threads)
        refuse_unknown_architecture(read_config(folder))
        model = _model(folder, weights)
        body = model.get_decoder()
        super().__init__(body, lambda ids: model(input_ids=ids, use_cache=False).logits[0])


def _model(folder: Path, weights: Readers | None) -> Any:
    try:
        if weights is not None:
            return lazy_model(folder, weights, untied=HEAD in weights)
        return lazy_model(folder, {name: weight.read for name, weight in plain_weights(folder).items()})
    except Lacking as lacking:
        if weights is None:
            return reference_model(folder)
        facts = [f"{len(lacking.names)} are missing"]
        raise StageFailed("E-PARITY", f"the export's weights lack {lacking.names[0]}", facts=facts) from None


def reference_model(folder: Path) -> Any:
    """The model of a folder in fp32, held whole, inputs of layers as they are.

    A quantized checkpoint is read in its own type first, so that its weights are rounded as its users get them; what
    W8A8 and FP8 do to inputs is no matter of weights and is left out.
    """
    plain = quantization(read_config(folder)) is None
    model = load_model(folder, "float32") if plain else load_model(folder).float()
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            module.quantization_enabled = False
    return model
