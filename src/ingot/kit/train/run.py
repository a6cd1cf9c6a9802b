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
        return Done({**outcome.metrics(), ...}, notes=run.notes(self, device, outcome))

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

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from ingot.core.stage import Given, Progress
from ingot.errors import StageFailed
from ingot.kit import device as devices
from ingot.kit.train import randomness
from ingot.kit.train.attempt import Attempt
from ingot.kit.train.objective import Item
from ingot.kit.train.outcome import Outcome
from ingot.kit.train.settings import Settings
from ingot.kit.train.task import Task

__all__ = ["Outcome", "Task", "notes", "prepared", "train"]

ItemT = TypeVar("ItemT", bound=Item)


@contextmanager
def prepared(stage: Any, given: Given) -> Iterator[torch.device]:
    """Threads, determinism and seeds for the time of a training; gives the device. RefusedInput (E-DEVICE)."""
    device = devices.resolve(stage.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(given.threads)
    torch.use_deterministic_algorithms(mode=device.type == "cpu")
    with_cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)  # it plans anew for each length of a pass, and no two are alike
    randomness.seed(given.seed or 0)
    try:
        yield device
    finally:
        torch.use_deterministic_algorithms(mode=False)
        torch.backends.cuda.enable_cudnn_sdp(enabled=with_cudnn)
        torch.set_num_threads(threads)


def train(settings: Settings, task: Task[ItemT], given: Given, progress: Progress) -> Outcome:
    """Train ``task.model`` in place; see the module.

    RefusedInput: E-DATASET-EMPTY, E-DATASET-LENGTH, E-MODEL-ARCH (gradient_checkpointing). MissingTool: adamw_8bit
    without bitsandbytes. StageFailed: E-TRAIN-START, E-TRAIN-DIVERGED, E-DEVICE-MEMORY.
    """
    try:
        return Attempt(settings, task, given, progress).run()
    except torch.OutOfMemoryError as error:
        raise StageFailed(
            "E-DEVICE-MEMORY",
            "the GPU has too little memory for this training",
            facts=[str(error).splitlines()[0][:300]],
            hint="use a smaller max_length or batch_size (accumulate makes up for it), gradient_checkpointing, "
            "'optimizer: adamw_8bit', or for adapters 'method: qlora'",
        ) from error


def notes(stage: Any, device: torch.device, outcome: Outcome) -> dict[str, object]:
    """What a receipt notes of a training: the device and dtype it resolved to, and where it went on if it was ended."""
    found: dict[str, object] = {**devices.described(device), "dtype": stage.dtype}
    if outcome.resumed_from is not None:
        found["resumed_from_step"] = outcome.resumed_from
    return found
