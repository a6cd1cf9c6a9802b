"""One attempt at a training: it steps, scores, keeps the best weights, and goes on from what an earlier one left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Generic, TypeVar

import torch

from ingot.core.stage import Given, Progress
from ingot.errors import RefusedInput
from ingot.kit.train import optimizer, randomness
from ingot.kit.train.checkpoints import Checkpoint, Checkpoints
from ingot.kit.train.documents import Corpus, Document, Position, nothing_to_learn
from ingot.kit.train.guards import Guards
from ingot.kit.train.loop import Learner, Step
from ingot.kit.train.objective import Item
from ingot.kit.train.outcome import Outcome, Scoring
from ingot.kit.train.schedule import Schedule
from ingot.kit.train.settings import Settings
from ingot.kit.train.task import Task

ItemT = TypeVar("ItemT", bound=Item)


class Attempt(Generic[ItemT]):
    """What is trained and how far it is."""

    def __init__(self, settings: Settings, task: Task[ItemT], given: Given, progress: Progress) -> None:
        self.settings = settings
        self.task = task
        self.progress = progress
        self.seed = given.seed or 0
        self.learner = Learner(task.model, task.objective, task.layout, task.autocast)
        self.scorer = replace(self.learner, objective=task.scored_by or task.objective)
        self.weights = {name: weight for name, weight in task.model.named_parameters() if weight.requires_grad}
        self.steps = count_steps(settings, task.corpus, self.seed)
        self.schedule = Schedule(settings.schedule, settings.learning_rate, self.steps, settings.warmup)
        self.guards = Guards(task.chance, settings.learning_rate, task.what)
        self.optimizer = optimizer.make(settings, self.weights.values())
        self.checkpoints = Checkpoints(given.checkpoints, self._about(given))
        self.position = Position()
        self.best: dict[str, torch.Tensor] = {}
        self.phase = "train"
        self.tokens = 0
        self.read = 0  # tokens with those that only fill rows up
        self.losses: list[float] = []
        self.out = Outcome(
            task.objective.unit,
            task.layout,
            tuple(item.scored for item in task.held),
            sum(weight.numel() for weight in self.weights.values()),
        )

    def run(self) -> Outcome:
        """Train to the end, and put the weights to keep into the model."""
        randomness.seed(self.seed)
        self._resume()
        with self._activations():
            self._train()
        self._keep()
        return self.out

    def _train(self) -> None:
        if not self.out.evals:
            self._score(0)
        self.progress.phase(self.phase)
        self.task.model.train()
        saved = time.monotonic()
        batches = self.task.corpus.batches(self.seed, self.settings.items_a_step, self.position)
        while not self._ended():
            items, self.position = next(batches)
            self._step(items)
            number = len(self.out.history)
            if number == self.steps or (self.settings.eval_every and number % self.settings.eval_every == 0):
                self._score(number)
            if self._ended() or time.monotonic() - saved >= self.settings.checkpoint_every:
                self._save()
                saved = time.monotonic()
        device = next(iter(self.weights.values())).device
        if device.type == "cuda":
            self.out.device_bytes = torch.cuda.max_memory_allocated(device)
        if self.read:
            self.out.padding = 1 - self.tokens / self.read

    @contextmanager
    def _activations(self) -> Iterator[None]:
        """Computed again in the backward pass for the time of the training, where that is wanted."""
        model = self.task.model
        if not self.settings.gradient_checkpointing:
            yield
            return
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise RefusedInput(
                "E-MODEL-ARCH",
                f"transformers cannot compute activations of {model.config.model_type} again",
                hint="leave out 'gradient_checkpointing', and make batches or max_length smaller to save memory",
            )
        model.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            yield
        finally:
            model.gradient_checkpointing_disable()

    def _step(self, items: Sequence[ItemT]) -> None:
        started = time.perf_counter()
        index = len(self.out.history)
        rate = self.schedule.rate(index)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.learner.backward(items, self.settings.batch_size)
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.weights.values()), self.settings.gradient_clip))
        self._note(Step(index + 1, loss, rate, norm, sum(it.scored for it in items), sum(it.size for it in items)))
        if isinstance(items[0], Document):  # other items may have rows of their own
            self.read += self.learner.cost(items, self.settings.batch_size)
        self.guards.check(index + 1, self.losses, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.task.after_step is not None:
            self.task.after_step()
        self.out.seconds += time.perf_counter() - started
        live = {"loss": loss, "lr": rate, "tokens/s": self.tokens / self.out.seconds}
        self.progress(index + 1, self.steps, "steps", **live)

    def _note(self, step: Step) -> None:
        self.out.history.append(step)
        self.losses.append(step.loss)
        self.tokens += step.tokens

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
        self.progress.phase(self.phase)

    def _lowest(self) -> Scoring | None:
        """The scoring after a step with the lowest loss; of equal ones the first."""
        return min(self.out.evals[1:], key=self.out.held_loss, default=None)

    def _ended(self) -> bool:
        """Whether all steps are done, or as many scorings as ``patience`` says have passed since the lowest."""
        if len(self.out.history) >= self.steps:
            return True
        lowest, patience = self._lowest(), self.settings.patience
        if lowest is None or patience is None:
            return False
        return sum(1 for scoring in self.out.evals if scoring.step > lowest.step) >= patience

    def _keep(self) -> None:
        """Put the weights to keep into the model, and look whether the held-out loss grew."""
        lowest, last = self._lowest(), len(self.out.history)
        self.out.stopped_early = last < self.steps
        self.out.kept = lowest.step if lowest is not None and self.settings.keep == "best" else last
        if self.out.kept != last:
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(self.best[name])
        if self.out.evals:
            before, after = self.out.evals[0], self.out.after()
            self.guards.check_held(self.out.held_loss(before), self.out.held_loss(after))

    # --- checkpoints -----------------------------------------------------------------------------------------

    def _about(self, given: Given) -> dict[str, Any]:
        """Whose a checkpoint is: nothing but the same training takes it up."""
        return {
            "key": given.key,
            "seed": self.seed,
            "steps": self.steps,
            "settings": {name: value for name, value in asdict(self.settings).items() if name != "checkpoint_every"},
            "layout": asdict(self.task.layout),
            "unit": self.task.objective.unit,
            "held": [item.id for item in self.task.held],
            "weights": {name: [str(weight.dtype), *weight.shape] for name, weight in self.weights.items()},
            "device": sorted({weight.device.type for weight in self.weights.values()}),
        }

    def _save(self) -> None:
        moments, counters = optimizer.taken(self.optimizer, self.weights)
        states, plain = randomness.taken()
        parts = {"weight": self.weights, "best": self.best, "optimizer": moments, "random": states}
        tensors = {f"{part}:{name}": value for part, found in parts.items() for name, value in found.items()}
        body = {
            "optimizer": counters,
            "random": plain,
            "position": asdict(self.position),
            "history": [step.to_dict() for step in self.out.history],
            "evals": [{"step": scoring.step, "sums": list(scoring.sums)} for scoring in self.out.evals],
            "seconds": self.out.seconds,
            "read": self.read,
        }
        self.checkpoints.save(Checkpoint(len(self.out.history), body, tensors))

    def _resume(self) -> None:
        found = self.checkpoints.newest()
        if found is None:
            return
        parts: dict[str, dict[str, torch.Tensor]] = {"weight": {}, "best": {}, "optimizer": {}, "random": {}}
        for path, value in found.tensors.items():
            part, _, name = path.partition(":")
            parts[part][name] = value
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(parts["weight"][name])
        self.best = parts["best"]
        body = found.body
        optimizer.put_back(self.optimizer, self.weights, parts["optimizer"], body["optimizer"])
        randomness.put_back(parts["random"], body["random"])
        self.position = Position(**body["position"])
        for step in body["history"]:
            self._note(Step(**step))
        self.out.evals = [Scoring(item["step"], tuple(item["sums"])) for item in body["evals"]]
        self.out.seconds, self.read = body["seconds"], body["read"]
        self.out.resumed_from = found.step
        self.phase = f"train, resumed at step {found.step}"


def count_steps(settings: Settings, corpus: Corpus[Any], seed: int) -> int:
    """The number of optimizer steps. RefusedInput (E-DATASET-EMPTY, E-DATASET-LENGTH): no row teaches anything."""
    usable = next(corpus.epoch(seed, 0), None)
    if usable is None:
        raise nothing_to_learn(len(corpus), settings.max_length)
    if settings.steps is not None:
        return settings.steps
    count = sum(1 for _ in corpus.epoch(seed, 0))
    return -(-count * (settings.epochs or 1) // settings.items_a_step)
