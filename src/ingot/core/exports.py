"""Read what another checkout exported: a receipt, a line of a log, or bare key parts; bounded, checked for form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ingot.core.digest import read_json
from ingot.core.statement import STATEMENT, receipt_of
from ingot.errors import RefusedInput, RegistryDamaged

#: No export of ours is larger: an entry has at most 64 KiB, its list of files a few MB.
MAX_BYTES = 64 << 20
MAX_DEPTH = 64

_TEXTS = ("target", "kind", "key", "digest")
_OBJECTS = ("key_parts", "inputs", "metrics", "environment", "timings", "git")


def read_export(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(key parts, the receipt or None) of a file. RefusedInput (E-EXPORT) for anything else."""
    data = _read(path)
    if data.get("_type") == STATEMENT:
        try:
            data = receipt_of(data)
        except RegistryDamaged as error:
            raise _refused(path, error.what) from error
    if "metrics" in data or "files" in data:
        return data["key_parts"], _receipt(path, data)
    parts = data.get("key_parts", data)
    if not _are_parts(parts):
        raise _refused(path, "it holds neither a receipt nor key parts")
    return parts, None


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise _refused(path, f"it has more than {MAX_BYTES:,} bytes")
    try:
        value = read_json(data)
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"it is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _refused(path, "it is not a JSON object")
    if not _is_bounded(value, MAX_DEPTH):
        raise _refused(path, f"it is nested deeper than {MAX_DEPTH} levels, or holds a number that is not finite")
    return value


def _is_bounded(value: object, depth: int) -> bool:
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_is_bounded(item, depth - 1) for item in items)
    return not isinstance(value, float) or math.isfinite(value)


def _receipt(path: Path, data: dict[str, Any]) -> dict[str, Any]:
    texts = [name for name in _TEXTS if not isinstance(data.get(name), str)]
    objects = [name for name in _OBJECTS if not isinstance(data.get(name), dict)]
    if texts or objects:
        raise _refused(path, f"a receipt's {', '.join(texts + objects)} is missing or of another form")
    checks: dict[str, Callable[[Any], bool]] = {
        "key_parts": _are_parts,
        "files": lambda files: isinstance(files, list) and all(_is_file(item) for item in files),
        "inputs": lambda inputs: all(_is_input(item) for item in inputs.values()),
        "metrics": lambda metrics: all(_is_metric(item) for item in metrics.values()),
        "timings": lambda timings: isinstance(timings.get("finished"), str),
    }
    for name, is_right in checks.items():
        if not is_right(data.get(name)):
            raise _refused(path, f"a receipt's {name} is missing or of another form")
    if "origin" in data and not (isinstance(data["origin"], str) and isinstance(data.get("index"), int)):
        raise _refused(path, "a receipt's origin and index are a text and a number")
    return data


def _are_parts(parts: object) -> bool:
    return (
        isinstance(parts, dict)
        and isinstance(parts.get("kind"), str)
        and isinstance(parts.get("revision"), int)
        and all(isinstance(parts.get(name), dict) for name in ("params", "inputs", "tools"))
        and isinstance(parts.get("programs", {}), dict)
    )


def _has_texts(value: object, *names: str) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(name), str) for name in names)


def _is_file(file: Any) -> bool:
    return _has_texts(file, "path", "sha256") and _is_number(file.get("size"))


def _is_input(value: object) -> bool:
    listed = value if isinstance(value, list) else [value]
    return all(_has_texts(item, "target", "digest") for item in listed)


def _is_metric(metric: Any) -> bool:
    if not _has_texts(metric, "unit") or not _is_number(metric.get("value")):
        return False
    interval = metric.get("interval")
    return interval is None or (
        isinstance(interval, list) and len(interval) == 2 and all(_is_number(item) for item in interval)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refused(path: Path, why: str) -> RefusedInput:
    hint = "doit show SPEC:TARGET --json > FILE writes one that can be compared"
    return RefusedInput("E-EXPORT", f"{path} is no export of ingot: {why}", hint=hint)
