"""A model that flows as one or several GGUF files: layout, types, metadata, provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from ingot.core.digest import FileRecord
from ingot.core.stage import Earlier
from ingot.errors import RefusedInput
from ingot.kit.gguf.imatrix import Imatrix
from ingot.kit.gguf.layout import Layout
from ingot.kit.gguf.mixture import Choice, ModelFacts, Tensor, Wish, choose
from ingot.kit.gguf.reuse import Making, Makings, Shelf
from ingot.kit.gguf.sink import Content, GgufSink
from ingot.kit.gguf.types import FILE_TYPES, PLAIN
from ingot.kit.gguf.writer import Field, text, texts, u32
from ingot.kit.stream import chain, pipeline
from ingot.kit.stream.vocabulary import Slot, Weights

T = TypeVar("T")

#: The field that names the model; its value may be known only when all has flowed.
MODEL_KEY = "ingot.model.digest"


class Form(Protocol):
    """What a file says besides the tensors' data: ``Layout``, or the file that another converter wrote."""

    def facts(self) -> ModelFacts:
        """What the rules of types ask."""

    def fields(self, file_type: int, parameters: int) -> Sequence[Field]:
        """The metadata, tokenizer included."""

    def extra(self) -> Mapping[str, torch.Tensor]:
        """Tensors that no source holds."""

    def plain_type(self, name: str, shape: Sequence[int], wanted: str) -> str:
        """The type of a tensor that is not quantized."""


@dataclass(frozen=True)
class Product:
    """One file to write: where, of which types, with which fields of provenance, in parts of how many bytes."""

    path: Path
    wish: Wish
    provenance: tuple[Field, ...]
    imatrix: Imatrix | None = None
    split_bytes: int | None = None
    strict: bool = False
    check: bool = True


@dataclass(frozen=True)
class Reuse:
    """What may be taken over: from which earlier results, and what lies between the source and this file."""

    earlier: tuple[Earlier, ...] = ()
    through: tuple[Any, ...] = ()


@dataclass(frozen=True)
class LayoutForm:
    """The form of a Hugging Face model: its layout, and the fields of its tokenizer."""

    layout: Layout
    vocabulary: Sequence[Field]

    def facts(self) -> ModelFacts:
        """See ``Form``."""
        sizes = self.layout.sizes
        return ModelFacts(self.layout.arch, sizes.layers, sizes.heads, sizes.kv_heads)

    def fields(self, file_type: int, parameters: int) -> Sequence[Field]:
        """See ``Form``."""
        return [*self.layout.fields(file_type, parameters), *self.vocabulary]

    def extra(self) -> Mapping[str, torch.Tensor]:
        """See ``Form``."""
        return self.layout.extra()

    def plain_type(self, name: str, shape: Sequence[int], wanted: str) -> str:
        """See ``Form``."""
        return self.layout.plain_type(name, shape, wanted)


@dataclass
class Written:
    """What was written, and what the receipt tells of it."""

    sink: GgufSink
    #: The files' records, hashed meanwhile where that was not possible on the way.
    files: Callable[[], tuple[FileRecord, ...]]
    fallbacks: dict[str, str] = field(default_factory=dict)
    #: What a later build has to know to take tensors over, and the tensors that this one took over.
    blocks: Mapping[str, Any] = field(default_factory=dict)
    taken: Sequence[Making] = ()
    saved_s: float = 0.0


def export(
    weights: Weights,
    form: Form,
    products: Sequence[Product],
    digest: Callable[[], str],
    reuse: Reuse = Reuse(),
    **run: Any,
) -> list[Written]:
    """Write every product from one read of the weights. ``digest`` is asked when all has flowed.

    ``run`` goes to the pipeline. RefusedInput: E-GGUF-ROWS under ``strict``, E-GGUF-IMATRIX, E-GGUF-NONFINITE. Changed
    when what was taken over is not what it was: then the files are of no use.
    """
    origins = chain.origins(weights)
    with closing(Shelf(reuse.earlier, weights.origin, weights.known)) as shelf:
        makings = [Makings(shelf, origins, reuse.through) for _ in products]
        sinks = [GgufSink(it.path, _content(it, form, made)) for it, made in zip(products, makings, strict=True)]
        pipeline.run(weights, sinks, **run)
    sources: Mapping[str, str] = getattr(weights.source, "tensors", {})
    for made in makings:
        made.compare(sources)
    late = [text(MODEL_KEY, digest())]
    return [_written(weights, sink, made, sources, late) for sink, made in zip(sinks, makings, strict=True)]


def _written(
    weights: Weights, sink: GgufSink, makings: Makings, sources: Mapping[str, str], late: Sequence[Field]
) -> Written:
    found = makings.record(sources, sink.places)
    blocks = {"source": weights.origin or None, "tensors": found} if found else {}
    fallbacks = _fallbacks(sink.choices)
    sink.complete(late)
    return Written(sink, _aside(sink.records), fallbacks, blocks, makings.taken, makings.saved_s)


def _aside(work: Callable[[], T]) -> Callable[[], T]:
    """Begin something on a thread of its own; its result is waited for when it is asked for."""
    pool = ThreadPoolExecutor(1, "ingot-hash")
    begun = pool.submit(work)
    pool.shutdown(wait=False)
    return begun.result


def _content(product: Product, form: Form, makings: Makings) -> Content:
    wish, matrix = product.wish, product.imatrix
    number, base = FILE_TYPES[wish.type]

    def chosen(slots: Sequence[Slot]) -> Mapping[str, Choice]:
        stored = base if base in PLAIN else stored_type(slots)
        tensors = [Tensor(s.name, s.shape, form.plain_type(s.name, s.shape, stored)) for s in slots]
        found = choose(tensors, form.facts(), wish)
        if product.strict:
            _refuse_fallbacks(_fallbacks(found), wish)
        return found

    def fields(slots: Sequence[Slot]) -> Sequence[Field]:
        plain = form.fields(number, sum(slot.elements for slot in slots))
        used = matrix.fields() if matrix else ()
        return [*plain, *used, *product.provenance]

    late = any(item == text(MODEL_KEY, "0" * 64) for item in product.provenance)
    entries = matrix.weights() if matrix else {}
    return Content(
        chosen, fields, form.extra(), entries, product.split_bytes, product.check, late=late, makings=makings
    )


def stored_type(slots: Sequence[Slot]) -> str:
    """The type that holds every matrix as it comes exactly."""
    dtypes = {slot.dtype for slot in slots if len(slot.shape) > 1}
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= PLAIN else "F32"


def _fallbacks(choices: Mapping[str, Choice]) -> dict[str, str]:
    """``wanted -> type`` of the tensors whose rows are no whole number of blocks, by name."""
    return {name: f"{choice.wanted} -> {choice.type}" for name, choice in choices.items() if choice.fell_back}


def _refuse_fallbacks(found: Mapping[str, str], wish: Wish) -> None:
    if found:
        raise RefusedInput(
            "E-GGUF-ROWS",
            f"{wish.type} does not fit the rows of {len(found)} tensors",
            facts=[f"{name}: {change}" for name, change in list(found.items())[:5]],
            hint="without 'strict: true' these tensors take the types that llama.cpp gives them",
        )


def provenance(facts: Mapping[str, str | int | Sequence[str]]) -> tuple[Field, ...]:
    """Fields ``ingot.*``, in the order given; only what is in the target's key may be among them."""
    found = []
    for key, value in facts.items():
        name = f"ingot.{key}"
        if isinstance(value, int):
            found.append(u32(name, value))
        elif isinstance(value, str):
            found.append(text(name, value))
        elif value:
            found.append(texts(name, value))
    return tuple(found)
