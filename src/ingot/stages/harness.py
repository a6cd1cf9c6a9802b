"""``harness``: tasks of lm-eval, run by its own code over a candidate of any form, from files of the project alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from ingot.core.digest import record_files, tree_digest
from ingot.core.stage import (
    Done,
    Frozen,
    Given,
    Measure,
    Metric,
    Progress,
    Reproducibility,
    Source,
)
from ingot.errors import RefusedInput
from ingot.stages._placed import Placed
from ingot.stages._task import Found, Task, write_evaluation

if TYPE_CHECKING:
    from ingot.kit.backends import Backend
    from ingot.kit.harness.model import BackendModel
    from ingot.kit.harness.programs import Programs

#: The harness's own metrics, and what ingot adds. A task with several filters gives each by the words of the filter.
_CHOICE = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "likelihood", "brier_score", "f1", "mcc")
_TEXT = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
_ANSWERS = ("exact_match", "bleu", "chrf", "ter")
_COUNTS = ("items", "truncated")
#: Metrics that are taken of answers, which a task may read by several filters.
_FILTERED = (*_ANSWERS, "pass_at_K")


def _as_source(value: object) -> object:
    """``path: FOLDER`` is short for ``path: {path: FOLDER}``."""
    if isinstance(value, str):
        return Source(path=value)
    return Source.model_validate(value) if isinstance(value, dict) else value


class RunCode(Frozen):
    """Leave to run the programs that a model writes, and what each of them may take."""

    cpu_seconds: int = Field(default=10, ge=1, le=3600, description="processor time of one program")
    memory: int = Field(default=512, ge=64, le=65536, description="memory of one program, in MiB")


class Harness(Placed, Task):
    """Asks a candidate the tasks of a folder, through lm-eval's own code.

    The folder holds the YAML of tasks as lm-eval has it, their Python and their items as JSON; nothing is fetched. Task
    code is code of the project, as that of ``command``. What a model writes runs in a sandbox, and only if ``run_code``
    asks for it. Writes ``evaluation.json``, ``harness.json`` (the harness's own figures) and ``items.jsonl``.
    """

    kind: ClassVar[str] = "harness"
    reproducibility: ClassVar[Reproducibility] = "device_dependent"
    tools: ClassVar[tuple[str, ...]] = (
        "compressed-tensors", "coremltools", "datasets", "gguf", "jinja2", "llama-cpp-python", "lm-eval", "numpy",
        "onnx", "onnxruntime", "safetensors", "torch", "transformers",
    )  # fmt: skip
    extra: ClassVar[str | None] = "all"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("items", "items"),
        Measure("truncated", "requests"),
        *(Measure(name, "1", "where a task of choices has it") for name in _CHOICE),
        *(Measure(name, "1", "where a task scores texts") for name in _TEXT if name != "bits_per_byte"),
        Measure("bits_per_byte", "bits/byte", "where a task scores texts"),
        *(Measure(name, "1", "where a task compares answers") for name in _ANSWERS),
        Measure("exact_match_FILTER", "1", "the same by each of several filters, as `exact_match_strict`"),
        Measure("pass_at_K", "1", "where a task runs programs"),
        Measure("TASK_METRIC", "1", "of several tasks each metric has the name of its task before it"),
    )

    path: Annotated[Source, BeforeValidator(_as_source, json_schema_input_type=str | Source)] = Field(
        description="folder of the project with the tasks: YAML as lm-eval has it, Python and JSON beside it"
    )
    tasks: tuple[str, ...] = Field(min_length=1, description="names of tasks, groups or tags of the folder")
    num_fewshot: int | None = Field(
        default=None, ge=0, le=1000, description="examples before each question; null: as many as the task says"
    )
    limit: int | None = Field(
        default=None, ge=1, description="items of each task, the first in its file; null: all of them"
    )
    max_tokens: int | None = Field(
        default=None, ge=1, le=131072, description="tokens after which an answer is cut; null: as the task says, or 256"
    )
    max_length: int = Field(
        default=2048,
        ge=8,
        le=131072,
        description="tokens that are read with the answer, fewer where the model's context is shorter; longer texts "
        "lose their beginning",
    )
    apply_chat_template: bool = Field(default=False, description="Ask in the candidate's own chat template")
    fewshot_as_multiturn: bool = Field(
        default=True, description="In a chat template, examples are turns of their own and not one long question"
    )
    system_instruction: str | None = Field(default=None, max_length=20_000, description="what precedes every question")
    metrics: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="the metrics that are kept, by the names that they have here; null keeps all that the tasks give",
    )
    run_code: RunCode | None = Field(
        default=None, description="run the programs that the model writes, in a sandbox; null refuses tasks that do"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="what Hugging Face models compute in; float32 adds no rounding of its own"
    )
    resamples: int = Field(
        default=2000, ge=1000, le=100_000, description="bootstrap resamples of the items behind each 95 % interval"
    )

    def measured(self, roles: frozenset[str]) -> tuple[str, ...]:
        """Those that ``metrics`` names, else all that a task can give; a task's own only ``metrics`` can tell."""
        del roles
        if self.metrics is not None:
            return (*_COUNTS, *self.metrics)
        alone = (*_CHOICE, *_TEXT, *_FILTERED, *(f"{name}_FILTER" for name in _FILTERED))
        return (*_COUNTS, *alone, *(f"TASK_{name}" for name in alone))

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Refuse what cannot be asked, then ask; writes evaluation.json, harness.json and items.jsonl."""
        from ingot.kit.harness import run

        progress.phase("tasks")
        folder = self._folder(given)
        selected = run.chosen(folder, self.path.path or "", self.tasks, may_run=self.run_code is not None)
        programs = self._programs(given.scratch) if selected.programs else None
        wish = run.Wish(
            self.num_fewshot,
            self.limit,
            self.max_tokens,
            self.apply_chat_template,
            self.fewshot_as_multiturn,
            self.system_instruction,
            self.resamples,
        )
        loaded = run.load(selected, given.scratch, wish)
        model, backend = self._open(given, progress)
        progress.phase("ask")
        results = run.ask(loaded, model, wish, programs)
        metrics, missing = self._measured(results, loaded["tasks"], model)
        settings = {**self.settings(), "path": tree_digest(record_files(folder))}
        found = Found(backend.container, backend.precision, metrics, missing)
        write_evaluation(self.kind, settings, given, out, found)
        _write_details(out, results, programs)
        told = {} if programs is None else {"sandbox": dict(programs.how)}
        return Done(metrics, notes={**self.where(backend), **told})

    def _folder(self, given: Given) -> Path:
        folder = given.sources[0]
        if not folder.is_dir():
            raise RefusedInput(
                "E-HARNESS-TASK",
                f"{self.path.path} is a file: the data of a task lie beside it",
                hint="give 'path' the folder that holds both",
            )
        return folder

    def _programs(self, scratch: Path) -> Programs:
        """StageFailed (E-SANDBOX) where programs cannot be bounded here, before a model is opened."""
        from ingot.kit.harness.programs import Programs
        from ingot.kit.sandbox.run import Limits, Sandbox

        assert self.run_code is not None, "tasks that run programs were refused without it"
        return Programs(Sandbox(Limits(self.run_code.cpu_seconds, self.run_code.memory << 20), scratch))

    def _open(self, given: Given, progress: Progress) -> tuple[BackendModel, Backend]:
        from ingot.kit.harness.model import BackendModel

        backend = self.opened(given.one("candidate"), given, progress, dtype=self.dtype, context=self.max_length)
        return BackendModel(backend, self.max_length, progress), backend

    def _measured(
        self, results: Mapping[str, Any], tasks: Mapping[str, Any], model: BackendModel
    ) -> tuple[dict[str, Metric], dict[str, str]]:
        """What was measured, and why the rest was not."""
        from ingot.kit.harness import outcome

        found, missing = outcome.metrics_of(results, tasks, self.resamples), outcome.broken(results)
        if self.metrics is not None:
            given = ", ".join(sorted(found)) or "nothing"
            missing |= {
                name: f"the tasks do not give it: they give {given}" for name in self.metrics if name not in found
            }
            found = {name: metric for name, metric in found.items() if name in self.metrics}
            missing = {name: why for name, why in missing.items() if name in self.metrics}
        items = sum(count["effective"] for count in results["n-samples"].values())
        counts = {
            "items": Metric(items, "items", "items asked, of all tasks"),
            "truncated": Metric(model.truncated, "requests", "requests whose beginning did not fit and was left out"),
        }
        return {**counts, **found}, missing


def _write_details(out: Path, results: Mapping[str, Any], programs: Programs | None) -> None:
    """harness.json, the harness's own figures under its own names, and items.jsonl."""
    from ingot.kit.harness import outcome

    own = outcome.own(results) | ({"programs": dict(sorted(programs.ends.items()))} if programs else {})
    text = json.dumps(own, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (out / "harness.json").write_text(text + "\n", encoding="utf-8")
    lines = [
        json.dumps(item, sort_keys=True, ensure_ascii=False, allow_nan=False) for item in outcome.items_of(results)
    ]
    (out / "items.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
