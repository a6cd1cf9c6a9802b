"""Direct preference optimization: learn from pairs of answers which one was preferred (Rafailov et al. 2023).

The loss of a pair is -log σ(β·m), where m is by how much more the model than the reference prefers the chosen answer:
the log-likelihood of the chosen answer less that of the rejected one, summed over the tokens of each, less the same
difference under the reference. The reference is the model without its adapter, so no second model is held. With
``label_smoothing`` ε a pair counts as swapped with that probability (conservative DPO, Mitchell 2023); ``sft_weight``
adds the mean nats by token of the chosen answer, lest its likelihood fall together with that of the rejected one.

Laws: a pair is one forward pass of two rows, under the model and under the reference alike, so before the first step
both agree to the bit and the loss is log 2, and it does not matter which pairs stand in a batch. The reference is
computed when a pair is first seen and kept; it is the same whenever that is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ingot.core.stage import Given, Metric
from ingot.errors import RefusedInput
from ingot.kit import chat, hf
from ingot.kit.bootstrap import RESAMPLES, ratio_interval, share
from ingot.kit.train.documents import Corpus, Document, row_id
from ingot.kit.train.layout import Layout
from ingot.kit.train.next_token import padded_nll
from ingot.kit.train.text import reader_for

#: One pair a pass.
LAYOUT = Layout("single", 1)


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, each with it; the loss looks at the answers alone."""

    id: str
    chosen: Document
    rejected: Document

    @property
    def scored(self) -> int:
        """A pair has one loss."""
        return 1

    @property
    def size(self) -> int:
        """Tokens that a forward pass reads."""
        return self.chosen.size + self.rejected.size


@dataclass(frozen=True)
class Pairs:
    """Pairs to learn and held-out ones."""

    train: Corpus[Pair]
    held: list[Pair]


def read(stage: Any, given: Given, model: Any) -> Pairs:
    """The preferences in role ``data``; of ``stage`` as ``text.read``.

    RefusedInput: E-DATASET-FORM for rows that are no preferences, and what ``text.read`` raises. A pair of which an
    answer is cut off before it begins, or whose answers are the same once they are cut, teaches nothing.
    """
    make = pair_maker(reader_for(stage, hf.load_tokenizer(given.one("model")), model).document)
    data = given.one("data")
    held = list(chat.read_rows(data, "eval")) if stage.eval_documents else []
    return Pairs(Corpus(list(chat.read_rows(data, "train")), make), Corpus(held, make).first(stage.eval_documents))


def pair_maker(document: Callable[[chat.Row], Document | None]) -> Callable[[chat.Row], Pair | None]:
    """What makes a pair of a row, with what makes a document of each of its two answers."""

    def make(row: chat.Row) -> Pair | None:
        if "chosen" not in row or "rejected" not in row:
            raise RefusedInput(
                "E-DATASET-FORM",
                "the objective 'dpo' learns preferences, and the data set has rows without chosen and rejected answers",
                facts=[f"row {row_id(row)} has {', '.join(sorted(row))}"],
                hint="use 'objective: sft', or a data set of the form 'preference'",
            )
        chosen, rejected = (document(chat.answered(row, which)) for which in ("chosen", "rejected"))
        if chosen is None or rejected is None or chosen.ids == rejected.ids:
            return None
        return Pair(row_id(row), chosen, rejected)

    return make


@dataclass(frozen=True)
class Preference:
    """The objective. ``adapted`` is the model with its adapter, as PEFT has it, which can be turned off."""

    adapted: Any
    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    _reference: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """Of a loss."""
        return "nats/pair"

    def losses(self, model: Any, pack: Sequence[Pair]) -> torch.Tensor:
        """The loss of each pair."""
        return torch.stack([self._loss(pair, likelihoods(model, pair)) for pair in pack])

    def _loss(self, pair: Pair, found: torch.Tensor) -> torch.Tensor:
        reference = self.reference(pair).to(found.device)
        loss = dpo(margin(found, reference), self.beta, self.label_smoothing)
        return loss - self.sft_weight * found[0] / pair.chosen.scored if self.sft_weight else loss

    def reference(self, pair: Pair) -> torch.Tensor:
        """The log-likelihoods of both answers without the adapter."""
        if pair.id not in self._reference:
            model = self.adapted.get_base_model()
            training = model.training
            model.eval()  # the reference drops nothing out
            with torch.no_grad(), self.adapted.disable_adapter():
                self._reference[pair.id] = likelihoods(model, pair).cpu()
            model.train(training)
        return self._reference[pair.id]

    def metrics(self, held: Sequence[Pair]) -> dict[str, Metric]:
        """What the model as it is now prefers among held-out pairs, and what the reference did; nothing without any."""
        if not held:
            return {}
        model = self.adapted.get_base_model()
        model.eval()
        with torch.no_grad():
            after = [likelihoods(model, pair).cpu() for pair in held]
        before = [self.reference(pair) for pair in held]
        margins = [self.beta * float(margin(a, b)) for a, b in zip(after, before, strict=True)]
        likelier = "share of held-out pairs whose chosen answer is likelier than the rejected one"
        return {
            "preferred_before": _share([float(it[0] - it[1]) for it in before], f"{likelier}, without the adapter"),
            "preferred_after": _share([float(it[0] - it[1]) for it in after], f"{likelier}, with it"),
            "preference_accuracy": _share(
                margins, "share of held-out pairs whose reward margin is above 0 (without the adapter all are 0)"
            ),
            "preference_margin": _mean(
                margins,
                "nats",
                "mean reward margin of held-out pairs: beta times what the adapter adds to it",
            ),
        }


def likelihoods(model: Any, pair: Pair) -> torch.Tensor:
    """log p(chosen), log p(rejected) given the prompt: the sums over the tokens of each answer, fp32."""
    parts = (-padded_nll(model, [pair.chosen, pair.rejected])).split([pair.chosen.scored, pair.rejected.scored])
    return torch.stack([part.sum() for part in parts])


def margin(found: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """By how much more than the reference a model prefers the chosen answer."""
    return (found[0] - found[1]) - (reference[0] - reference[1])


def dpo(difference: torch.Tensor, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    """The loss of a margin; with smoothing ε: -(1 - ε) log σ(β·m) - ε log σ(-β·m)."""
    logit = beta * difference
    sigmoid = torch.nn.functional.logsigmoid
    return -(1 - label_smoothing) * sigmoid(logit) - label_smoothing * sigmoid(-logit)


def _share(values: Sequence[float], how: str) -> Metric:
    count = sum(value > 0 for value in values)
    return share(count, len(values), how)


def _mean(values: Sequence[float], unit: str, how: str) -> Metric:
    method = f"{how}; interval by bootstrap over pairs, {RESAMPLES} resamples"
    ones = [1.0] * len(values)
    return Metric(math.fsum(values) / len(values), unit, method, len(values), ratio_interval(values, ones, RESAMPLES))
