"""Next-token loss over packed documents.

Documents are laid end to end in one row with positions that start again at each (no padding), and logits are computed
only where the loss looks: on a small model with a large vocabulary that is most of the work saved. Whether a model
keeps packed documents apart is measured, not assumed (``packs``); one that does not gets one document at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ingot.kit.train.documents import Document, packs_of

#: Tokens in one forward pass (a longer document goes alone): bounds the memory, in which attention is quadratic.
PACK_TOKENS = 512
#: Nats per token by which a document may score differently when another stands before it.
_LEAK = 0.05


def nll(model: Any, docs: Sequence[Document]) -> torch.Tensor:
    """Negative log-likelihood in nats of every scored token of the packed documents, fp32, in order."""
    ids = torch.tensor([[token for doc in docs for token in doc.ids]])
    positions = torch.cat([torch.arange(len(doc.ids)) for doc in docs])[None]
    keep, at = [], 0
    for doc in docs:
        keep.append(torch.arange(at + doc.start - 1, at + len(doc.ids) - 1))
        at += len(doc.ids)
    where = torch.cat(keep)
    logits = model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=where).logits[0]
    return torch.nn.functional.cross_entropy(logits.float(), ids[0, where + 1], reduction="none")


def packs(model: Any, docs: Sequence[Document]) -> bool:
    """Whether the model keeps packed documents apart: the second of two scores as it does alone."""
    first, second = docs[0], docs[-1]
    with torch.no_grad():
        alone = nll(model, [second]).mean()
        after = nll(model, [first, second])[first.scored :].mean()
    return bool((alone - after).abs() <= _LEAK)


def evaluate(model: Any, docs: Sequence[Document], limit: int, report: Callable[[int], None]) -> list[float]:
    """The summed nats of each document's scored tokens, in the order of ``docs``; ``report`` gets the number done."""
    training = model.training
    model.eval()
    sums: list[float] = []
    for pack in packs_of(docs, limit):
        with torch.no_grad():
            parts = nll(model, pack).double().split([doc.scored for doc in pack])
        sums.extend(float(part.sum()) for part in parts)
        report(len(sums))
    model.train(training)
    return sums
