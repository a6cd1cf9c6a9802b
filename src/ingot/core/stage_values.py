"""What a stage is given and what it gives back: plain frozen values. ``ingot.core.stage`` has them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from ingot.core.digest import FileRecord

if TYPE_CHECKING:
    from ingot.core.stage import Stage


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


class Measure(NamedTuple):
    """A metric of a kind, in the words of ``docs/kinds.md``; capitals in its name stand for several names."""

    metric: str
    unit: str
    when: str = "always"


@dataclass(frozen=True)
class Keyless:
    """Marks a parameter that changes no byte of the artifact: it is no part of the key.

    ``interval: Annotated[float, Keyless()] = Field(…)``
    """


#: In ``Hidden.roles``: the element that the hidden target is made for.
ELEMENT = "*"


@dataclass(frozen=True)
class Hidden:
    """Targets that another target implies: ``report`` implies one ``evaluate`` a candidate.

    ``per`` names the roles of the implying target whose every element gets one, each element once; those that are in
    the role ``besides`` get none. ``kind`` and ``params`` say what is built. It is named ``IMPLYING.ELEMENT``, or with
    a ``name`` ``IMPLYING.ELEMENT.NAME``.

    ``roles`` says what fills each of its roles: ``ELEMENT``, a role of the implying target, or the hidden targets
    ``NAME`` of the element (``"NAME:*"``) or of the elements of a role (``"NAME:reference"``). What is not there fills
    nothing.

    The results come back to the implying target in its role ``into``, in the order of the elements; with None they
    are there for other hidden targets only. ``place`` is the parameter that asks for them, where what is wrong with
    ``params`` is reported.
    """

    kind: str
    per: tuple[str, ...]
    roles: Mapping[str, str]
    into: str | None
    params: Mapping[str, object] = field(default_factory=dict)
    name: str = ""
    besides: str = ""
    place: tuple[str, ...] = ()


class Progress(Protocol):
    """How a running stage reports: ``progress(done, total, unit, loss=…)``; ``phase`` names what runs now."""

    def __call__(self, done: float, total: float | None, unit: str, **live: float | str) -> None:
        """``done`` of ``total`` (None: not known) in ``unit``; ``live`` are figures to show, such as loss."""

    def phase(self, name: str) -> None:
        """Name what runs now."""


@dataclass(frozen=True)
class Least:
    """What something has at the least, by arithmetic: bytes on the disk, and weights (elements of its tensors).

    A floor, never an estimate: what is not known is 0. Of a model also ``cache``, the numbers that the keys and values
    of a token are, and ``context``, the tokens that it is made to read; these are no floors but so, or 0.
    """

    bytes: int = 0
    weights: int = 0
    cache: int = 0
    context: int = 0

    @classmethod
    def together(cls, parts: Iterable[Least]) -> Least:
        """What several have together. Of one model they say all; several are none."""
        found = list(parts)
        size, weights = sum(it.bytes for it in found), sum(it.weights for it in found)
        return replace(found[0], bytes=size, weights=weights) if len(found) == 1 else cls(size, weights)

    def stored(self, bits: float) -> Least:
        """The same model as a file that has so many bits for each weight at the least.

        A thousandth is taken off: a writer may leave out small tensors that follow from others (rotary tables).
        """
        weights = self.weights * 999 // 1000
        return replace(self, bytes=int(weights * bits) // 8, weights=weights)


@dataclass(frozen=True)
class Serving:
    """What an export takes where it runs, by arithmetic; None for what is not known before its model is built.

    ``weights``: bytes of the weights in the form that the parameters ask for, at the least. ``token``: bytes of keys
    and values for each token that a session holds, 0 where a call keeps nothing. ``context``: tokens of a session.
    """

    weights: int | None
    token: int | None
    context: int | None

    @classmethod
    def of(cls, model: Least, bits: float, *, cached: int = 0, context: int = 0) -> Serving:
        """A model with so many bits a weight, and ``cached`` bytes for each number of keys and values.

        ``context`` tokens a session, else as many as the model is made to read.
        """
        weights = int(model.weights * bits) // 8 or None
        if not cached:
            return cls(weights, 0, None)
        return cls(weights, model.cache * cached or None, context or model.context or None)


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
