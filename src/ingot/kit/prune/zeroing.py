"""Weights of which some become zero as they flow by, and what is then measured of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.core.stage import Done, Given, Metric, Progress
from ingot.errors import RefusedInput
from ingot.kit import hf, layers
from ingot.kit.calibration import read_texts
from ingot.kit.prune import rules, wanda
from ingot.kit.prune.flowing import Pruning, Rule
from ingot.kit.prune.goals import Goal, Prunable
from ingot.kit.prune.rules import Goals
from ingot.kit.stream.chain import slots
from ingot.kit.stream.inputs import side_folder
from ingot.kit.stream.vocabulary import Weights

if TYPE_CHECKING:
    from ingot.kit.prune.gradual import Between


@dataclass(frozen=True)
class How:
    """The method and its settings; see the parameters of ``prune``."""

    method: str
    documents: int
    max_length: int
    device: str
    block_size: int
    dampening: float
    between: Between | None = None


def zero(
    weights: Weights, given: Given, progress: Progress, how: How, goals_of: Callable[[Prunable], dict[str, Goal]]
) -> Weights:
    """The flow with its pruning. RefusedInput: E-PRUNE-MODULES, E-PRUNE-SHAPE, E-DATASET-EMPTY, E-DEVICE."""
    found = {slot.name: slot for slot in slots(weights)}
    linear = layers.linear_weights(weights.folder, found)
    prunable = Prunable(tuple(linear), tuple(layers.embedding_weights(weights.folder, found)))
    goals = {module: (goal, found[f"{module}.weight"]) for module, goal in goals_of(prunable).items()}
    _check_shapes(how, goals)
    _check_embeddings(how, prunable, goals)
    chosen = _rules(how, goals, given, progress)
    pruning = Pruning(chosen.rules)
    folder = side_folder(given)
    layers.copy_model_files(weights.folder, folder)
    progress.phase("prune")
    weights.chain.append(pruning)
    weights.folder = folder
    weights.measure = lambda _counted: Done(measured(how, prunable, pruning, chosen, folder), notes=chosen.notes)
    return weights


def calibrated(how: How, given: Given, progress: Progress) -> tuple[Any, list[list[int]]]:
    """The model of role ``model`` in memory, and the texts of role ``calibration`` as its token ids."""
    progress.phase("calibrate")
    texts = read(how, given)
    return hf.load_model(given.one("model")), texts


def read(how: How, given: Given) -> list[list[int]]:
    """The texts of role ``calibration``. RefusedInput (E-DATASET-EMPTY): they give no tokens."""
    tokenizer = hf.load_tokenizer(given.one("model"))
    return read_texts(given.one("calibration"), tokenizer, documents=how.documents, max_length=how.max_length)


def _check_shapes(how: How, goals: Goals) -> None:
    for module, (goal, slot) in goals.items():
        pattern = f"{goal.keep}:{goal.block}"
        if goal.block and slot.shape[-1] % goal.block:
            raise RefusedInput(
                "E-PRUNE-SHAPE",
                f"pattern {pattern} needs rows that are a multiple of {goal.block}",
                facts=[f"{module}: {slot.shape}"],
                hint="name the layers that fit, or give this one a share under 'sparsity'",
            )
        if goal.block and how.method == "sparsegpt" and how.block_size % goal.block:
            raise RefusedInput(
                "E-PRUNE-SHAPE",
                f"block_size {how.block_size} is no multiple of {goal.block}, so blocks of {goal.block} would be cut",
                facts=[f"{module}: pattern {pattern}"],
                hint=f"choose a block_size that is a multiple of {goal.block}",
            )


def _check_embeddings(how: How, prunable: Prunable, goals: Goals) -> None:
    named = [module for module in goals if module in prunable.embeddings]
    if named and how.method != "magnitude":
        raise RefusedInput(
            "E-PRUNE-MODULES",
            f"{how.method} prunes linear layers; {', '.join(named)} can be pruned by magnitude only",
            hint="leave the embeddings out, or prune them in a target of their own with 'method: magnitude'",
        )


@dataclass(frozen=True)
class _Chosen:
    """The rule of each module, what the receipt notes of where they were computed, and the levels of a schedule."""

    rules: Mapping[str, Rule]
    notes: Mapping[str, object] = field(default_factory=dict)
    levels: Sequence[Mapping[str, object]] = ()


def _rules(how: How, goals: Goals, given: Given, progress: Progress) -> _Chosen:
    if how.between is not None:
        return _in_levels(how, how.between, goals, given, progress)
    if how.method == "magnitude":
        return _Chosen(rules.by_magnitude(goals))
    model, texts = calibrated(how, given, progress)
    if how.method == "wanda":
        norms = wanda.input_norms(
            model, list(goals), texts,
            lambda done, tokens: progress(done, len(texts), "documents", tokens=tokens),
        )  # fmt: skip
        return _Chosen(rules.by_wanda(goals, norms))
    from ingot.kit import device, oneshot
    from ingot.kit.prune.sparsegpt import SparseGpt

    where = device.resolve(how.device)
    settings = oneshot.Settings(where, given.threads)
    wanted = {module: goal for module, (goal, _) in goals.items()}
    SparseGpt(how.block_size, how.dampening).prune(model, wanted, texts, settings, progress)
    return _Chosen(rules.from_model(goals, model), device.described(where))


def _in_levels(how: How, between: Between, goals: Goals, given: Given, progress: Progress) -> _Chosen:
    from ingot.kit import device
    from ingot.kit.prune.gradual import Gradual
    from ingot.kit.prune.sparsegpt import SparseGpt

    texts = () if how.method == "magnitude" else read(how, given)
    steps = Gradual(how.method, between, SparseGpt(how.block_size, how.dampening), texts, goals)
    model, levels = steps.run(given, progress)
    found = rules.from_model(goals, model, by_row=how.method == "wanda")
    notes = {**device.described(device.resolve(between.device)), "dtype": between.settings.dtype}
    return _Chosen(found, notes, levels)


def measured(how: How, prunable: Prunable, pruning: Pruning, chosen: _Chosen, folder: Path) -> dict[str, Metric]:
    """The metrics, and ``prune.json`` with the goal and the zeros of each module."""
    counts = {module: pruning.counts[module] for module in pruning.rules}
    modules = [
        {
            "name": name,
            "group": prunable.group(name),
            **pruning.rules[name].goal.to_dict(),
            "zeros": zeros,
            "parameters": total,
        }
        for name, (zeros, total) in counts.items()
    ]
    levels = {"levels": list(chosen.levels)} if chosen.levels else {}
    hf.write_json(folder / "prune.json", {"format": 1, "method": how.method, "modules": modules, **levels})
    crowded = pruning.crowded if any(rule.goal.block for rule in pruning.rules.values()) else None
    metrics = count_metrics(prunable, counts, crowded)
    if how.between is not None:
        steps = sum(int(str(level.get("steps", 0))) for level in chosen.levels)
        metrics["levels"] = Metric(len(chosen.levels), "1", "levels of the schedule")
        metrics["recovery_steps"] = Metric(steps, "1", "optimizer steps between the levels")
    return metrics


def count_metrics(prunable: Prunable, counts: Mapping[str, tuple[int, int]], crowded: int | None) -> dict[str, Metric]:
    """The metrics of what was counted while writing; ``crowded`` None: no module has a pattern."""
    by_group: dict[str, list[tuple[int, int]]] = {}
    for name, count in counts.items():
        by_group.setdefault(prunable.group(name), []).append(count)
    metrics = _whole(counts)
    for group, found in sorted(by_group.items()):
        share = sum(zeros for zeros, _ in found) / sum(total for _, total in found)
        metrics[f"{group}_sparsity"] = Metric(share, "1", "of these modules together, counted while writing")
    if crowded is not None:
        method = "blocks of M weights that hold more than N, of the modules with a pattern"
        metrics["crowded_blocks"] = Metric(crowded, "1", method)
    return metrics


def _whole(counts: Mapping[str, tuple[int, int]]) -> dict[str, Metric]:
    zeros = sum(count for count, _ in counts.values())
    parameters = sum(total for _, total in counts.values())
    lowest = min(count / total for count, total in counts.values())
    highest = max(count / total for count, total in counts.values())
    return {
        "sparsity": Metric(zeros / parameters, "1", "zeros over weights of the pruned layers, counted while writing"),
        "sparsity_lowest": Metric(lowest, "1", "of the least sparse of these layers"),
        "sparsity_highest": Metric(highest, "1", "of the sparsest of these layers"),
        "zeros": Metric(zeros, "parameters", "weights that are zero in the pruned layers, counted while writing"),
        "pruned_parameters": Metric(parameters, "parameters", "weights of the pruned layers"),
        "pruned_layers": Metric(len(counts), "1", "layers pruned"),
    }
