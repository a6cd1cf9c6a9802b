"""Next-token loss over documents.

Packed documents are laid end to end in one row with positions that start again at each (no padding), and logits are
computed only where the loss looks: on a small model with a large vocabulary that is most of the work saved. Whether a
model keeps packed documents apart is measured, not assumed (``keeps_apart``); one that does not gets a row for each
document, filled up at its right, where nothing that is scored can see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ingot.kit.train.documents import Document
from ingot.kit.train.layout import Layout

#: Nats per token by which a document may score differently when another stands before it: rounding of other shapes.
_SHIFT = 0.05
#: Nats by which a token may score differently when the tokens of the document before it are others.
_LEAK = 1e-3


@dataclass(frozen=True)
class NextToken:
    """The objective of language models: negative log-likelihood of each scored token given those before it."""

    layout: Layout

    @property
    def unit(self) -> str:
        """Of a loss."""
        return "nats/token"

    def losses(self, model: Any, pack: Sequence[Document]) -> torch.Tensor:
        """The nats of every scored token of each document, fp32, in order."""
        return seen(model, pack, self.layout).nll()


def device_of(model: Any) -> torch.device:
    """Where a model's inputs belong."""
    found = getattr(model, "device", None)
    return found if isinstance(found, torch.device) else torch.device("cpu")


@dataclass(frozen=True)
class Seen:
    """What a model says of documents where the loss looks, in their order: a row a scored token.

    ``goals`` are the tokens that came; ``hidden``, where it was asked for, the states that each layer gave there, the
    embeddings first.
    """

    logits: torch.Tensor
    goals: torch.Tensor
    hidden: tuple[torch.Tensor, ...] = ()

    def nll(self) -> torch.Tensor:
        """Negative log-likelihood in nats of every scored token, fp32."""
        return torch.nn.functional.cross_entropy(self.logits.float(), self.goals, reduction="none")


def seen(model: Any, docs: Sequence[Document], layout: Layout, *, hidden: bool = False) -> Seen:
    """One pass over documents."""
    return _padded(model, docs, hidden=hidden) if layout.kind == "padded" else _packed(model, docs, hidden=hidden)


def nll(model: Any, docs: Sequence[Document]) -> torch.Tensor:
    """Negative log-likelihood in nats of every scored token of the packed documents, fp32, in order."""
    return _packed(model, docs).nll()


def padded_nll(model: Any, docs: Sequence[Document]) -> torch.Tensor:
    """As ``nll``, with a row for each document, filled up to the longest. No loss is taken on what fills it."""
    return _padded(model, docs).nll()


def _packed(model: Any, docs: Sequence[Document], *, hidden: bool = False) -> Seen:
    device = device_of(model)
    ids = torch.tensor([[token for doc in docs for token in doc.ids]])
    positions = torch.cat([torch.arange(len(doc.ids)) for doc in docs])[None]
    keep, at = [], 0
    for doc in docs:
        keep.append(torch.arange(at + doc.start - 1, at + len(doc.ids) - 1))
        at += len(doc.ids)
    where = torch.cat(keep)
    goals = ids[0, where + 1].to(device)
    where = where.to(device)
    found = model(
        input_ids=ids.to(device),
        position_ids=positions.to(device),
        use_cache=False,
        logits_to_keep=where,
        **_asked(hidden=hidden),
    )
    return Seen(found.logits[0], goals, tuple(state[0, where] for state in found.hidden_states) if hidden else ())


def _padded(model: Any, docs: Sequence[Document], *, hidden: bool = False) -> Seen:
    device = device_of(model)
    longest = max(doc.size for doc in docs)
    ids = torch.tensor([[*doc.ids, *(0,) * (longest - doc.size)] for doc in docs])
    mask = torch.tensor([[1] * doc.size + [0] * (longest - doc.size) for doc in docs])
    first = min(doc.start for doc in docs) - 1
    rows = torch.cat([torch.full((doc.scored,), row) for row, doc in enumerate(docs)])
    where = torch.cat([torch.arange(doc.start - 1, doc.size - 1) for doc in docs])
    goals = ids[rows, where + 1].to(device)
    rows, where = rows.to(device), where.to(device)
    found = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        use_cache=False,
        logits_to_keep=torch.arange(first, longest - 1, device=device),
        **_asked(hidden=hidden),
    )
    states = tuple(state[rows, where] for state in found.hidden_states) if hidden else ()
    return Seen(found.logits[rows, where - first], goals, states)


def _asked(*, hidden: bool) -> dict[str, bool]:
    return {"output_hidden_states": True} if hidden else {}


def keeps_apart(model: Any, docs: Sequence[Document]) -> bool:
    """Whether a model keeps packed documents apart.

    The second of two scores as it does alone, and what it scores does not change when the first's tokens do.
    """
    first, second = docs[0], docs[-1]
    other = Document(first.id, tuple(_others(first.ids, second.ids)), first.start)
    with torch.no_grad():
        alone = nll(model, [second]).mean()
        after = nll(model, [first, second])[first.scored :]
        changed = nll(model, [other, second])[other.scored :]
    shifted, leaked = (alone - after.mean()).abs(), (after - changed).abs().max()
    return bool(shifted <= _SHIFT) and bool(leaked <= _LEAK)


def _others(ids: Sequence[int], more: Sequence[int]) -> list[int]:
    """As many tokens, in no place the same where two different ones are known."""
    known = sorted({*ids, *more})
    after = dict(zip(known, [*known[1:], known[0]], strict=True))
    return [after[token] for token in ids]


def layout_for(model: Any, sample: Sequence[Document], tokens: int, *, packing: bool) -> Layout:
    """Packed where that is wanted and the model keeps the documents of ``sample`` apart; else padded."""
    training = model.training
    model.eval()
    apart = packing and bool(sample) and keeps_apart(model, sample)
    model.train(training)
    return Layout("packed" if apart else "padded", tokens)


def chance(model: Any) -> float:
    """What a uniform guess over the vocabulary costs in nats per token."""
    return math.log(model.config.get_text_config().vocab_size)
