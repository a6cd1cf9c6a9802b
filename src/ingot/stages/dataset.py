"""``dataset``: rows from local files, Python's own documentation and templates → train.jsonl and eval.jsonl."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import BeforeValidator, Field, model_validator

from ingot.core.stage import Frozen, Given, Measure, Metric, Metrics, Progress, Source, Stage
from ingot.errors import RefusedInput
from ingot.stages._fields import Fields, absent
from ingot.stages._templates import Templates

if TYPE_CHECKING:
    from ingot.kit.documents import Document, Form

_Format = Literal["jsonl", "json", "text"]
_SUFFIXES: dict[str, _Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
}
#: Limits for Python's documentation: shorter texts say little, longer ones do not fit what small machines train on.
_STDLIB_CHARS = (80, 2000)

#: The metrics of the funnel: what happened to each document read, in this order.
_FUNNEL = {
    "read": "rows and pieces of text read",
    "same_answers": "preferences whose two answers are the same, which say nothing",
    "too_short": "fewer characters to learn than min_chars",
    "too_long": "more characters to learn than max_chars",
    "exact_duplicates": "the same text as an earlier document",
    "near_duplicates": "Jaccard similarity of character 3-grams to an earlier document of at least the threshold",
    "over_limit": "left out by limit, by the hash of the content",
    "train": "rows of train.jsonl",
    "eval": "rows of eval.jsonl",
}


def _file(value: object) -> object:
    return Source(path=value) if isinstance(value, str) else _resolved(value)


def _stdlib(value: object) -> object:
    return Source.model_validate({"python_stdlib": value}) if isinstance(value, str) else _resolved(value)


def _resolved(value: object) -> object:
    return Source.model_validate(value) if isinstance(value, dict) else value


def _format_of(before: dict[str, Any]) -> _Format | None:
    source = before.get("path")
    return _SUFFIXES.get(Path(source.path).suffix) if isinstance(source, Source) and source.path else None


class Entry(Frozen):
    """One source: a file, folder or glob of the project, Python's documentation, or templates."""

    path: Annotated[Source | None, BeforeValidator(_file, json_schema_input_type=str | Source | None)] = Field(
        default=None, description="a file, folder or glob of the project"
    )
    python_stdlib: Annotated[
        Source | None,
        BeforeValidator(_stdlib, json_schema_input_type=Literal["docstrings", "topics"] | Source | None),
    ] = Field(default=None, description="Python's own documentation: docstrings or topics")
    templates: Templates | None = Field(
        default=None, exclude_if=absent, description="rows drawn from templates and their slots"
    )
    format: _Format | None = Field(default_factory=_format_of, description="by default that of the path's suffix")
    fields: Fields | None = Field(default=None, description="by default the usual names are tried")
    chunk_chars: int = Field(default=2000, ge=100, description="the longest piece that text is cut into")

    @model_validator(mode="after")
    def _one_kind(self) -> Entry:
        if (self.path, self.python_stdlib, self.templates).count(None) != 2:
            raise ValueError("needs exactly one of 'path', 'python_stdlib' and 'templates'")
        if self.templates is not None and (self.format or self.fields):
            raise ValueError("'templates' takes no 'format' and no 'fields'")
        if self.path is not None and self.path.path is None:
            raise ValueError("'path' is a file, folder or glob of the project")
        if self.python_stdlib is not None and (self.format or self.fields or self.python_stdlib.path):
            raise ValueError("'python_stdlib' is docstrings or topics and takes no 'format' and no 'fields'")
        if self.path is not None and self.format is None:
            raise ValueError("the format does not show from the path: give 'format' (jsonl, json or text)")
        if self.format == "text" and self.fields is not None:
            raise ValueError("text has no 'fields'")
        return self


class Dedup(Frozen):
    """Near-duplicate removal."""

    threshold: float = Field(
        default=0.8, gt=0, le=1, description="Jaccard similarity of character 3-grams from which a document is dropped"
    )


class Split(Frozen):
    """How much is held out."""

    eval: float = Field(default=0.1, ge=0, lt=1, description="the share of documents held out, by hash of content")


def _least(before: dict[str, Any]) -> int:
    return _STDLIB_CHARS[0] if _has_stdlib(before) else 1


def _most(before: dict[str, Any]) -> int | None:
    return _STDLIB_CHARS[1] if _has_stdlib(before) else None


def _has_stdlib(before: dict[str, Any]) -> bool:
    return any(entry.python_stdlib is not None for entry in before.get("sources", ()))


class Dataset(Stage):
    """Read, filter, remove duplicates, split.

    The split is by the hash of what must not straddle it (the prompt, the documented symbol, the topic), so a row stays
    on its side when others come or go. Rows are written in the order of their ids, which are hashes of their content:
    a fixed shuffle. Duplicates are found across all sources, by the answer alone for Python's documentation
    and by the whole row otherwise; the first in the order of the sources stays.

    ``templates`` make rows: each case fills the slots of its questions and draws one of its answers. SHA-256 of the
    seed decides, so that everybody draws the same rows. A row may tell by a ``pattern`` which answers are right.
    """

    kind: ClassVar[str] = "dataset"
    produces: ClassVar[Literal["dataset"]] = "dataset"
    tools: ClassVar[tuple[str, ...]] = ("rensa",)
    needs: ClassVar[tuple[str, ...]] = ("numpy",)
    extra: ClassVar[str | None] = "ml"
    preload: ClassVar[tuple[str, ...]] = ("numpy",)
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("documents_read", "documents"),
        Measure("documents_same_answers", "documents", "of preferences"),
        Measure("documents_too_short", "documents"),
        Measure("documents_too_long", "documents"),
        Measure("documents_exact_duplicates", "documents"),
        Measure("documents_near_duplicates", "documents"),
        Measure("documents_over_limit", "documents"),
        Measure("documents_train", "documents"),
        Measure("documents_eval", "documents"),
        Measure("characters_train", "characters"),
        Measure("characters_eval", "characters"),
    )

    sources: tuple[Entry, ...] = Field(min_length=1, description="where rows come from")
    form: Literal["auto", "chat", "completion", "text", "preference"] = Field(
        default="auto",
        description="the form of the rows; auto takes that of the sources. Preferences can become chats or completions "
        "of what was chosen",
    )
    system: str | None = Field(default=None, min_length=1, description="a system message for chats that have none")
    min_chars: int = Field(default_factory=_least, ge=1, description="the fewest characters to learn from a row")
    max_chars: int | None = Field(default_factory=_most, ge=1, description="the most characters to learn from a row")
    dedup: Dedup | None = Field(default=Dedup(), description="near-duplicate removal; null leaves only the exact one")
    limit: int | None = Field(default=None, ge=1, description="the most documents to keep")
    split: Split = Field(default=Split(), description="what is held out")

    @model_validator(mode="after")
    def _fits(self) -> Dataset:
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError("max_chars is less than min_chars")
        if self.system is not None and self.form in {"completion", "text"}:
            raise ValueError("only the form chat takes 'system'")
        return self

    def tools_used(self) -> tuple[str, ...]:
        """rensa where near-duplicates are removed."""
        return self.tools if self.dedup is not None else ()

    def needs_used(self) -> tuple[str, ...]:
        """numpy where near-duplicates are removed."""
        return self.needs if self.dedup is not None else ()

    def run(self, given: Given, out: Path, progress: Progress) -> Metrics:
        """Build the data set.

        RefusedInput: E-DATASET-ROW (a malformed row, with its number), E-DATASET-FORM (rows that do not fit the form),
        E-DATASET-EMPTY (nothing left, or too little to split), E-DATASET-TEMPLATES (a question of two cases),
        E-DATASET-PATTERN (a row whose own answer does not match its pattern).
        """
        from ingot.kit.funnel import check_patterns, divide, identified, sift, write_rows

        read = []
        for document in self._read(given, progress):
            read.append(document)
            if len(read) % 1000 == 0:
                progress(len(read), None, "documents")
        if not read:
            raise self._nothing(given)
        form = _form(self.form, {document.form for document in read})
        pairs = any(document.form == "preference" for document in read)
        names = [name for name in _FUNNEL if name != "same_answers" or pairs]
        counts = dict.fromkeys(names, 0) | {"read": len(read)}
        threshold = self.dedup.threshold if self.dedup is not None else None
        kept = sift(read, (self.min_chars, self.max_chars), threshold, counts, progress)
        rows = identified(kept, form, self.system)
        counts["exact_duplicates"] += len(kept) - len(rows)  # equal only once they have the same form
        counts["over_limit"] = max(0, len(rows) - (self.limit or len(rows)))
        check_patterns(rows[: self.limit])
        sides = divide(rows[: self.limit], self.split.eval)
        characters = {}
        for name, side in sides.items():
            counts[name] = len(side)
            characters[name] = write_rows(out / f"{name}.jsonl", side)
        note = {"format": 1, "form": form, "counts": counts}
        (out / "dataset.json").write_text(json.dumps(note, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return _metrics(counts, characters)

    def _nothing(self, given: Given) -> RefusedInput:
        """The refusal of sources without a row, by the names of their files."""
        read = [entry for entry in self.sources if entry.templates is None]
        pairs = zip(read, given.sources, strict=True)
        files = [found for entry, snapshot in pairs if entry.path for found in _named(entry, snapshot)]
        facts = [f"{name}: {path.stat().st_size} bytes" for path, name in files[:8]]
        what = f"{files[0][1]} is empty" if len(files) == 1 else "the sources are empty"
        return RefusedInput("E-DATASET-EMPTY", what, facts=facts, hint="a data set needs rows, or text")

    def _read(self, given: Given, progress: Progress) -> Iterator[Document]:
        from ingot.kit.documents import paired, read_stdlib
        from ingot.kit.rows import read_file

        natural: Form = "chat" if self.form == "auto" else self.form
        snapshots = iter(given.sources)
        for number, entry in enumerate(self.sources, 1):
            progress.phase(f"reading source {number} of {len(self.sources)}")
            if entry.templates is not None:
                for pair in entry.templates.pairs():
                    yield paired(pair.prompt, pair.completion, pair.group, pair.pattern)
                continue
            snapshot = next(snapshots)
            if entry.python_stdlib is not None:
                assert entry.python_stdlib.python_stdlib is not None
                yield from read_stdlib(snapshot, entry.python_stdlib.python_stdlib, natural, entry.chunk_chars)
                continue
            assert entry.format is not None
            fields = entry.fields.model_dump(exclude_none=True) if entry.fields is not None else None
            for path, name in _named(entry, snapshot):
                yield from read_file(path, entry.format, fields, name, entry.chunk_chars)


def _named(entry: Entry, snapshot: Path) -> Iterator[tuple[Path, str]]:
    """The files of a source in order, each with its name in the project."""
    assert entry.path is not None
    written = entry.path.path or ""
    if not snapshot.is_dir():
        yield snapshot, written
        return
    # names in a snapshot are relative to the folder, or to what stands before the first wildcard
    fixed = re.split(r"[*?\[]", written)[0]
    folder = written if fixed == written else fixed.rpartition("/")[0]
    for path in sorted(snapshot.rglob("*")):
        if path.is_file():
            yield path, (PurePosixPath(folder) / path.relative_to(snapshot).as_posix()).as_posix()


def _form(wanted: str, found: set[Form]) -> Form:
    """The form of the data set: as wanted, else the one form that all rows have or can take."""
    if wanted != "auto":
        return cast("Form", wanted)
    if len(found) > 1 and "preference" in found:
        raise RefusedInput(
            "E-DATASET-FORM",
            f"the sources mix preferences with rows of the form {', '.join(sorted(found - {'preference'}))}",
            hint="give 'form: chat' or 'form: completion', which keep what was chosen, or leave one of them out",
        )
    if len(found) > 1 and "text" in found:
        raise RefusedInput(
            "E-DATASET-FORM",
            f"the sources mix plain text with rows of the form {', '.join(sorted(found - {'text'}))}",
            hint="give 'form: text', or leave the text out",
        )
    if "preference" in found:
        return "preference"
    return "chat" if "chat" in found else "completion" if "completion" in found else "text"


def _metrics(counts: dict[str, int], characters: dict[str, int]) -> dict[str, Metric]:
    metrics = {
        f"documents_{name}": Metric(counts[name], "documents", how) for name, how in _FUNNEL.items() if name in counts
    }
    for name, value in characters.items():
        metrics[f"characters_{name}"] = Metric(value, "characters", f"characters of all texts in {name}.jsonl")
    return metrics
