"""Small kinds and a folder for tests of the spec reader: real Stage classes, written as a kind's author would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import BeforeValidator, Field, model_validator

from ingot.core import stage
from ingot.core.spec import ResolvedSpec, load_spec
from ingot.core.stage import (
    ELEMENT,
    Device,
    Files,
    Format,
    Frozen,
    Hidden,
    Measure,
    Reproducibility,
    Role,
    Source,
    Stage,
)
from ingot.errors import SpecError
from ingot.stages import _task  # noqa: F401 - it keeps the real `load_kind`: loaded before that is replaced


def _as_source(value: object) -> object:
    return Source(path=value) if isinstance(value, str) else Source.model_validate(value) if value else None


class Fetch(Stage):
    kind: ClassVar[str] = "fetch"
    network: ClassVar[bool] = True
    measures: ClassVar[tuple[Measure, ...]] = (Measure("bytes", "B"),)
    path: Annotated[Source | None, BeforeValidator(_as_source)] = None
    sha256: str | None = None
    note: str = ""


class Dedup(Frozen):
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    grams: int = 3


class Dataset(Stage):
    kind: ClassVar[str] = "dataset"
    produces: ClassVar[Format] = "dataset"
    tools: ClassVar[tuple[str, ...]] = ("rensa",)
    sources: tuple[Source, ...] = Field(min_length=1)
    dedup: Dedup | None = None
    limit: int | str | None = None


class Convert(Stage):
    kind: ClassVar[str] = "convert"
    produces: ClassVar[Format] = "hf"
    inputs: ClassVar[Mapping[str, Role]] = {"model": Role(("any", "gguf"))}
    tools: ClassVar[tuple[str, ...]] = ("torch",)
    needs: ClassVar[tuple[str, ...]] = ("tqdm",)
    extra: ClassVar[str | None] = "ml"
    preload: ClassVar[tuple[str, ...]] = ("torch",)
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"


class Adapter(Stage):
    kind: ClassVar[str] = "adapter"
    produces: ClassVar[Format] = "adapter"
    reproducibility: ClassVar[Reproducibility] = "seeded"
    inputs: ClassVar[Mapping[str, Role]] = {"model": Role(("hf",)), "data": Role(("dataset",))}
    rank: Annotated[int, Field(ge=1, le=512)] = 16
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    steps: int | None = None
    epochs: float | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Adapter:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give 'steps' or 'epochs', not both")
        return self


class Merge(Stage):
    kind: ClassVar[str] = "merge"
    produces: ClassVar[Format] = "hf"
    inputs: ClassVar[Mapping[str, Role]] = {"model": Role(("hf",)), "adapter": Role(("adapter",), either=True)}


class Prune(Stage):
    kind: ClassVar[str] = "prune"
    produces: ClassVar[Format] = "hf"
    inputs: ClassVar[Mapping[str, Role]] = {"model": Role(("hf",)), "calibration": Role(("dataset",), optional=True)}
    sparsity: Annotated[float, Field(ge=0, lt=1)]
    mask: Dedup = Dedup()


class Gguf(Stage):
    kind: ClassVar[str] = "gguf"
    produces: ClassVar[Format] = "gguf"
    inputs: ClassVar[Mapping[str, Role]] = {"model": Role(("hf",))}
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("bytes", "B"),
        Measure("first_token_s", "s", "with `benchmark`"),
        Measure("token_p50_s", "s", "with `benchmark`"),
    )
    type: Literal["Q8_0", "Q4_0", "Q4_K_M", "F16"] = "Q8_0"
    benchmark: bool = Field(default=False, exclude_if=lambda value: not value)

    def measured(self, roles: frozenset[str]) -> tuple[str, ...]:
        return super().measured(roles) if self.benchmark else ("bytes",)


class Evaluate(Stage):
    kind: ClassVar[str] = "evaluate"
    produces: ClassVar[Format] = "evaluation"
    reproducibility: ClassVar[Reproducibility] = "seeded"
    inputs: ClassVar[Mapping[str, Role]] = {
        "candidate": Role(("hf", "gguf")),
        "data": Role(("dataset",)),
        "reference": Role(("hf",), optional=True),
    }
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("nll", "nats/token"),
        Measure("perplexity", "1"),
        Measure("kl_divergence", "nats/token", "with a reference"),
        Measure("pattern_accuracy", "1"),
        Measure("tensors_TYPE", "1", "for each type"),
    )
    documents: Annotated[int, Field(ge=2)] = 32

    def measured(self, roles: frozenset[str]) -> tuple[str, ...]:
        found = super().measured(roles)
        return found if "reference" in roles else tuple(name for name in found if name != "kl_divergence")


class Report(Stage):
    kind: ClassVar[str] = "report"
    produces: ClassVar[Format] = "report"
    inputs: ClassVar[Mapping[str, Role]] = {
        "data": Role(("dataset",)),
        "reference": Role(("hf",), optional=True),
        "candidates": Role(("hf", "gguf"), many=True),
        "evaluations": Role(("evaluation",), many=True),
    }
    documents: int = 32

    asked: dict[str, int] = Field(default_factory=dict)

    def hidden(self) -> tuple[Hidden, ...]:
        roles = {"candidate": ELEMENT, "data": "data", "reference": "reference"}
        found = [Hidden("evaluate", ("reference", "candidates"), roles, "evaluations", {"documents": self.documents})]
        # A pair of hidden targets: what each says, and a comparison of that with what the reference says.
        for name, y in self.asked.items():
            said, place, params = f"{name}.said", ("asked", name), {"y": y}
            both = {"a": f"{said}:{ELEMENT}", "b": f"{said}:reference"}
            found += [
                Hidden("node", ("reference", "candidates"), {"a": ELEMENT}, None, params, said, "", place),
                Hidden("node", ("candidates",), both, "evaluations", params, name, "reference", place),
            ]
        return tuple(found)


def _as_files(value: object) -> object:
    return {"paths": tuple(value)} if isinstance(value, list | tuple) else value


class Command(Stage):
    kind: ClassVar[str] = "command"
    reproducibility: ClassVar[Reproducibility] = "device_dependent"
    inputs: ClassVar[Mapping[str, Role]] = {"*": Role()}
    measures: ClassVar[tuple[Measure, ...]] = (Measure("bytes", "B"),)
    command: tuple[str, ...] = Field(min_length=1)
    files: Annotated[Files, BeforeValidator(_as_files)] = Files()
    used: dict[str, tuple[str, ...]] = Field(default={}, alias="tools")

    def programs(self) -> Mapping[str, tuple[str, ...]]:
        return self.used


class Orphan(Stage):
    """Implies a kind that is not there."""

    kind: ClassVar[str] = "orphan"
    name: str

    def hidden(self) -> tuple[Hidden, ...]:
        return (Hidden("nothing", ("candidates",), {}, self.name),)


class Node(Stage):
    """A node of any graph: any roles, three numbers to vary."""

    kind: ClassVar[str] = "node"
    measures: ClassVar[tuple[Measure, ...]] = (Measure("bytes", "B"),)
    inputs: ClassVar[Mapping[str, Role]] = {
        "a": Role(optional=True),
        "b": Role(optional=True),
        "many": Role(many=True, optional=True),
    }
    x: int = 0
    y: int = 0
    z: float = 0.5


class Trained(Stage):
    """As reproducible as the device that it names; goes on where it was ended."""

    kind: ClassVar[str] = "trained"
    reproducibility: ClassVar[Reproducibility] = "seeded"
    resumes: ClassVar[bool] = True
    device: Device = "auto"

    def reproduces(self) -> Reproducibility:
        return "seeded" if self.device == "cpu" else "device_dependent"

    def device_wanted(self) -> Device:
        return self.device


KINDS: dict[str, type[Stage]] = {
    kind.kind: kind
    for kind in (Fetch, Dataset, Convert, Adapter, Merge, Prune, Gguf, Evaluate, Report, Command, Orphan, Node, Trained)
}

CHAIN = """\
format: 1
name: chain
seed: 7
targets:
  weights: {kind: fetch, sha256: "00"}
  base: {kind: convert, from: {model: weights}}
  data: {kind: dataset, sources: [{python_stdlib: docstrings}]}
  adapter: {kind: adapter, from: {model: base, data: data}, rank: 8}
  merged: {kind: merge, from: {model: base, adapter: adapter}}
  pruned: {kind: prune, from: {model: merged}, sparsity: 0.2}
  gguf: {kind: gguf, from: {model: pruned}, matrix: {type: [Q8_0, Q4_0]}}
  report: {kind: report, from: {data: data, reference: base, candidates: [merged, gguf]}}
gates:
  report.gguf@Q8_0.kl_divergence: {max: 0.5}
"""


def head(*lines: str, gates: str = "") -> str:
    """A spec of these target lines; they start in line 4."""
    return "format: 1\nname: s\ntargets:\n" + "".join(f"  {line}\n" for line in lines) + gates


class Folder:
    """A project in a temporary folder; ``problems`` are (code, file:line:column, field) of a spec that is refused."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, text: str | bytes, name: str = "specs/a.yaml") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def load(self, text: str | bytes, name: str = "specs/a.yaml") -> ResolvedSpec:
        return load_spec(self.write(text, name), self.root)

    def error(self, text: str | bytes) -> SpecError:
        try:
            self.load(text)
        except SpecError as error:
            return error
        raise AssertionError("the spec was accepted")

    def problems(self, text: str | bytes) -> list[tuple[str, str, str]]:
        return [(p.code, f"{p.file}:{p.line}:{p.column}", p.field) for p in self.error(text).problems]


@contextmanager
def kinds_in_use() -> Iterator[None]:
    """Let the reader find the kinds of this file instead of those in ``ingot/stages``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "kinds", lambda: tuple(sorted(KINDS)))
        patch.setattr(stage, "load_kind", KINDS.__getitem__)
        yield
