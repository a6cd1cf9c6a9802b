"""Training of a whole model, from texts alone or beside a teacher: what ``student``, ``full`` and ``recover`` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ingot.core.stage import Given, Metric, Progress
from ingot.errors import RefusedInput
from ingot.kit import hf, layers
from ingot.kit.naming import RULE, means
from ingot.kit.train import distill, next_token, run, text
from ingot.kit.train.documents import Document
from ingot.kit.train.loop import Learner
from ingot.kit.train.measured import before_and_after
from ingot.kit.train.outcome import Scoring
from ingot.kit.train.settings import Settings
from ingot.kit.write_model import refuse_other_names


@dataclass(frozen=True)
class Trained:
    """What a training gave, and everything measured of it."""

    outcome: run.Outcome
    metrics: dict[str, Metric]


@dataclass(frozen=True)
class Trainee:
    """A model whose float32 weights that want a gradient are trained, and what is done to it beside.

    ``after_step`` see ``Task``. ``finish`` makes of the trained model the one that is written; held-out documents are
    then scored once more, and that scoring is the one after.
    """

    model: Any
    after_step: Callable[[], None] | None = None
    finish: Callable[[], None] | None = None


def load(folder: Path, names: str | Sequence[str], device: torch.device) -> Any:
    """A model in float32 on a device; what is not among ``names`` (unless these are ``all``) wants no gradient.

    RefusedInput: E-QUANTIZED, E-MODEL-ARCH where its weights could not be written back, E-FULL-MODULES.
    """
    layers.refuse_quantized(folder, "full")
    model = hf.load_model(folder, "float32")
    refuse_other_names(model, folder)
    if not isinstance(names, str):
        chosen = parameters_named(model, names)
        for name, weight in model.named_parameters(remove_duplicate=False):
            weight.requires_grad_(requires_grad=name in chosen)
        for name, weight in model.named_parameters(remove_duplicate=False):
            if name in chosen:  # a tied weight has two names, and one of them is enough
                weight.requires_grad_(requires_grad=True)
    return model.to(device)


def parameters_named(model: Any, names: Sequence[str]) -> set[str]:
    """The weights that ``names`` mean (``kit.naming``).

    RefusedInput (E-FULL-MODULES) for one that names nothing, with the words that there are.
    """
    found: set[str] = set()
    known = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for wanted in names:
        more = {name for name in known if means(wanted.strip("."), name)}
        if not more:
            words = sorted({word for name in known for word in name.split(".") if not word.isdigit()})
            raise RefusedInput(
                "E-FULL-MODULES",
                f"'train' names {wanted!r}, and no weight of the model has it in its name",
                facts=[f"words: {', '.join(words[:30])}"],
                hint=RULE,
            )
        found |= more
    return found


def train(stage: Any, given: Given, trainee: Trainee, tokenizer: Path, progress: Progress) -> Trained:
    """Train on role ``data``, with the teacher in that role.

    Of ``stage`` it reads what ``Training`` has and ``distill``. RefusedInput: E-DATASET-*, E-CONTEXT, E-DISTILL-*.
    """
    model = trainee.model
    texts = text.read(stage, given, model, tokenizer)
    device = next_token.device_of(model)
    layout = next_token.layout_for(model, texts.sample, stage.max_length, packing=stage.packing)
    task = run.Task(
        model, next_token.NextToken(layout), texts.train, layout,
        held=texts.held, chance=next_token.chance(model), autocast=stage.dtype == "bfloat16",
        after_step=trainee.after_step,
    )  # fmt: skip
    settings, folder = Settings.of(stage), given.maybe("teacher")

    def trained(task: run.Task[Document]) -> run.Outcome:
        outcome = run.train(settings, task, given, progress)
        if trainee.finish is not None:
            trainee.finish()
            _score_again(outcome, task, progress)
        return outcome

    if folder is None:
        outcome = trained(task)
        return Trained(outcome, outcome.metrics())
    teacher = _teacher(stage, folder, hf.load_lone_tokenizer(tokenizer), texts.sample, device)
    return _taught(stage, task, teacher, trained, progress)


def _score_again(outcome: run.Outcome, task: run.Task[Document], progress: Progress) -> None:
    if not task.held:
        return
    progress.phase("evaluate what is written")
    learner = Learner(task.model, task.scored_by or task.objective, task.layout, task.autocast)
    sums = learner.score(task.held, lambda done: progress(done, len(task.held), "documents"))
    outcome.evals.append(Scoring(outcome.kept, tuple(sums)))


def _teacher(
    stage: Any, folder: Path, tokenizer: Any, sample: Sequence[Document], device: torch.device
) -> distill.Teacher:
    wanted = stage.distill
    model = distill.load_teacher(folder, wanted.dtype, tokenizer, max_length=stage.max_length, device=device)
    layout = next_token.layout_for(model, sample, stage.max_length, packing=stage.packing)
    return distill.Teacher(model, layout, distill.size_of(tokenizer))


def _taught(
    stage: Any,
    task: run.Task[Document],
    teacher: distill.Teacher,
    trained: Callable[[run.Task[Document]], run.Outcome],
    progress: Progress,
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
    outcome = trained(task)
    distill.drop_projection(model)
    return Trained(outcome, {**outcome.metrics(), **_to_teacher(task.held, before, apart())})


def _to_teacher(held: Sequence[Document], before: Sequence[float], after: Sequence[float]) -> dict[str, Metric]:
    """The divergence from the teacher on held-out documents; none without them."""
    counts = [doc.scored for doc in held]
    if not counts:
        return {}
    how = "KL(teacher ‖ model) at temperature 1, held-out documents, token-weighted"
    return before_and_after("teacher_kl", (before, after), counts, "nats/token", how)
