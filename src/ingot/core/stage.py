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
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, model_validator

from ingot.core.digest import FileRecord
from ingot.errors import UsageError

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
    "dataset",
    "tokenizer",
    "packed",
    "calibration",
    "evaluation",
    "report",
]


class Frozen(BaseModel):
    """Base of every value read from a spec: immutable, no unknown fields, no coercion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Source(Frozen):
    """Content that is not an input target: read from the project or from Python itself.

    Exactly one of ``path`` (a file, a folder or a glob, relative to the spec file) and
    ``python_stdlib``. In the key a source counts by its content digest, never by its path.
    """

    path: str | None = None
    python_stdlib: Literal["docstrings", "topics"] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Source:
        if (self.path is None) == (self.python_stdlib is None):
            raise ValueError("needs exactly one of 'path' and 'python_stdlib'")
        return self


class Files(Frozen):
    """Project files a program reads under their own names (``command``'s ``files:``).

    Their names relative to the spec file are part of the content; the snapshot keeps the layout.
    """

    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Role:
    """One input of a kind: a single target, or with ``many`` a list of them.

    ``either``: one name is a single target (it hands its axes on), a list is a list, whichever is written.
    """

    accepts: tuple[Format, ...] = ("any",)
    many: bool = False
    optional: bool = False
    either: bool = False


@dataclass(frozen=True)
class Metric:
    """A measured number: its unit, how it was measured, and where sampled n and the interval.

    ``interval`` is the 95 % interval (low, high). A metric exists only if this build measured it.
    """

    value: int | float
    unit: str
    method: str
    n: int | None = None
    interval: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, object]:
        """The metric as receipts and ``--json`` hold it; ``n`` and ``interval`` only where there are any."""
        data: dict[str, object] = {"value": self.value, "unit": self.unit, "method": self.method}
        if self.n is not None:
            data["n"] = self.n
        if self.interval is not None:
            data["interval"] = list(self.interval)
        return data


Metrics = Mapping[str, Metric]


class Progress(Protocol):
    """How a running stage reports: ``progress(done, total, unit, loss=…)``; ``phase`` names what runs now."""

    def __call__(self, done: float, total: float | None, unit: str, **live: float | str) -> None:
        """``done`` of ``total`` (None: not known) in ``unit``; ``live`` are figures to show, such as loss."""

    def phase(self, name: str) -> None:
        """Name what runs now."""


@dataclass(frozen=True)
class Least:
    """What something has at the least, by arithmetic: bytes on the disk, and weights (elements of its tensors).

    A floor, never an estimate: what is not known is 0.
    """

    bytes: int = 0
    weights: int = 0

    def stored(self, bits: float) -> Least:
        """The same model as a file that has so many bits for each weight at the least.

        A thousandth is taken off: a writer may leave out small tensors that follow from others (rotary tables).
        """
        weights = self.weights * 999 // 1000
        return Least(int(weights * bits) // 8, weights)


#: Where a target computes: a choice of the spec (``auto`` takes a GPU where there is one), or what came of it.
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Virtual:
    """A virtual input: nobody has written it; the stage that would, and what that stage would be given."""

    stage: Stage
    given: Given


@dataclass(frozen=True)
class Earlier:
    """An earlier result of the same kind, revision and tools, parts of which a build may take over.

    ``tensors`` and ``blocks`` are what that build gave back (see ``Done``), as the registry has them. Nobody has looked
    at the folder: what is taken from it is compared by whoever takes it.
    """

    folder: Path
    tensors: Mapping[str, str]
    blocks: Mapping[str, Any]


@dataclass(frozen=True)
class Given:
    """Everything a stage may read. Inputs are read-only folders of the store.

    ``inputs`` and ``digests`` map each role to its targets in order (one element for a single
    role, none for an absent optional one). ``sources`` holds, per source in the order of
    ``Stage.found_sources``, the path of its snapshot: a file, or a folder. ``scratch`` is an empty
    folder, dropped afterwards. ``seed`` is set for ``seeded`` kinds only.

    ``files`` holds, in the order of ``inputs``, what each file of an input must be (by its path): a stage that streams
    a file compares it in the same read. ``virtual`` holds, by role, the single inputs that were never written; such
    a role has no folder in ``inputs``, and in ``digests`` the digest only if it was streamed before.

    For a kind that ``reuses``: ``earlier`` holds results, the newest first, and ``tensors``, by single role, the
    xxh3-128 of an input's tensors as they were when it was written, where its receipt tells them.

    For a kind that ``resumes``: ``checkpoints`` is a folder that outlives an attempt that was ended, and belongs to the
    target's key alone; ``key`` is that key, which everything written there names. None: nothing is kept. Each entry
    directly in it whose name does not begin with a dot is one checkpoint (``core.checkpoints``).
    """

    inputs: Mapping[str, tuple[Path, ...]]
    digests: Mapping[str, tuple[str, ...]]
    scratch: Path
    sources: tuple[Path, ...] = ()
    seed: int | None = None
    threads: int = 1
    files: Mapping[str, tuple[Mapping[str, FileRecord], ...]] = field(default_factory=dict)
    virtual: Mapping[str, Virtual] = field(default_factory=dict)
    earlier: tuple[Earlier, ...] = ()
    tensors: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    checkpoints: Path | None = None
    key: str = ""

    def one(self, role: str) -> Path:
        """The folder of a single role. KeyError when it was not given."""
        paths = self.inputs.get(role, ())
        if len(paths) != 1:
            raise KeyError(role)
        return paths[0]

    def maybe(self, role: str) -> Path | None:
        """The folder of an optional single role, or None."""
        return self.one(role) if self.inputs.get(role) else None

    def many(self, role: str) -> tuple[Path, ...]:
        """The folders of a list role, in the order of the spec."""
        return self.inputs.get(role, ())


@dataclass(frozen=True)
class Done:
    """What a run gives back that has more to tell than metrics.

    ``files``: records of files that were hashed while they were written. ``tensors``: the xxh3-128 of each tensor's
    bytes by its name, kept as evidence. ``passed``: by role, what was measured of a virtual input that flowed through,
    its ``files`` complete (they give its digest). ``notes``: further plain data for the receipt. ``blocks``: of a kind
    that ``reuses``, plain data kept as evidence, from which a later build knows what of this one is the same.
    """

    metrics: Metrics
    files: tuple[FileRecord, ...] = ()
    tensors: Mapping[str, str] = field(default_factory=dict)
    passed: Mapping[str, Done] = field(default_factory=dict)
    notes: Mapping[str, object] = field(default_factory=dict)
    blocks: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, result: Metrics | Done) -> Done:
        """What a run gave back, in the one form."""
        return result if isinstance(result, Done) else cls(result)


@dataclass(frozen=True)
class Hidden:
    """A target that another target implies: ``report`` implies one ``evaluate`` a candidate.

    ``per`` is the list role whose every element gets one; ``kind`` and ``params`` say what is
    built; ``roles`` maps the new target's roles to roles of the implying one (``per`` stands for the
    element). The results come back to the implying target in role ``into``, in the order of ``per``.
    """

    kind: str
    per: str
    roles: Mapping[str, str]
    into: str
    params: Mapping[str, object] = field(default_factory=dict)


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

    def tools_used(self) -> tuple[str, ...]:
        """The distributions that change the bytes for these parameters (default: all of ``tools``)."""
        return self.tools

    def needs_used(self) -> tuple[str, ...]:
        """The further distributions that ``run`` imports for these parameters."""
        return self.needs

    def programs(self) -> Mapping[str, tuple[str, ...]]:
        """Programs on PATH whose output on this command line is a key part (``{"sox": ("sox", "--version")}``)."""
        return {}

    def hidden(self) -> Hidden | None:
        """The targets that this one implies, if any."""
        return None

    def misfits(self, roles: frozenset[str]) -> Iterator[tuple[str, str]]:
        """What does not go together with the roles that are filled: (name of the role or parameter, one sentence).

        Asked when the spec is read, so that nobody builds inputs for a target that cannot be built.
        """
        del roles  # a kind that looks at them says it by overriding this
        return iter(())

    def found_sources(self) -> Iterator[tuple[str, Source | Files]]:
        """Every source among the parameters with its JSON pointer (RFC 6901), in the order of the fields."""
        for name in type(self).model_fields:
            yield from _walk(f"/{name}", getattr(self, name))

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


def _walk(pointer: str, value: object) -> Iterator[tuple[str, Source | Files]]:
    if isinstance(value, Source | Files):
        yield pointer, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _walk(f"{pointer}/{name}", getattr(value, name))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _walk(f"{pointer}/{index}", item)


_STAGES = Path(__file__).parent.parent / "stages"


@cache
def kinds() -> tuple[str, ...]:
    """The names of all kinds: the files of ``ingot/stages``; imports none of them."""
    return tuple(sorted(p.stem for p in _STAGES.glob("*.py") if re.fullmatch(r"[a-z][a-z0-9_]*", p.stem)))


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
