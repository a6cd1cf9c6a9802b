"""How far apart two files are that ought to be the same: weights by their values, JSON by its numbers, else bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
#: Bytes of two files that are compared in one go.
_CHUNK = 1 << 20


def apart(one: Path, other: Path) -> dict[str, Any]:
    """What differs between two files of one name, as plain JSON.

    Weights (safetensors, GGUF): ``tensors`` that differ ``of`` so many, the largest absolute difference of two
    elements (``largest``) and the tensor it is in (``where``), and ``relative``: the root of the sum of squares of all
    differences by that of the first file's values. JSON and JSON lines: ``values`` that differ ``of`` so many, the
    largest relative difference of two numbers and where it is. Anything else: ``bytes`` that differ ``of`` so many.
    """
    for suffix, compare in ((".safetensors", _safetensors), (".gguf", _gguf), (".json", _json), (".jsonl", _json)):
        if one.name.endswith(suffix):
            try:
                return compare(one, other)
            except (ValueError, KeyError, OSError, OverflowError, RecursionError):
                break  # not what its name says: then its bytes are compared
    return _bytes(one, other)


def _safetensors(one: Path, other: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    def read(file: Any, name: str) -> Array | None:
        found: Array | None = file.get_tensor(name).float().numpy() if name in set(file.keys()) else None
        return found

    try:
        with safe_open(one, "pt") as before, safe_open(other, "pt") as after:
            names = sorted({*before.keys(), *after.keys()})
            return _tensors((name, read(before, name), read(after, name)) for name in names)
    except SafetensorError as error:
        raise ValueError("no safetensors") from error


def _gguf(one: Path, other: Path) -> dict[str, Any]:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    before, after = ({item.name: item for item in GGUFReader(path).tensors} for path in (one, other))

    def read(side: Mapping[str, Any], name: str) -> Array | None:
        found = side.get(name)
        return None if found is None else dequantize(found.data, found.tensor_type)

    return _tensors((name, read(before, name), read(after, name)) for name in sorted({*before, *after}))


def _tensors(pairs: Iterator[tuple[str, Array | None, Array | None]]) -> dict[str, Any]:
    differing, total, largest, where, squares, size = 0, 0, 0.0, "", 0.0, 0.0
    for name, before, after in pairs:
        total += 1
        if before is None or after is None or before.shape != after.shape:
            differing, where, largest = differing + 1, name, math.inf
            continue
        gap = np.abs(before.astype(np.float64) - after.astype(np.float64))
        squares, size = squares + float((gap**2).sum()), size + float((before.astype(np.float64) ** 2).sum())
        most = float(gap.max(initial=0.0))
        # What is not a number differs from everything.
        differing += bool(most != 0 or not np.array_equal(before, after))
        if most > largest:
            largest, where = most, name
    found = {"what": "tensors", "tensors": differing, "of": total, "where": where}
    relative = math.sqrt(squares / size) if size else 0.0
    return found | {"largest": _finite(largest), "relative": _finite(relative)}


def _json(one: Path, other: Path) -> dict[str, Any]:
    before, after = (dict(_leaves("", _read(path))) for path in (one, other))
    differing, largest, where = 0, 0.0, ""
    for place in sorted({*before, *after}):
        a, b = before.get(place), after.get(place)
        if a == b and type(a) is type(b):
            continue
        differing += 1
        gap = _gap(a, b)
        if gap >= largest:
            largest, where = gap, place
    of = len({*before, *after})
    return {"what": "values", "values": differing, "of": of, "relative": _finite(largest), "where": where}


def _read(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.name.endswith(".jsonl") else json.loads(text)


def _leaves(place: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(f"{place}/{name}", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(f"{place}/{index}", item)
    else:
        yield place, value


def _gap(a: object, b: object) -> float:
    """The relative difference of two numbers; infinite for anything else."""
    if isinstance(a, bool) or isinstance(b, bool) or not isinstance(a, int | float) or not isinstance(b, int | float):
        return math.inf
    return 0.0 if a == b else abs(a - b) / max(abs(a), abs(b))  # 0 and 0.0 are not written alike


def _bytes(one: Path, other: Path) -> dict[str, Any]:
    differing, sizes = 0, (one.stat().st_size, other.stat().st_size)
    with one.open("rb") as before, other.open("rb") as after:
        for _ in range(0, min(sizes), _CHUNK):
            a, b = (np.frombuffer(file.read(_CHUNK), np.uint8) for file in (before, after))
            least = min(len(a), len(b))
            differing += int((a[:least] != b[:least]).sum())
    return {"what": "bytes", "bytes": differing + max(sizes) - min(sizes), "of": max(sizes)}


def _finite(value: float) -> float | None:
    """The number, or None where there is none: JSON has no infinity."""
    return value if math.isfinite(value) else None
