"""A checkpoint's weights put into a saved program, one by one, each where the program says that it lies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ingot.core.stage import Progress
from ingot.errors import StageFailed
from ingot.kit.coreml import program
from ingot.kit.coreml.blobs import blob_at
from ingot.kit.coreml.checkpoint import Checkpoint
from ingot.kit.coreml.encode import encode, parts, stored_bytes
from ingot.kit.coreml.settings import Settings
from ingot.kit.coreml.storing import sane, suffix

#: The module under which the traced one holds the decoder.
_DECODER = "decoder"


def constant_name(name: str) -> str:
    """The name of a weight of the decoder as a program has it."""
    return sane(f"{_DECODER}.{name}")


def fill(package: Path, spec: Any, checkpoint: Checkpoint, settings: Settings, progress: Progress) -> None:
    """Write every matrix of a checkpoint into the package's file of weights.

    StageFailed (E-COREML-SELFCHECK) when the program has no place for one, or one of another type or size;
    RefusedInput (E-COREML-RANGE).
    """
    names = {name: constant_name(name) + suffix(settings) for name in checkpoint.matrices()}
    places = _places(spec, frozenset(names.values()))
    with (package / program.WEIGHTS).open("r+b") as file:
        for index, (name, constant) in enumerate(names.items()):
            found = places.get(constant)
            if found is None:
                raise _failed(f"the converted program has no place for {name}")
            _fill(file, name, found, checkpoint, settings)
            progress(index + 1, len(names), "matrices")


def _fill(file: BinaryIO, name: str, places: Mapping[str, int], checkpoint: Checkpoint, settings: Settings) -> None:
    shape = checkpoint.shapes[name]
    kinds = {part: kind for part, (_, kind) in parts((shape[0], shape[1]), settings).items()}
    for part, value in encode(checkpoint.load(name, settings.precision), settings).items():
        if part not in places:
            raise _failed(f"the converted program has no place for {name}: {part}")
        data = stored_bytes(value, kinds.get(part, np.dtype(settings.precision)))
        blob = blob_at(file, places[part])
        if blob.size != len(data):
            raise _failed(f"{name}: {part} has {len(data)} bytes, its place in the program {blob.size}")
        file.seek(blob.begin)
        file.write(data)


def _places(spec: Any, names: frozenset[str]) -> dict[str, dict[str, int]]:
    """By the name of what an operation gives: where each of its stored parts lies. All functions share them."""
    found: dict[str, dict[str, int]] = {}
    for operation in program.operations(spec):
        for part, value in program.stored(operation).items():
            name, place = operation.outputs[0].name, value.blobFileValue.offset
            if name not in names:
                continue
            if found.setdefault(name, {}).setdefault(part, place) != place:
                raise _failed(f"the functions of the package do not share {name}")
    return found


def _failed(what: str) -> StageFailed:
    return StageFailed("E-COREML-SELFCHECK", what)
