"""A saved package run on texts in every way that it can be: all at once, and token by token where it has a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ingot.kit.coreml.convert import Model
from ingot.kit.coreml.filling import constant_name
from ingot.kit.coreml.settings import DECODE, MAIN, PREFILL
from ingot.kit.coreml.storing import suffix
from ingot.kit.mil.language import Language
from ingot.kit.mil.model import MilModel
from ingot.kit.parity.lazy import Readers
from ingot.kit.parity.trace import Trace, Traced

#: Bytes of decoded weights that are kept between texts; of a larger model each is decoded whenever it is used.
_KEPT = 256 << 20
#: How many tokens at the end of a text are read one by one.
_STEPS = 8


class Stepped:
    """A package with a cache: a text's beginning by ``prefill``, its last tokens by ``decode`` on the same state."""

    def __init__(self, language: Language) -> None:
        self._language = language

    def trace(self, ids: Sequence[int], *, probes: bool) -> Trace:
        """Logits of every position; layers are not shown (``prefill`` shows them)."""
        del probes
        head = max(1, len(ids) - _STEPS)
        rows = [self._language.trace(ids[:head], probes=False).logits]
        self._language.prefill(ids[:head])
        rows += [self._language.step(token)[np.newaxis] for token in ids[head:]]
        return Trace(np.concatenate(rows))


def open_runs(package: Path, model: Model) -> Mapping[str, Traced]:
    """The package in the reference interpreter, by what is run."""
    language = Language(MilModel(package, keep=_KEPT))
    if not model.settings.context:
        return {MAIN: language}
    return {PREFILL: language, DECODE: Stepped(language)}


def stored_weights(package: Path, model: Model) -> Readers:
    """What reads the weights that a package stores, decoded, by transformers' names; vectors are the checkpoint's."""
    opened = MilModel(package, keep=0)
    runner = opened.runners[opened.default]
    checkpoint, settings = model.checkpoint, model.settings

    def read(name: str) -> torch.Tensor:
        sizes = checkpoint.shapes[name]
        if len(sizes) == 2:
            value = np.asarray(runner.constant(constant_name(name) + suffix(settings)), np.float32)
        else:
            value = checkpoint.load(name, settings.precision).astype(np.float32)
        return torch.from_numpy(value.reshape(sizes))

    return {checkpoint.original(name): partial(read, name) for name in checkpoint.shapes}
