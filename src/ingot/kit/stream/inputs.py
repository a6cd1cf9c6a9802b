"""From what a stage is given to weights that flow, and from weights that flowed to what a stage gives back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

from ingot.core.digest import FileRecord, record_files
from ingot.core.stage import Done, Given, Progress
from ingot.kit.stream import pipeline
from ingot.kit.stream.hash_sink import HashSink
from ingot.kit.stream.nonfinite import RefuseNonFinite
from ingot.kit.stream.safetensors_sink import SafetensorsSink
from ingot.kit.stream.safetensors_source import SafetensorsSource
from ingot.kit.stream.vocabulary import Counted, Tap, Weights


class Flowing(Protocol):
    """A stage that is weight-wise (``Stage.weightwise``)."""

    def flow(self, given: Given, progress: Progress) -> Weights:
        """Its result as a stream, writing nothing but side files in ``given.scratch``."""


def open_input(given: Given, role: str, progress: Progress, *, finite: bool = True) -> Weights:
    """The weights of a single role: read from its folder and verified in that read, or made on the way if virtual.

    With ``finite`` NaN and infinities are refused (E-NONFINITE). Whoever adds to the chain sets ``folder`` to side
    files of its own, and ``measure``.
    """
    weights = _virtual(given, role, progress) if role in given.virtual else _from_folder(given, role)
    if finite:
        weights.chain.append(RefuseNonFinite())
    return weights


def expected_files(given: Given, role: str) -> Mapping[str, FileRecord] | None:
    """What the files of a single role must be; None where nobody said so."""
    listed = given.files.get(role, ())
    return listed[0] if listed else None


def _from_folder(given: Given, role: str) -> Weights:
    folder = given.one(role)
    return with_origin(Weights(SafetensorsSource(folder, expected_files(given, role)), folder), given, role)


def with_origin(weights: Weights, given: Given, role: str) -> Weights:
    """The same, with what is known of the single role whose folder its source reads."""
    origin, known = next(iter(given.digests.get(role, ())), ""), given.tensors.get(role, {})
    return replace(weights, origin=origin, known=known)


def _virtual(given: Given, role: str, progress: Progress) -> Weights:
    inner = _flow(given, role, progress)
    sink = HashSink(given.scratch, inner.shard_bytes)
    chain = [*inner.chain, Tap(sink)]
    passed = {role: lambda: finished(inner, sink)}
    return replace(Weights(inner.source, inner.folder, chain, passed=passed), origin=inner.origin, known=inner.known)


def _flow(given: Given, role: str, progress: Progress) -> Weights:
    virtual = given.virtual[role]
    return cast("Flowing", virtual.stage).flow(virtual.given, progress)


def finished(weights: Weights, sink: Counted) -> Done:
    """What is to be told of weights that flowed into ``sink``: its files are complete, side files included."""
    done = weights.measure(sink)
    files = sorted((*sink.files, *record_files(weights.folder)))
    passed = {role: told() for role, told in weights.passed.items()}
    return replace(done, files=tuple(files), tensors=sink.tensors, passed={**passed, **done.passed})


def side_folder(given: Given) -> Path:
    """A new folder for the side files of a flow."""
    for number in range(1000):
        folder = given.scratch / f"side-{number}"
        if not folder.exists():
            folder.mkdir()
            return folder
    raise RuntimeError("a thousand flows in one scratch folder")


def build(stage: Flowing, given: Given, out: Path, progress: Progress) -> Done:
    """``Stage.run`` of a weight-wise stage: its flow, written as a Hugging Face folder."""
    return write(stage.flow(given, progress), given, out, progress)


def write(weights: Weights, given: Given, out: Path, progress: Progress) -> Done:
    """A flow as a Hugging Face folder: its weights, and then its side files, which go there."""
    sink = SafetensorsSink(out, weights.shard_bytes)
    pipeline.run(weights, [sink], threads=given.threads, watch=progress)
    done = finished(weights, sink)
    for path in sorted(weights.folder.iterdir()):
        shutil.move(path, out / path.name)
    return done


def written(given: Given, role: str, progress: Progress) -> tuple[Given, dict[str, Callable[[], Done]]]:
    """The same with a virtual input written to scratch, for what must read it more than once, and what was measured.

    An input that lies in the store stays as it is.
    """
    if role not in given.virtual:
        return given, {}
    weights = _flow(given, role, progress)
    folder = side_folder(given)
    done = write(weights, given, folder, progress)
    virtual = {name: other for name, other in given.virtual.items() if name != role}
    files = {**given.files, role: ({record.path: record for record in done.files},)}
    return replace(given, inputs={**given.inputs, role: (folder,)}, virtual=virtual, files=files), {role: lambda: done}
