"""Learning from a teacher: its whole distribution over the next token, and if wanted its hidden states.

The loss of a scored token is

    weight · T² · KL(teacher at T ‖ student at T) + (1 − weight) · nll + hidden_weight · h

with both distributions softened by the temperature T, and T² so that the gradient keeps its size whatever T is
(Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*, 2015, section 2). h compares states: layer i
of the student's n with layer round(i · m / n) of the teacher's m, both last ones after the last norm; of each pair
‖P s − t‖² / ‖t‖², and their mean. P is one matrix for all pairs where the widths differ, trained beside the student and
thrown away, as in TinyBERT (Jiao et al. 2020); where they do not, there is none.

The teacher is frozen, in evaluation mode, and computes only where the loss looks. Rows of an embedding beyond the
tokenizer's tokens, which pad it, are left out of the distributions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn import functional

from ingot.errors import RefusedInput
from ingot.kit import hf
from ingot.kit.train import next_token
from ingot.kit.train.documents import Document
from ingot.kit.train.layout import Layout
from ingot.kit.train.next_token import Seen
from ingot.kit.train.text import context_of

#: The name under which the student holds the projection while it is trained.
PROJECTION = "distillation_projection"
#: Texts that two tokenizers must split alike to be taken for one.
_PROBES = (
    "Hello, world!",
    " two  spaces\n\n\ttabs",
    "don't WE'LL",
    "12345.67",
    "naïve café 中文 🙂",
    "a_b(c) {d: [e]}",
)


class Settings(Protocol):
    """The parameter ``distill``."""

    temperature: float
    weight: float
    hidden_weight: float
    dtype: str


@dataclass(frozen=True)
class Teacher:
    """A frozen model, how documents are laid out for it, and how many tokens it shares with its student."""

    model: Any
    layout: Layout
    tokens: int

    def look(self, docs: Sequence[Document], *, hidden: bool = False) -> Seen:
        """What it says where the loss looks."""
        with torch.no_grad():
            return next_token.seen(self.model, docs, self.layout, hidden=hidden)


@dataclass(frozen=True)
class Distillation:
    """The objective of a student; see the module."""

    layout: Layout
    teacher: Teacher
    temperature: float
    weight: float
    hidden_weight: float = 0.0

    @property
    def unit(self) -> str:
        """Of a loss: both of its parts are nats per token, where no hidden states are compared."""
        return "nats/token"

    def losses(self, model: Any, pack: Sequence[Document]) -> torch.Tensor:
        """The mixed loss of every scored token, fp32, in order."""
        with_states = self.hidden_weight > 0
        found = next_token.seen(model, pack, self.layout, hidden=with_states)
        taught = self.teacher.look(pack, hidden=with_states)
        total = self.weight * self.temperature**2 * divergence(taught, found, self.teacher.tokens, self.temperature)
        if self.weight < 1:
            total = total + (1 - self.weight) * found.nll()
        if with_states:
            total = total + self.hidden_weight * states_apart(taught, found, getattr(model, PROJECTION, None))
        return total

    def chance(self, model: Any) -> float:
        """What a student that knows nothing costs at most, by and large: a uniform guess, states that are all zero."""
        guess = next_token.chance(model)
        return (self.weight * self.temperature**2 + 1 - self.weight) * guess + self.hidden_weight


@dataclass(frozen=True)
class ToTeacher:
    """Measures how far a model is from its teacher: KL(teacher ‖ model) of every scored token, no temperature."""

    layout: Layout
    teacher: Teacher

    @property
    def unit(self) -> str:
        """Of a loss."""
        return "nats/token"

    def losses(self, model: Any, pack: Sequence[Document]) -> torch.Tensor:
        """The divergence of every scored token, fp32, in order."""
        return divergence(self.teacher.look(pack), next_token.seen(model, pack, self.layout), self.teacher.tokens, 1.0)


def divergence(taught: Seen, found: Seen, tokens: int, temperature: float) -> torch.Tensor:
    """KL(teacher ‖ student) in nats over the first ``tokens`` ids, both softened, of every row; without the T²."""
    goal = functional.log_softmax(taught.logits[:, :tokens].float() / temperature, dim=-1)
    guess = functional.log_softmax(found.logits[:, :tokens].float() / temperature, dim=-1)
    return functional.kl_div(guess, goal, reduction="none", log_target=True).sum(-1)


def states_apart(taught: Seen, found: Seen, projection: Any | None) -> torch.Tensor:
    """The mean over pairs of layers of ‖P s − t‖² / ‖t‖², of every row, fp32."""
    parts = []
    for mine, theirs in pairs(len(found.hidden) - 1, len(taught.hidden) - 1):
        state = found.hidden[mine] if projection is None else projection(found.hidden[mine])
        goal = taught.hidden[theirs].float()
        parts.append((state.float() - goal).square().sum(-1) / goal.square().sum(-1).clamp_min(1e-12))
    return torch.stack(parts).mean(0)


def pairs(mine: int, theirs: int) -> list[tuple[int, int]]:
    """Which layer of the student learns from which of the teacher, both counted from 1."""
    return [(layer, max(1, round(layer * theirs / mine))) for layer in range(1, mine + 1)]


def load_teacher(folder: Path, dtype: str, tokenizer: Any, *, max_length: int, device: torch.device) -> Any:
    """The frozen teacher.

    RefusedInput: E-DISTILL-VOCABULARY when its tokens are not those of ``tokenizer``, E-CONTEXT when it cannot read
    ``max_length`` tokens.
    """
    refuse_other_vocabulary(tokenizer, hf.load_tokenizer(folder))
    model = hf.load_model(folder, dtype)
    context, needed = context_of(model), size_of(tokenizer)
    if context is not None and max_length > context:
        raise RefusedInput(
            "E-CONTEXT",
            f"the teacher reads {context} tokens, and max_length is {max_length}",
            hint=f"set max_length to {context} or less",
        )
    if (rows := model.config.get_text_config().vocab_size) < needed:
        what = f"the teacher predicts {rows} tokens of the {needed} that its tokenizer has"
        raise RefusedInput("E-DISTILL-VOCABULARY", what, hint="use the tokenizer that the teacher was trained with")
    return model.requires_grad_(requires_grad=False).to(device).eval()


def size_of(tokenizer: Any) -> int:
    """Ids of a tokenizer, from 0 on."""
    return int(max(tokenizer.get_vocab().values())) + 1


def refuse_other_vocabulary(tokenizer: Any, teachers: Any) -> None:
    """Refuse two tokenizers that are not one by content: the same tokens under the same ids, the same ids for texts.

    RefusedInput (E-DISTILL-VOCABULARY): distributions over other tokens cannot be compared.
    """
    mine, theirs = tokenizer.get_vocab(), teachers.get_vocab()
    other = sorted(token for token in mine.keys() | theirs.keys() if mine.get(token) != theirs.get(token))
    if other:
        raise _other(
            "the teacher's vocabulary is not the student's, so their predictions cannot be compared",
            f"{len(mine)} tokens of the student, {len(theirs)} of the teacher, {len(other)} not the same in both",
            *(
                f"{token!r}: {_id(mine, token)} of the student, {_id(theirs, token)} of the teacher"
                for token in other[:3]
            ),
        )
    for text in _PROBES:
        if (found := _ids(tokenizer, text)) != (taught := _ids(teachers, text)):
            what = "the teacher has the student's tokens, but splits texts into others of them"
            raise _other(what, f"{text!r}: {found} of the student, {taught} of the teacher")


def _id(vocabulary: Mapping[str, int], token: str) -> str:
    return f"id {vocabulary[token]}" if token in vocabulary else "no token"


def _other(what: str, *facts: str) -> RefusedInput:
    hint = "give the student the teacher's own tokenizer, from: {tokenizer: TEACHER}"
    return RefusedInput("E-DISTILL-VOCABULARY", what, facts=facts, hint=hint)


def _ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def add_projection(model: Any, teacher: Any) -> None:
    """Give the student a projection to the teacher's width; none where the widths are equal."""
    mine, theirs = (found.config.get_text_config().hidden_size for found in (model, teacher))
    if mine != theirs:
        model.add_module(PROJECTION, torch.nn.Linear(mine, theirs, bias=False, device=next_token.device_of(model)))


def drop_projection(model: Any) -> None:
    """Throw it away: it is no part of the student."""
    if hasattr(model, PROJECTION):
        delattr(model, PROJECTION)
