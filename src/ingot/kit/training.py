"""Fine-tuning a causal language model: packed documents, completion-only loss, a plain seeded loop.

Documents are laid end to end in one row with positions that start again at each (no padding), and
logits are computed only where the loss looks: on a small model with a large vocabulary that is
most of the work saved. Whether a model keeps packed documents apart is measured, not assumed
(``packs``); one that does not gets one document at a time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ingot.errors import RefusedInput, StageFailed

Row = Mapping[str, Any]

#: Tokens in one forward pass (a longer document goes alone): bounds the memory, in which attention is quadratic.
PACK_TOKENS = 512
#: Steps whose mean loss is compared with that of the first.
_WINDOW = 8
#: Nats per token by which a document may score differently when another stands before it.
_LEAK = 0.05


class Encoded(Protocol):
    """Token ids of a document and the index of the first that is learned."""

    @property
    def ids(self) -> list[int]:
        """Token ids, cut to the length asked for."""

    @property
    def labels_from(self) -> int:
        """Index of the first token that is learned."""


@dataclass(frozen=True)
class Document:
    """One encoded document: the loss is taken on ``ids[start:]``, each predicted from those before it."""

    id: str
    ids: tuple[int, ...]
    start: int

    @property
    def scored(self) -> int:
        """How many tokens the loss looks at."""
        return len(self.ids) - self.start


class Corpus:
    """The rows of a data set in a seeded order, encoded when they are first drawn.

    ``encode`` maps a row to ids. A row that is cut before its completion teaches nothing and is skipped.
    """

    def __init__(self, rows: Sequence[Row], encode: Callable[[Row], Encoded], *, completion_only: bool) -> None:
        self._rows = rows
        self._encode = encode
        self._completion_only = completion_only
        self._known: dict[int, Document | None] = {}

    def _document(self, index: int) -> Document | None:
        if index not in self._known:
            row = self._rows[index]
            found = self._encode(row)
            start = max(1, found.labels_from) if self._completion_only else 1
            doc = Document(row_id(row), tuple(found.ids), start)
            self._known[index] = doc if doc.scored > 0 else None
        return self._known[index]

    def first(self, count: int) -> list[Document]:
        """The first ``count`` usable documents in the order of their ids: the same for every seed."""
        order = sorted(range(len(self._rows)), key=lambda index: row_id(self._rows[index]))
        return list(itertools.islice(filter(None, map(self._document, order)), count))

    def epoch(self, seed: int, number: int) -> Iterator[Document]:
        """All usable documents, permuted by the hash of seed, epoch and id: equal on every machine."""

        def place(index: int) -> bytes:
            return hashlib.sha256(f"{seed}:{number}:{row_id(self._rows[index])}".encode()).digest()

        for index in sorted(range(len(self._rows)), key=place):
            doc = self._document(index)
            if doc is not None:
                yield doc

    def batches(self, seed: int, size: int) -> Iterator[list[Document]]:
        """Batches of ``size`` documents without end, epoch after epoch, each epoch in a new order.

        A batch may cross the end of an epoch, so that every batch is full. Nothing when no row is usable.
        """
        batch: list[Document] = []
        for number in itertools.count():
            drawn = 0
            for doc in self.epoch(seed, number):
                drawn += 1
                batch.append(doc)
                if len(batch) == size:
                    yield batch
                    batch = []
            if not drawn:
                return


def row_id(row: Row) -> str:
    """The id of a row; where it has none, the hash of its content."""
    known = row.get("id")
    return known if isinstance(known, str) else hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def packs_of(docs: Sequence[Document], limit: int) -> Iterator[list[Document]]:
    """Consecutive documents whose tokens sum to at most ``limit`` (a longer one stands alone)."""
    pack: list[Document] = []
    total = 0
    for doc in docs:
        if pack and total + len(doc.ids) > limit:
            yield pack
            pack, total = [], 0
        pack.append(doc)
        total += len(doc.ids)
    if pack:
        yield pack


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


@dataclass(frozen=True)
class Schedule:
    """The learning rate by step: linear warm-up, then constant, linear or cosine decay to zero."""

    shape: str
    peak: float
    steps: int
    warmup: float

    def rate(self, step: int) -> float:
        """The rate of step ``step`` (from 0). The last step still learns: decay reaches zero one step later."""
        rising = math.ceil(self.warmup * self.steps)
        if step < rising:
            return self.peak * (step + 1) / (rising + 1)
        done = (step - rising) / max(1, self.steps - rising)
        if self.shape == "linear":
            return self.peak * (1 - done)
        if self.shape == "cosine":
            return self.peak * 0.5 * (1 + math.cos(math.pi * done))
        return self.peak


@dataclass(frozen=True)
class Step:
    """What one optimizer step saw: mean loss in nats per scored token, gradient norm before clipping."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    scored_tokens: int
    tokens: int

    def to_dict(self) -> dict[str, float]:
        """As it stands in training.json."""
        return dict(vars(self))


@dataclass(frozen=True)
class Loop:
    """The settings of a run; ``limit`` is the number of tokens in one forward pass."""

    schedule: Schedule
    weight_decay: float
    clip: float
    limit: int
    vocabulary: int

    def run(self, model: Any, source: Iterable[list[Document]]) -> Iterator[Step]:
        """AdamW over the trainable parameters, one step a batch; yields what each step saw.

        The loss of a batch is the mean over all its scored tokens, however it is split into passes.
        StageFailed (E-TRAIN-DIVERGED) when loss or gradient is not finite, when a loss is more than twice that of
        a uniform guess over the vocabulary, or when eight steps in a row are far worse than the untrained first.
        """
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=self.schedule.peak, weight_decay=self.weight_decay)
        model.train()
        losses: list[float] = []
        for index, batch in enumerate(source):
            rate = self.schedule.rate(index)
            for group in optimizer.param_groups:
                group["lr"] = rate
            scored = sum(doc.scored for doc in batch)
            loss = self._backward(model, batch, scored)
            norm = float(torch.nn.utils.clip_grad_norm_(weights, self.clip))
            step = Step(index + 1, loss, rate, norm, scored, sum(len(doc.ids) for doc in batch))
            losses.append(loss)
            self._check(step, losses)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield step

    def _backward(self, model: Any, batch: Sequence[Document], scored: int) -> float:
        total = 0.0
        for pack in packs_of(batch, self.limit):
            loss = nll(model, pack).sum() / scored
            loss.backward()
            total += float(loss.detach())
        return total

    def _check(self, step: Step, losses: Sequence[float]) -> None:
        guess = math.log(self.vocabulary)
        recent = losses[-_WINDOW:]
        if not (math.isfinite(step.loss) and math.isfinite(step.gradient_norm)):
            raise self.diverged(f"step {step.step}: loss {step.loss:.4g}, gradient norm {step.gradient_norm:.4g}")
        if step.loss > 2 * guess:
            raise self.diverged(f"step {step.step}: loss {step.loss:.4g}; a uniform guess costs {guess:.4g}")
        if len(losses) > _WINDOW and far_worse(losses[0], sum(recent) / len(recent)):
            raise self.diverged(f"loss {losses[0]:.4g} at the first step, {recent[-1]:.4g} at step {step.step}")

    def diverged(self, fact: str) -> StageFailed:
        """E-TRAIN-DIVERGED with what was seen."""
        return StageFailed(
            "E-TRAIN-DIVERGED",
            "training diverged: the adapter makes the model worse, not better",
            facts=[fact],
            hint=f"lower learning_rate (it is {self.schedule.peak:g}) or raise warmup",
        )


def far_worse(before: float, after: float) -> bool:
    """Whether a loss in nats per token has grown beyond what a few unlike batches explain."""
    return after > 1.5 * before + 0.5


def nothing_to_learn(rows: int, max_length: int) -> RefusedInput:
    """Why a training set has nothing to learn: E-DATASET-EMPTY, or E-DATASET-LENGTH when all was cut off."""
    if rows == 0:
        return RefusedInput(
            "E-DATASET-EMPTY",
            "the data set has no rows to train on",
            facts=["train.jsonl is empty"],
            hint="loosen the filters or the split of the data set",
        )
    return RefusedInput(
        "E-DATASET-LENGTH",
        f"no document's completion begins within max_length {max_length} tokens",
        facts=[f"{rows} rows, every one cut before its completion"],
        hint="raise max_length, or shorten the prompts",
    )
