"""Which tasks are asked, and whether they can be: everything that can be known of task files without running any.

What would be fetched from a hub, comes from outside the folder, is measured by nothing that is here, or runs what a
model wrote without having been asked for is refused with its place, before a model is opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingot.core.names import suggestion
from ingot.errors import RefusedInput
from ingot.kit.harness import data
from ingot.kit.harness.reading import Config, Folder, Value, functions

#: The metric that ``kit.harness.programs`` adds to the harness's own.
PASS_AT_K = "pass_at_k"  # noqa: S105 - no password
#: What a group may not say of its tasks: each task's own file says it.
_OWN = (
    "dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "class", "metric_list", "unsafe_code"
)  # fmt: skip
_CODE_EVAL = f"'metric: {PASS_AT_K}' runs the programs that a model writes in ingot's sandbox"


@dataclass(frozen=True)
class Chosen:
    """The tasks and groups that were named, and all below them, by name; ``programs``: some run what a model writes."""

    folder: Folder
    configs: Mapping[str, Config]
    names: tuple[str, ...]
    programs: bool

    def prepare(self, into: Path, cache: Path) -> None:
        """Write a file for each task that includes its own and reads its data where they lie now.

        The harness takes paths of data relative to the working folder; what a file says wins over what it includes.
        """
        into.mkdir(parents=True)
        for number, config in enumerate(self.configs.values()):
            outer: dict[str, Any] = {"include": str(config.path)}
            if (arguments := data.arguments(self.folder, config, cache)) is not None:
                outer |= {"dataset_name": None, "dataset_kwargs": arguments}
            (into / f"{number:04}.yaml").write_text(json.dumps(outer), encoding="utf-8")


@dataclass
class _Choice:
    folder: Folder
    known: dict[str, Config] = field(default_factory=dict)
    tags: dict[str, list[str]] = field(default_factory=dict)
    found: dict[str, Config] = field(default_factory=dict)

    def know(self, config: Config) -> None:
        """RefusedInput (E-HARNESS-TASK) for a name that is there twice: the harness would take either."""
        name, tags = str(config.named.value), config.get("tag")
        if name in self.known:
            first = self.known[name].named
            raise self.folder.refused(f"{name!r} is also in {self.folder.where(first.path, first.line)}", config.named)
        self.known[name] = config
        for tag in data.listed(tags.value) if tags else ():
            self.tags.setdefault(str(tag), []).append(name)

    def take(self, name: str, asked_by: Value | None = None) -> None:
        """Choose a task, a group with all that it holds, or all tasks with a tag."""
        if name in self.found:
            return
        if name in self.known:
            self.found[name] = self.known[name]
            for member, place in _members(self.folder, self.known[name]):
                self.take(member, place)
        elif name in self.tags:
            for task in sorted(self.tags[name]):
                self.take(task, asked_by)
        else:
            hint = suggestion(name, (*self.known, *self.tags)) or f"known: {', '.join(sorted(self.known))[:300]}"
            what = f"no task is called {name!r}"
            if asked_by is not None:
                raise self.folder.refused(what, asked_by, hint=hint)
            raise RefusedInput("E-HARNESS-TASK", f"{self.folder.shown}: {what}", hint=hint)


def choose(folder: Folder, names: Sequence[str], metrics: frozenset[str], *, may_run: bool) -> Chosen:
    """The tasks of a folder by their names; ``metrics`` are those that the harness knows.

    RefusedInput: E-HARNESS-TASK (unknown or malformed), E-HARNESS-HUB (data or a metric would be fetched),
    E-HARNESS-DATA, E-HARNESS-METRIC, E-HARNESS-CODE (a function from elsewhere, or code that nobody asked for).
    """
    choice = _Choice(folder)
    for config in folder.configs():
        choice.know(config)
    if not choice.known:
        raise RefusedInput(
            "E-HARNESS-TASK",
            f"{folder.shown}: holds no task, no .yaml in it has 'task' or 'group'",
            hint="'path' is a folder with the YAML of tasks and their data",
        )
    for name in names:
        choice.take(name)
    programs = [_check(folder, config, metrics, may_run=may_run) for config in choice.found.values()]
    return Chosen(folder, choice.found, tuple(names), any(programs))


def _members(folder: Folder, group: Config) -> Iterator[tuple[str, Value]]:
    """The names in a group, each with the place that asks for it."""
    if not group.is_group:
        return
    for key in _OWN:
        if (value := group.get(key)) is not None:
            raise folder.refused(f"a group cannot say {key!r} of its tasks", value, hint="each task's own file says it")
    listed = group.get("task")
    if listed is None or not isinstance(listed.value, list):
        raise folder.refused("the group has no list of tasks under 'task'", group.named)
    for member in listed.value:
        name = member.get("task", member.get("group")) if isinstance(member, dict) else member
        if not isinstance(name, str):
            raise folder.refused("a member of the group has no name", listed)
        if isinstance(member, dict) and (odd := [key for key in _OWN if key in member]):
            raise folder.refused(f"a group cannot say {odd[0]!r} of {name!r}", listed, hint="its own file says it")
        yield name, listed


def _check(folder: Folder, config: Config, metrics: frozenset[str], *, may_run: bool) -> bool:
    """Refuse what cannot be asked here; whether it runs what a model writes."""
    for value in config.values.values():
        for function in functions(value.value):
            if folder.inside(f"{function.rpartition('.')[0].replace('.', '/')}.py", value) is None:
                raise folder.refused(
                    f"!function {function} is in no file of this folder",
                    value,
                    code="E-HARNESS-CODE",
                    hint="put its Python file beside the task: what runs is part of the content that is hashed",
                )
    if config.is_group:
        return False
    if config.get("class") is None and config.get("custom_dataset") is None:
        data.check(folder, config)
    named = list(_metrics(folder, config, metrics))
    unsafe = config.get("unsafe_code")
    if PASS_AT_K in named or (unsafe is not None and unsafe.value):
        _check_programs(folder, unsafe or config.named, named, may_run=may_run)
    return PASS_AT_K in named


def _check_programs(folder: Folder, place: Value, named: Sequence[str | None], *, may_run: bool) -> None:
    if PASS_AT_K not in named or None in named:
        raise folder.refused(
            "it runs what a model writes by functions of its own, outside any sandbox",
            place,
            code="E-HARNESS-CODE",
            hint=_CODE_EVAL,
        )
    if not may_run:
        raise folder.refused(
            "it runs the programs that a model writes, which the spec did not ask for",
            place,
            code="E-HARNESS-CODE",
            hint="write 'run_code: {}' beside 'tasks' to have them run in ingot's sandbox",
        )


def _metrics(folder: Folder, config: Config, known: frozenset[str]) -> Iterator[str | None]:
    """The names of a task's metrics, None for a function."""
    place = config.get("metric_list")
    for entry in data.listed(place.value) if place else ():
        assert place is not None
        if not isinstance(entry, dict) or "metric" not in entry:
            raise folder.refused("an entry of 'metric_list' has no 'metric'", place)
        name = entry["metric"]
        if entry.get("hf_evaluate"):
            raise folder.refused(
                f"the metric {name!r} would be fetched from the hub (hf_evaluate)",
                place,
                code="E-HARNESS-HUB",
                hint=_CODE_EVAL if name == "code_eval" else "use one of the harness, or a !function beside the task",
            )
        if next(functions(name), None) is not None:
            yield None
            continue
        if config.get("process_results") is None and name not in known:
            hint = suggestion(str(name), known) or f"known: {', '.join(sorted(known))}"
            hint = _CODE_EVAL if name == "code_eval" else hint
            raise folder.refused(f"there is no metric {name!r}", place, code="E-HARNESS-METRIC", hint=hint)
        yield str(name)
