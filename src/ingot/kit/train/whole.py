"""Training of a whole model, from texts alone or beside a teacher: what ``student`` and ``full`` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ingot.core.stage import Given, Metric, Progress
from ingot.kit import hf
from ingot.kit.bootstrap import ratio_interval
from ingot.kit.train import distill, next_token, run, text
from ingot.kit.train.documents import Document
from ingot.kit.train.loop import Learner
from ingot.kit.train.settings import Settings

_RESAMPLES = 2000


@dataclass(frozen=True)
class Trained:
    """What a training gave, and everything measured of it."""

    outcome: run.Outcome
    metrics: dict[str, Metric]


def train(stage: Any, given: Given, model: Any, tokenizer: Path, progress: Progress) -> Trained:
    """Train the float32 weights of ``model`` that want a gradient, on role ``data``, with the teacher in that role.

    Of ``stage`` it reads what ``Training`` has and ``distill``. RefusedInput: E-DATASET-*, E-CONTEXT, E-DISTILL-*.
    """
    texts = text.read(stage, given, model, tokenizer)
    device = next_token.device_of(model)
    layout = next_token.layout_for(model, texts.sample, stage.max_length, packing=stage.packing)
    task = run.Task(
        model, next_token.NextToken(layout), texts.train, layout,
        held=texts.held, chance=next_token.chance(model), autocast=stage.dtype == "bfloat16",
    )  # fmt: skip
    folder = given.maybe("teacher")
    if folder is None:
        outcome = run.train(Settings.of(stage), task, given, progress)
        return Trained(outcome, outcome.metrics())
    teacher = _teacher(stage, folder, hf.load_lone_tokenizer(tokenizer), texts.sample, device)
    return _taught(stage, task, teacher, given, progress)


def _teacher(
    stage: Any, folder: Path, tokenizer: Any, sample: Sequence[Document], device: torch.device
) -> distill.Teacher:
    wanted = stage.distill
    model = distill.load_teacher(folder, wanted.dtype, tokenizer, max_length=stage.max_length, device=device)
    layout = next_token.layout_for(model, sample, stage.max_length, packing=stage.packing)
    return distill.Teacher(model, layout, distill.size_of(tokenizer))


def _taught(
    stage: Any, task: run.Task[Document], teacher: distill.Teacher, given: Given, progress: Progress
) -> Trained:
    wanted, model = stage.distill, task.model
    objective = distill.Distillation(task.layout, teacher, wanted.temperature, wanted.weight, wanted.hidden_weight)
    measure = Learner(model, distill.ToTeacher(task.layout, teacher), task.layout, task.autocast)

    def apart() -> list[float]:
        progress.phase("compare with the teacher")
        return measure.score(task.held, lambda done: progress(done, len(task.held), "documents"))

    before = apart()
    if wanted.hidden_weight:
        distill.add_projection(model, teacher.model)
    task = replace(task, objective=objective, scored_by=task.objective, chance=objective.chance(model))
    outcome = run.train(Settings.of(stage), task, given, progress)
    distill.drop_projection(model)
    return Trained(outcome, {**outcome.metrics(), **_to_teacher(task.held, before, apart())})


def _to_teacher(held: Sequence[Document], before: Sequence[float], after: Sequence[float]) -> dict[str, Metric]:
    """The divergence from the teacher on held-out documents; none without them."""
    counts = [doc.scored for doc in held]
    if not counts:
        return {}
    change = [b - a for a, b in zip(before, after, strict=True)]
    method = "KL(teacher ‖ model) at temperature 1, held-out documents, token-weighted; interval by bootstrap "
    method += f"over documents, {_RESAMPLES} resamples"
    return {
        f"teacher_kl_{name}": Metric(
            sum(sums) / sum(counts), "nats/token", ("paired by document; " if name == "change" else "") + method,
            n=len(counts), interval=ratio_interval(sums, counts, _RESAMPLES),
        )
        for name, sums in (("before", before), ("after", after), ("change", change))
    }  # fmt: skip
