"""One run of the harness: its tasks loaded from the files that were chosen, its evaluation over a backend of ours.

What ``lm_eval.simple_evaluate`` does between loading tasks and evaluating them is done here in the same order with its
own defaults, but for what looks at the machine: the versions of everything installed are in no artifact.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.api.registry import metric_registry
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.tasks import TaskManager

from ingot.errors import IngotError, RefusedInput
from ingot.kit.harness.choosing import PASS_AT_K, Chosen, choose
from ingot.kit.harness.model import BackendModel
from ingot.kit.harness.programs import Programs, running
from ingot.kit.harness.reading import Folder


@dataclass(frozen=True)
class Wish:
    """How tasks are asked: as the words of ``simple_evaluate``; None leaves it to the task."""

    num_fewshot: int | None = None
    limit: int | None = None
    max_tokens: int | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = True
    system_instruction: str | None = None
    resamples: int = 2000


def chosen(folder: Path, shown: str, names: tuple[str, ...], *, may_run: bool) -> Chosen:
    """See ``choosing.choose``, with the metrics that are registered."""
    metrics = frozenset({*metric_registry.keys(), PASS_AT_K})
    return choose(Folder(folder.resolve(), shown), names, metrics, may_run=may_run)


def load(selected: Chosen, scratch: Path, wish: Wish) -> dict[str, Any]:
    """The tasks as the harness holds them. RefusedInput (E-HARNESS-TASK) with its own words where it cannot."""
    prepared = scratch / "harness-tasks"
    selected.prepare(prepared, scratch / "harness-data")
    with _quiet(), _explained(selected):
        manager = TaskManager(include_path=str(prepared), include_defaults=False)
        loaded: dict[str, Any] = dict(manager.load(list(selected.names)))
    for task in loaded["tasks"].values():
        _apply(task, wish)
    return loaded


def _apply(task: Any, wish: Wish) -> None:
    """As ``simple_evaluate`` does: a task that says 0 examples keeps them."""
    if wish.max_tokens is not None and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value={"max_gen_toks": wish.max_tokens}, update=True)
    own = task.get_config("num_fewshot")
    if own is None or (wish.num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=wish.num_fewshot or 0)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def ask(loaded: Mapping[str, Any], model: BackendModel, wish: Wish, programs: Programs | None) -> dict[str, Any]:
    """What the harness found."""
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    with _quiet(), running(programs), _explained(None):
        found: dict[str, Any] = evaluator.evaluate(
            lm=model,
            task_dict=loaded,
            limit=wish.limit,
            bootstrap_iters=wish.resamples,
            system_instruction=wish.system_instruction,
            apply_chat_template=wish.apply_chat_template,
            fewshot_as_multiturn=wish.fewshot_as_multiturn,
            confirm_run_unsafe_code=programs is not None,
        )
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No file beside the task's Python, which is read only; no process to draw samples in."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    single = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
        if single is None:
            del os.environ["DISABLE_MULTIPROC"]


@contextlib.contextmanager
def _explained(selected: Chosen | None) -> Iterator[None]:
    """What a task's own templates and functions raise, in one error with the place in them."""
    try:
        yield
    except (IngotError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, ConnectionError | FileNotFoundError):
            raise  # of a disk that is full or broken, which the task is not to blame for
        which = ", ".join(selected.names) if selected else "a task"
        text = (str(error).strip().splitlines() or [""])[0][:500]
        raise RefusedInput(
            "E-HARNESS-TASK",
            f"the harness cannot use {which}: {type(error).__name__}: {text}",
            facts=[] if selected is None else [f"in {selected.folder.shown}"],
            hint="what its templates name must be fields of every item; nothing is fetched from a hub",
        ) from error
