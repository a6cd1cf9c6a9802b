"""The stage protocol: what a kind is, what it is given, and what it gives back.

A kind is one file ``ingot/stages/<kind>.py`` holding one subclass of ``Stage``. Its pydantic
fields are the YAML parameters; its class variables say what it reads, what changes its
bytes and how reproducible it is. ``run`` does the work in a child process; everything
heavy (torch, numpy, transformers) is imported inside ``run``, never at module level.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel

from ingot.core.stage_sources import Files, Frozen, Source
from ingot.core.stage_values import (
    ELEMENT,
    Device,
    Done,
    Earlier,
    Given,
    Hidden,
    Keyless,
    Least,
    Measure,
    Metric,
    Metrics,
    Progress,
    Serving,
    Virtual,
)
from ingot.errors import UsageError

__all__ = [
    "ELEMENT",
    "Device",
    "Done",
    "Earlier",
    "Files",
    "Format",
    "Frozen",
    "Given",
    "Hidden",
    "Keyless",
    "Least",
    "Measure",
    "Metric",
    "Metrics",
    "Progress",
    "Reproducibility",
    "Role",
    "Serving",
    "Source",
    "Stage",
    "Virtual",
    "asking_kinds",
    "filled_roles",
    "kinds",
    "load_kind",
]

Reproducibility = Literal["deterministic", "seeded", "device_dependent"]

#: What a kind writes, and what a role accepts. ``any`` is a folder of unknown content
#: (``fetch`` and ``command``): it fits every role and is checked when it is read.
Format = Literal[
    "any",
    "hf",
    "adapter",
    "gguf",
    "gguf_adapter",
    "imatrix",
    "coreml",
    "onnx",
    "dataset",
    "tokenizer",
    "packed",
    "calibration",
    "samples",
    "logits",
    "evaluation",
    "report",
]


@dataclass(frozen=True)
class Role:
    """One input of a kind: a single target, or with ``many`` a list of them.

    ``either``: one name is a single target (it hands its axes on), a list is a list, whichever is written.
    """

    accepts: tuple[Format, ...] = ("any",)
    many: bool = False
    optional: bool = False
    either: bool = False


class Stage(Frozen):
    """A kind of target. Subclasses add fields (the parameters) and implement ``run``."""

    kind: ClassVar[str] = ""
    #: Raised when the same parameters and inputs give other bytes than before.
    revision: ClassVar[int] = 1
    reproducibility: ClassVar[Reproducibility] = "deterministic"
    produces: ClassVar[Format] = "any"
    inputs: ClassVar[Mapping[str, Role]] = {}
    #: Distributions whose versions change the bytes: part of the key.
    tools: ClassVar[tuple[str, ...]] = ()
    #: Distributions that ``run`` imports beyond ``tools``: checked before the first stage starts.
    needs: ClassVar[tuple[str, ...]] = ()
    #: The pip extra that installs ``tools`` and ``needs``.
    extra: ClassVar[str | None] = None
    #: Modules the warm fork server imports before forking (imports only).
    preload: ClassVar[tuple[str, ...]] = ()
    #: Only ``fetch`` and ``teacher`` may touch the network.
    network: ClassVar[bool] = False
    #: Single roles whose weights it reads as a stream: an input there may be virtual, and is verified as it is read.
    streams: ClassVar[tuple[str, ...]] = ()
    #: Whether instances with equal inputs can be built in one pass (``run_many``).
    one_pass: ClassVar[bool] = False
    #: Whether it takes over what is the same in earlier results (``Given.earlier``).
    reuses: ClassVar[bool] = False
    #: Whether it goes on where an attempt at the same key was ended (``Given.checkpoints``).
    resumes: ClassVar[bool] = False
    #: What it measures, in the order in which people read it.
    measures: ClassVar[tuple[Measure, ...]] = ()

    def reproduces(self) -> Reproducibility:
        """How reproducible it is with these parameters: never more than ``reproducibility`` says.

        The seed is part of the key of every kind whose ``reproducibility`` is ``seeded``, whatever this says.
        """
        return self.reproducibility

    def goes_on(self) -> bool:
        """Whether, with these parameters, it goes on where an attempt was ended: never more than ``resumes`` says."""
        return self.resumes

    def device_wanted(self) -> Device | None:
        """Where it computes by its parameters; None for a kind that has no choice and uses the processor.

        ``cuda`` on a machine without a GPU is refused before the first stage starts (E-DEVICE).
        """
        return None

    def least_memory(self, inputs: Mapping[str, Least], device: Device) -> int:
        """Bytes of memory that it cannot do without at the same time, by arithmetic alone; 0 where that says nothing.

        Memory of the machine where ``device`` is ``cpu``, else of the GPU. ``inputs`` says of each role that is filled
        what its targets together have at the least. It must never say more than a build would take: it refuses a
        chain that was never run.
        """
        del inputs, device  # a kind that knows what it holds says it by overriding this
        return 0

    def least_output(self, inputs: Mapping[str, Least]) -> Least:
        """What its artifact has at the least, by the same arithmetic; nothing where that says nothing."""
        del inputs
        return Least()

    def serving(self, model: Least) -> Serving | None:
        """What its artifact takes where it runs, made of a ``model`` of which so much is known; None: it is no export.

        Arithmetic alone, for the budget of a spec: the program, tables and activations are left out.
        """
        del model
        return None

    def tools_used(self) -> tuple[str, ...]:
        """The distributions that change the bytes for these parameters (default: all of ``tools``)."""
        return self.tools

    def needs_used(self) -> tuple[str, ...]:
        """The further distributions that ``run`` imports for these parameters."""
        return self.needs

    def programs(self) -> Mapping[str, tuple[str, ...]]:
        """Programs on PATH whose output on this command line is a key part (``{"sox": ("sox", "--version")}``)."""
        return {}

    def hidden(self) -> tuple[Hidden, ...]:
        """The targets that this one implies; one that others of them read stands before those."""
        return ()

    def measured(self, roles: frozenset[str]) -> tuple[str, ...]:
        """The names of what it measures with these parameters and with these roles filled.

        Capitals in a name stand for several names (``Measure``). A gate on any other name is refused when the spec is
        read.
        """
        del roles  # a kind that measures more with some of them says it by overriding this
        return tuple(measure.metric for measure in self.measures)

    def misfits(self, roles: frozenset[str]) -> Iterator[tuple[str, str]]:
        """What does not go together with the roles that are filled: (name of the role or parameter, one sentence).

        Asked when the spec is read, so that nobody builds inputs for a target that cannot be built.
        """
        del roles  # a kind that looks at them says it by overriding this
        return iter(())

    def found_sources(self) -> Iterator[tuple[str, Source | Files]]:
        """Every source among the parameters with its JSON pointer (RFC 6901), in the order of the fields."""
        return ((place, found) for place, found, _ in _below("", self) if isinstance(found, Source | Files))

    def keyless(self) -> Iterator[str]:
        """The JSON pointers (RFC 6901) of its parameters that are no part of the key (``Keyless``)."""
        return (place for place, _, marks in _below("", self) if any(isinstance(mark, Keyless) for mark in marks))

    def weightwise(self) -> bool:
        """Whether, with these parameters, it maps its streams tensor by tensor: such a target may be ``virtual``.

        It then has a method ``flow(given, progress)`` that gives the ``kit.stream`` weights, writing nothing but side
        files in ``given.scratch``.
        """
        return False

    def windowed(self) -> bool:
        """Whether, with these parameters, its memory is a window over what it streams and does not grow with it."""
        return self.weightwise()

    def run(self, given: Given, out: Path, progress: Progress) -> Metrics | Done:
        """Build the artifact under ``out``; read only ``given``; return what was measured."""
        raise NotImplementedError

    @classmethod
    def run_many(
        cls, stages: Sequence[Stage], given: Given, outs: Sequence[Path], progress: Progress
    ) -> Sequence[Metrics | Done]:
        """Build several sets of parameters from the same inputs in one pass, each under its own folder.

        Kinds with ``one_pass`` override it; what each writes is what ``run`` would.
        """
        return [stage.run(given, out, progress) for stage, out in zip(stages, outs, strict=True)]


def _below(pointer: str, value: object) -> Iterator[tuple[str, object, Sequence[object]]]:
    """Whatever a value holds, with its JSON pointer and the marks of its field, in the order of the fields."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            place, found = f"{pointer}/{field.alias or name}", getattr(value, name)
            yield place, found, field.metadata
            yield from _below(place, found)
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield f"{pointer}/{index}", item, ()
            yield from _below(f"{pointer}/{index}", item)


def filled_roles(kind: type[Stage]) -> tuple[str, ...]:
    """The roles that ingot fills with implied targets, where the defaults of the parameters tell."""
    try:
        hidden = kind.model_construct().hidden()
    except AttributeError:  # it depends on a parameter that has no default
        return ()
    return tuple(dict.fromkeys(item.into for item in hidden if item.into is not None))


_STAGES = Path(__file__).parent.parent / "stages"


@cache
def kinds() -> tuple[str, ...]:
    """The names of all kinds: the files of ``ingot/stages``; imports none of them."""
    return tuple(sorted(p.stem for p in _STAGES.glob("*.py") if re.fullmatch(r"[a-z][a-z0-9_]*", p.stem)))


def asking_kinds() -> tuple[str, ...]:
    """The kinds that a report can have under ``tasks:``: those that say what they imply there. Loads all kinds.

    A report has one ``evaluate`` of each candidate anyhow.
    """
    return tuple(name for name in kinds() if name != "evaluate" and hasattr(load_kind(name), "implied"))


@cache
def load_kind(name: str) -> type[Stage]:
    """The class of a kind. UsageError (E-KIND) when there is none of that name."""
    if name not in kinds():
        raise UsageError("E-KIND", f"unknown kind {name!r}", facts=[f"kinds: {', '.join(kinds())}"])
    module = importlib.import_module(f"ingot.stages.{name}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Stage) and value.__module__ == module.__name__:
            return value
    raise TypeError(f"ingot/stages/{name}.py defines no Stage")
