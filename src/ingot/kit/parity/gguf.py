"""GGUF files run by llama.cpp as its users run them: on the CPU, keys and values in F16, what a layer gives looked at.

A file of a quantized type is compared with the source (loss), and with its own weights, dequantized, in transformers
(execution): then only what llama.cpp rounds on the way is between them, inputs of products to 8 bits above all.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch

from ingot.core.stage import Given, Metric, Progress
from ingot.errors import RefusedInput
from ingot.kit.gguf.check import Checked, check_gguf
from ingot.kit.gguf.ggml import ggml
from ingot.kit.gguf.hf_view import GgufModel
from ingot.kit.gguf.reader import TensorInfo, read_gguf
from ingot.kit.gguf.watch import GgmlTensor, WatchedModel, product_op, rows_of
from ingot.kit.parity.golden import Choice, Golden, golden
from ingot.kit.parity.lazy import Readers
from ingot.kit.parity.limits import LIMITS, Limits
from ingot.kit.parity.prove import Proof, prove
from ingot.kit.parity.reference import Reference, SourceModel, record
from ingot.kit.parity.trace import Array, Trace
from ingot.kit.stream.vocabulary import Route, Slot

#: What goes into the first layer, by the names that llama.cpp's graphs give it; the last of them that comes counts.
_EMBEDDINGS = ("embd", "inp_embd", "inp_scaled", "inpL")
_LAYER = re.compile(r"l_out-(\d+)")
#: Types whose weights are computed with as they are.
_PLAIN = ("F32", "F16", "BF16")


class _Layers:
    """Keeps what goes into the first layer and what each layer gives, where ``open``."""

    def __init__(self) -> None:
        self.open = False
        self.embedding = ""
        self.seen: dict[str, list[Array]] = {}

    def wants(self, node: GgmlTensor) -> bool:
        name = node.name.decode("utf-8", "replace")
        return self.open and (name in _EMBEDDINGS or _LAYER.fullmatch(name) is not None)

    def see(self, node: GgmlTensor) -> None:
        name = node.name.decode()
        # a long text comes in several batches, one after the other
        self.seen.setdefault(name, []).append(rows_of(node, name))

    def take(self) -> tuple[Array, ...]:
        """Embedding and layers of one text, in order; nothing where the graph names none."""
        seen, self.seen = self.seen, {}
        first = [name for name in _EMBEDDINGS if name in seen]
        layers = sorted((int(found[1]), name) for name in seen if (found := _LAYER.fullmatch(name)))
        if not first or [number for number, _ in layers] != list(range(len(layers))):
            return ()
        return tuple(np.concatenate(seen[name]) for name in (first[-1], *(name for _, name in layers)))


class LlamaCppRun:
    """A GGUF as something ``Traced``, for texts of up to ``context`` tokens."""

    def __init__(self, path: Path, *, context: int, threads: int) -> None:
        """StageFailed: E-GGML, E-LLAMA-CPP."""
        product_op(ggml().library)
        self._layers = _Layers()
        self._model = WatchedModel(path, self._layers, context=context, threads=threads)

    def trace(self, ids: Sequence[int], *, probes: bool) -> Trace:
        """See ``Traced``."""
        self._layers.open = probes
        return Trace(self._model.logits(ids), self._layers.take())

    def close(self) -> None:
        """Give the memory back."""
        self._model.close()


class Words(Protocol):
    """What a spec says of parity (``stages._export.Parity``)."""

    @property
    def texts(self) -> int:
        """How many golden texts."""

    @property
    def max_length(self) -> int:
        """Tokens of the longest."""

    def limits(self, precision: str) -> Limits:
        """How far apart source and export may be."""


@dataclass(frozen=True)
class Origin:
    """What the files of a pass are made from: the model's folder, its tokenizer; a data set, or none; and room."""

    folder: Path
    tokenizer: Any
    data: Path | None
    scratch: Path
    threads: int


class Checks:
    """Checks the files of a pass one by one; what the source computes is recorded once for all of them."""

    @classmethod
    def of(cls, given: Given, model: Path, tokenizer: Any, words: Sequence[Words], progress: Progress) -> Self:
        """For files that are made of the folder ``model``, compared where there is a role ``data``.

        RefusedInput (E-DATASET-EMPTY, E-CHAT-TEMPLATE), before anything is written, where it gives no golden texts.
        """
        checks = cls(Origin(model, tokenizer, given.maybe("data"), given.scratch, given.threads), progress.phase)
        for each in words if checks._origin.data is not None else ():
            checks._golden(each)
        return checks

    def __init__(self, origin: Origin, phase: Callable[[str], None]) -> None:
        """``phase`` is told what is done."""
        self._origin, self._phase = origin, phase
        self._texts: dict[Choice, Golden] = {}
        self._references: dict[Choice, Reference] = {}

    def run(self, path: Path, kind: str, words: Words, *, finite: bool) -> tuple[Checked, Proof]:
        """Open, tokenize and generate (``check_gguf``), and with a data set compare logits.

        ``kind`` is the coarsest type in the file. RefusedInput (E-DATASET-EMPTY); StageFailed: E-GGUF-SELFCHECK,
        E-PARITY, E-GGML, E-LLAMA-CPP.
        """
        origin = self._origin
        texts = None if origin.data is None else self._golden(words)
        rows = () if texts is None else texts.texts
        self._phase("check with llama.cpp")
        checked = check_gguf(path, origin.tokenizer, threads=origin.threads, finite=finite, rows=rows)
        if texts is None:
            return checked, Proof({}, {})
        self._phase(f"compare {kind} with transformers")
        proof = self._prove(path, kind, words)
        method = "texts (probes, special tokens, held-out rows) to which llama.cpp gives the source's token ids"
        same = Metric(checked.texts + checked.rows, "1", method)
        return checked, Proof({**proof.metrics, "tokenizer_texts": same}, {"parity": proof.notes})

    def _golden(self, words: Words) -> Golden:
        choice = Choice(words.texts, words.max_length)
        if choice not in self._texts:
            self._texts[choice] = golden(self._origin.tokenizer, self._origin.data, choice)
        return self._texts[choice]

    def _prove(self, path: Path, kind: str, words: Words) -> Proof:
        """Compare with the file's own weights, where they were rounded, and with the source."""
        file, choice = _File(path, kind, self._golden(words)), Choice(words.texts, words.max_length)
        metrics: dict[str, Metric] = {}
        notes: dict[str, object] = {}
        if kind not in _PLAIN:
            # first: that a file is read wrongly says more than that it is far from its source
            metrics, notes["execution"] = self._executed(file)
        if choice not in self._references:
            self._references[choice] = self._record(file.texts, "source", None)
        parity = self._compared(file, self._references[choice], words.limits(kind), "parity")
        return Proof({**parity.metrics, **metrics}, {"parity": parity.notes, **notes})

    def _executed(self, file: _File) -> tuple[dict[str, Metric], dict[str, object]]:
        try:
            stored = stored_weights(file.path)
        except RefusedInput as refused:
            return {}, {"not_measured": refused.what}
        own = self._record(file.texts, "own", stored)
        execution = self._compared(file, own, LIMITS["llama.cpp"], "execution")
        return execution.metrics, execution.notes

    def _record(self, texts: Golden, name: str, stored: Readers | None) -> Reference:
        """Traces of the source, or of one file's weights in it, which take the place of those of the file before."""
        origin, folder = self._origin, self._origin.scratch / "parity" / f"{name}-{texts.digest}"
        shutil.rmtree(folder, ignore_errors=True)

        def opened() -> SourceModel:
            return SourceModel(origin.folder, threads=origin.threads, weights=stored)

        return record(opened, texts, folder)

    def _compared(self, file: _File, reference: Reference, limits: Limits, name: str) -> Proof:
        run = LlamaCppRun(file.path, context=max(len(ids) for ids in file.texts.ids), threads=self._origin.threads)
        try:
            return prove({f"{file.type} in llama.cpp": run}, file.texts, reference, limits, name=name)
        finally:
            run.close()


@dataclass(frozen=True)
class _File:
    """A written file, its coarsest type, and the texts it is run on."""

    path: Path
    type: str
    texts: Golden


def stored_weights(path: Path) -> Readers:
    """What reads a file's weights by transformers' names, dequantized.

    RefusedInput (E-ARCH, E-GGUF-*) where they have no such form here: experts, parts.
    """
    gguf = read_gguf(path)
    names = GgufModel(gguf).names()

    def read(info: TensorInfo, route: Route) -> torch.Tensor:
        return route.apply(torch.from_numpy(gguf.dequantized(info)), 0)

    return {
        route.slot.name: partial(read, info, route)
        for info in gguf.tensors
        for route in names.routes(Slot(info.name, tuple(info.shape), "F32"))
    }
