"""What a kind gives to the frame; ``run`` says how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ingot.kit.train.documents import Corpus
from ingot.kit.train.layout import Layout
from ingot.kit.train.objective import Item, Objective

ItemT = TypeVar("ItemT", bound=Item)


@dataclass(frozen=True)
class Task(Generic[ItemT]):
    """What is trained, on what, and what gives the losses.

    ``chance`` is the loss of who knows nothing (a guard stops at twice that), ``what`` names in a message what is made.
    ``scored_by`` gives the held-out losses where they are not those that training makes small.
    """

    model: Any
    objective: Objective[ItemT]
    corpus: Corpus[ItemT]
    layout: Layout
    held: Sequence[ItemT] = ()
    chance: float | None = None
    after_step: Callable[[], None] | None = None
    autocast: bool = False
    what: str = "the model"
    scored_by: Objective[ItemT] | None = None
