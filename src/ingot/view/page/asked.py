"""What candidates said when they were asked: answers side by side, classes confused, answers judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingot.view.page.book import Entry
from ingot.view.page.facts import Page, Row, Task

Json = Mapping[str, Any]
#: Of each kind of questions so many are shown.
_SAMPLES = 6
#: The kind of task, and the role of others, that holds what a model said.
_SAID = "samples"
_BESIDE = "reference_samples"


@dataclass(frozen=True)
class Answer:
    """What one candidate answered; ``right`` is None where nothing says what is right."""

    row: Row
    text: str
    right: bool | None


@dataclass(frozen=True)
class Sample:
    """One held-out question, what the data set answers, and what each candidate did."""

    id: str
    prompt: str
    expected: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Questions:
    """Questions of one origin: those of the report itself (no task), or of a task."""

    task: str
    asked: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Confusion:
    """Which class was taken for which: a row a label, a column a label and at the end none of them."""

    task: Task
    candidate: str
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """What was said, in the order of the counts."""
        return (*self.labels, "none of them")[: max((len(row) for row in self.counts), default=0)]


def questions(page: Page) -> Iterator[Questions]:
    """Everything that was answered by all who were asked; those first on which they are not equally right."""
    own = {row.digest: page.book.lines(row.evaluation, "answers.jsonl") for row in page.rows}
    yield from _questions(page, "", own)
    for name in page.task_names():
        said = {row.digest: _said(page, task) for row in page.rows for task in row.tasks if task.name == name}
        yield from _questions(page, name, {**_compared_with(page, name), **said})


def confusions(page: Page) -> Iterator[Confusion]:
    """The confusions of all tasks that classify."""
    for row in page.rows:
        for task in row.tasks:
            found = page.book.read(task.entry, "confusion.json")
            if isinstance(found, dict) and found.get("labels") and found.get("counts"):
                counts = tuple(tuple(int(count) for count in line) for line in found["counts"])
                yield Confusion(task, row.name, tuple(map(str, found["labels"])), counts)


def judged(page: Page) -> dict[str, list[tuple[str, Task]]]:
    """(candidate, its task) by the name of each task in which answers were judged."""
    found: dict[str, list[tuple[str, Task]]] = {}
    for row in page.rows:
        for task in row.tasks:
            if {"win_rate", "tie_rate", "loss_rate"} <= task.scores.keys():
                found.setdefault(task.name, []).append((row.name, task))
    return found


def _said(page: Page, task: Task) -> list[dict[str, Any]]:
    """What a task's model answered, with whether it was right where the task compared it."""
    entry = task.entry if task.kind == _SAID else _source(page, task.entry)
    right = {item.get("id"): item.get("exact") for item in page.book.lines(task.entry, "items.jsonl")}
    lines = page.book.lines(entry, "samples.jsonl")
    return [{**line, "exact": right[line.get("id")]} if line.get("id") in right else line for line in lines]


def _source(page: Page, entry: Entry | None, role: str = _SAID) -> Entry | None:
    """The samples that a task read."""
    given = [] if entry is None else [(name, digest) for other, name, digest in entry.inputs() if other == role]
    return page.book.find(*given[0]) if given else None


def _compared_with(page: Page, task: str) -> dict[str, list[dict[str, Any]]]:
    """What the reference said where a task judged others beside it and has no result of its own."""
    entries = (each.entry for row in page.rows for each in row.tasks if each.name == task)
    found = next((source for entry in entries if (source := _source(page, entry, _BESIDE)) is not None), None)
    if found is None or page.reference is None:
        return {}
    return {page.reference.digest: list(page.book.lines(found, "samples.jsonl"))}


def _questions(page: Page, task: str, said: Mapping[str, Sequence[Json]]) -> Iterator[Questions]:
    answered = {digest: {str(item.get("id")): item for item in items} for digest, items in said.items() if items}
    if not answered:
        return
    common = sorted(set.intersection(*(set(found) for found in answered.values())))
    chosen = sorted(common, key=lambda name: (_agree([found[name] for found in answered.values()]), name))[:_SAMPLES]
    rows = {str(item.get("id")): item for item in page.book.lines(page.data, "eval.jsonl")}
    samples = tuple(_sample(page, name, rows.get(name, {}), answered) for name in chosen)
    if samples:
        yield Questions(task, len(common), samples)


def _agree(items: Sequence[Json]) -> bool:
    return len({_right(item) for item in items}) < 2


def _right(item: Json) -> bool | None:
    """Whether the pattern is matched; where there is none, whether the answer is the data set's; None: nobody says."""
    found = item.get("pattern", item.get("exact"))
    found = item.get("exact") if found is None else found
    return None if found is None else bool(found)


def _sample(page: Page, name: str, row: Json, answered: Mapping[str, Mapping[str, Json]]) -> Sample:
    prompt, expected = _turns(row)
    if not prompt:
        prompt = next((str(found[name]["prompt"]) for found in answered.values() if "prompt" in found[name]), "")
    answers = tuple(
        Answer(each, str(found["answer"]), _right(found))
        for each in page.rows
        if (found := answered.get(each.digest, {}).get(name)) is not None
    )
    return Sample(name, prompt, expected, answers)


def _turns(row: Json) -> tuple[str, str]:
    """The question of a row and its own answer; empty where the data set is not here."""
    messages = row.get("messages")
    if isinstance(messages, list) and messages:
        *before, last = [str(item.get("content", "")) for item in messages]
        return "\n".join(before), last
    return str(row.get("prompt", row.get("text", ""))), str(row.get("completion", ""))
