"""The frame that every kind trains in: it steps, scores, guards, reports, and writes the curves.

A kind derives from ``stages/_training.Training`` and does in ``run``::

    from ingot.kit.train import next_token, run, text
    from ingot.kit.train.settings import Settings

    with run.prepared(self, given) as device:                  # threads, determinism, the device (E-DEVICE)
        progress.phase("load")
        model = ....to(device)                                 # parameters with requires_grad are what is trained
        texts = text.read(self, given, model)                  # .train and .held, from the data set in role `data`
        layout = next_token.layout_for(model, texts.sample, self.max_length, packing=self.packing)
        task = run.Task(model, next_token.NextToken(layout), texts.train, layout, held=texts.held,
                        chance=next_token.chance(model), what="the model")
        outcome = run.train(Settings.of(self), task, given, progress)
        progress.phase("write")
        ...                                                    # write the model: it holds the weights to keep
        outcome.write(out)                                     # training.json, loss.svg
        return Done({**outcome.metrics(), ...}, notes=run.notes(self, device))

What differs between kinds:

- **Another objective** (distillation, preferences): a value with ``unit`` and ``losses`` (``kit/train/objective.py``).
  Whatever else it needs, a teacher or reference log-probabilities, it holds itself; ``Task.model`` is what is trained.
- **Other items** (pairs): ``Corpus(rows, make)`` with a ``make`` that gives items with ``id``, ``size`` (tokens that a
  pass reads for it) and ``scored``, or None for a row that teaches nothing; ``Corpus.first(n)`` of the ``eval`` split
  gives ``held``. ``Layout("single", n)`` or ``Layout("padded", n)`` says how many go into one pass.
- **A mask that is held** (recovery): ``after_step`` is called after every optimizer step, before anything is scored or
  kept, and puts zeros back. It must depend on nothing but the weights and what was there when the task was made.
- **Several rounds** (gradual pruning): call ``train`` once a round with ``replace(settings, steps=…)`` and
  ``replace(given, checkpoints=given.checkpoints / f"round-{n}")`` (None stays None). A round that was finished by an
  attempt that was ended is taken from its last checkpoint without a step, so what comes between the rounds (the mask
  of the next) is computed again from the same weights and must be deterministic. Give each round its own seed with
  ``replace(given, seed=…)`` if it shall see another order.
- **fp32 weights that compute in bfloat16** (training all weights): ``Task(autocast=True)``.

Laws: training starts with ``given.seed``; the result depends on settings, task and seed alone, not on when it was
ended and went on, nor on how items are split into passes beyond rounding.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from ingot.core.stage import Given, Metric, Progress
from ingot.kit import device as devices
from ingot.kit import hf
from ingot.kit.train import measured
from ingot.kit.train.documents import Corpus, Position, nothing_to_learn
from ingot.kit.train.guards import Guards
from ingot.kit.train.layout import Layout
from ingot.kit.train.loop import Learner, Step
from ingot.kit.train.objective import Item, Objective
from ingot.kit.train.schedule import Schedule
from ingot.kit.train.settings import Settings

ItemT = TypeVar("ItemT", bound=Item)


@dataclass(frozen=True)
class Task(Generic[ItemT]):
    """What is trained, on what, and what gives the losses; see the module.

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


@dataclass(frozen=True)
class Scoring:
    """A scoring of the held-out items after ``step`` steps: the summed losses of each."""

    step: int
    sums: tuple[float, ...]


@dataclass
class Outcome:
    """What a training gave; the model of the task holds the weights to keep."""

    unit: str
    layout: Layout
    held_scored: tuple[int, ...]
    trainable: int
    history: list[Step] = field(default_factory=list)
    evals: list[Scoring] = field(default_factory=list)
    #: The step whose weights are the result.
    kept: int = 0
    #: Seconds of the steps.
    seconds: float = 0.0

    def held_loss(self, scoring: Scoring) -> float:
        """The mean loss of a scoring by scored part."""
        return sum(scoring.sums) / sum(self.held_scored)

    def after(self) -> Scoring:
        """The scoring of the weights that are the result. IndexError when nothing was held out."""
        return [scoring for scoring in self.evals if scoring.step == self.kept][-1]

    def write(self, out: Path) -> None:
        """Write ``training.json``: the curves, no time in them."""
        hf.write_json(out / "training.json", measured.curves(self))

    def metrics(self) -> dict[str, Metric]:
        """What was measured; held-out figures only where items were held out."""
        return measured.metrics(self)


@contextmanager
def prepared(stage: Any, given: Given) -> Iterator[torch.device]:
    """Threads, determinism and seeds for the time of a training; gives the device. RefusedInput (E-DEVICE)."""
    device = devices.resolve(stage.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(given.threads)
    torch.use_deterministic_algorithms(mode=device.type == "cpu")
    seed(given.seed or 0)
    try:
        yield device
    finally:
        torch.use_deterministic_algorithms(mode=False)
        torch.set_num_threads(threads)


def seed(number: int) -> None:
    """Seed every random state that a model may draw from."""
    random.seed(number)
    torch.manual_seed(number)


def notes(stage: Any, device: torch.device) -> dict[str, object]:
    """What a receipt notes of a training: the device and the dtype it resolved to."""
    return {**devices.described(device), "dtype": stage.dtype}


def train(settings: Settings, task: Task[ItemT], given: Given, progress: Progress) -> Outcome:
    """Train ``task.model`` in place; see the module.

    RefusedInput: E-DATASET-EMPTY, E-DATASET-LENGTH. StageFailed: E-TRAIN-DIVERGED.
    """
    return _Run(settings, task, given, progress).train()


class _Run(Generic[ItemT]):
    """One training as it goes on."""

    def __init__(self, settings: Settings, task: Task[ItemT], given: Given, progress: Progress) -> None:
        self.settings = settings
        self.task = task
        self.progress = progress
        self.seed = given.seed or 0
        self.learner = Learner(task.model, task.objective, task.layout, task.autocast)
        self.scorer = replace(self.learner, objective=task.scored_by or task.objective)
        self.weights = {name: weight for name, weight in task.model.named_parameters() if weight.requires_grad}
        self.steps = _steps(settings, task.corpus, self.seed)
        self.schedule = Schedule(settings.schedule, settings.learning_rate, self.steps, settings.warmup)
        self.guards = Guards(task.chance, settings.learning_rate, task.what)
        self.optimizer = torch.optim.AdamW(
            list(self.weights.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.position = Position()
        self.best: dict[str, torch.Tensor] = {}
        self.out = Outcome(
            task.objective.unit,
            task.layout,
            tuple(item.scored for item in task.held),
            sum(weight.numel() for weight in self.weights.values()),
        )

    def train(self) -> Outcome:
        seed(self.seed)
        self._score(0)
        self.progress.phase("train")
        self.task.model.train()
        batches = self.task.corpus.batches(self.seed, self.settings.items_a_step, self.position)
        while len(self.out.history) < self.steps and not self._stalled():
            items, self.position = next(batches)
            self._step(items)
            number = len(self.out.history)
            if number == self.steps or (self.settings.eval_every and number % self.settings.eval_every == 0):
                self._score(number)
        self._keep()
        return self.out

    def _step(self, items: Sequence[ItemT]) -> None:
        started = time.perf_counter()
        index = len(self.out.history)
        rate = self.schedule.rate(index)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.learner.backward(items, self.settings.batch_size)
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.weights.values()), self.settings.gradient_clip))
        scored, tokens = sum(item.scored for item in items), sum(item.size for item in items)
        self.out.history.append(Step(index + 1, loss, rate, norm, scored, tokens))
        self.guards.check(index + 1, [step.loss for step in self.out.history], norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.task.after_step is not None:
            self.task.after_step()
        self.out.seconds += time.perf_counter() - started
        speed = sum(step.tokens for step in self.out.history) / self.out.seconds
        live = {"loss": loss, "lr": rate, "tokens/s": speed}
        self.progress(index + 1, self.steps, "steps", **live)

    def _score(self, step: int) -> None:
        held = self.task.held
        if not held:
            return
        self.progress.phase("evaluate")
        sums = self.scorer.score(held, lambda done: self.progress(done, len(held), "documents"))
        scoring = Scoring(step, tuple(sums))
        self.out.evals.append(scoring)
        if step and self._lowest() is scoring and self.settings.keep == "best":
            self.best = {name: weight.detach().to("cpu", copy=True) for name, weight in self.weights.items()}
        self.progress.phase("train")

    def _lowest(self) -> Scoring | None:
        """The scoring after a step with the lowest loss; of equal ones the first."""
        return min(self.out.evals[1:], key=self.out.held_loss, default=None)

    def _stalled(self) -> bool:
        """Whether as many scorings as ``patience`` says have passed since the lowest."""
        lowest, patience = self._lowest(), self.settings.patience
        if lowest is None or patience is None:
            return False
        return sum(1 for scoring in self.out.evals if scoring.step > lowest.step) >= patience

    def _keep(self) -> None:
        """Put the weights to keep into the model, and look whether the held-out loss grew."""
        lowest, last = self._lowest(), len(self.out.history)
        self.out.kept = lowest.step if lowest is not None and self.settings.keep == "best" else last
        if self.out.kept != last:
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(self.best[name])
        if self.out.evals:
            before, after = self.out.evals[0], self.out.after()
            self.guards.check_held(self.out.held_loss(before), self.out.held_loss(after))


def _steps(settings: Settings, corpus: Corpus[Any], seed: int) -> int:
    """The number of optimizer steps. RefusedInput when no row teaches anything."""
    usable = next(corpus.epoch(seed, 0), None)
    if usable is None:
        raise nothing_to_learn(len(corpus), settings.max_length)
    if settings.steps is not None:
        return settings.steps
    count = sum(1 for _ in corpus.epoch(seed, 0))
    return -(-count * (settings.epochs or 1) // settings.items_a_step)
