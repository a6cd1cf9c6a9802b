"""The items of a task: JSON files beside it, and nothing from anywhere else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ingot.kit.harness.reading import Config, Folder, Value

_SUFFIXES = (".json", ".jsonl")
_KEYS = frozenset({"data_files", "field", "trust_remote_code"})
_LOCAL = (
    "write the items into a .jsonl file beside the task, and 'dataset_path: json', "
    "'dataset_kwargs: {data_files: {test: NAME.jsonl}}'"
)


def check(folder: Folder, config: Config) -> None:
    """Refuse data that are not in the folder: E-HARNESS-HUB, E-HARNESS-DATA."""
    path, given = config.get("dataset_path"), config.get("dataset_kwargs")
    if path is None or path.value != "json":
        what = "names no data set" if path is None else f"its data set {path.value!r} would be fetched from the hub"
        raise folder.refused(what, path or config.named, code="E-HARNESS-HUB", hint=_LOCAL)
    if given is None or not isinstance(given.value, dict) or "data_files" not in given.value:
        raise folder.refused("'dataset_kwargs' has no 'data_files'", given or path, code="E-HARNESS-DATA", hint=_LOCAL)
    if odd := sorted(set(given.value) - _KEYS):
        raise folder.refused(f"'dataset_kwargs' cannot have {odd[0]!r} here", given, code="E-HARNESS-DATA", hint=_LOCAL)
    for file in sorted({file for paths in files(folder, given).values() for file in paths}):
        _check_json(folder, file)


def arguments(folder: Folder, config: Config, cache: Path) -> dict[str, Any] | None:
    """What the harness is to give to ``load_dataset`` instead of what is written: files where they lie now."""
    given = config.get("dataset_kwargs")
    if given is None or not isinstance(given.value, dict) or "data_files" not in given.value:
        return None
    listed = {split: [str(path) for path in paths] for split, paths in files(folder, given).items()}
    kept = {name: value for name, value in given.value.items() if name == "field"}
    return {**kept, "data_files": listed, "cache_dir": str(cache)}


def files(folder: Folder, given: Value) -> dict[str, list[Path]]:
    """The files of each split. RefusedInput (E-HARNESS-DATA) for one that is not in the folder."""
    written = given.value["data_files"]
    found: dict[str, list[Path]] = {}
    for split, names in (written if isinstance(written, dict) else {"train": written}).items():
        for name in listed(names):
            path = folder.inside(str(name), given)
            if path is None:
                raise folder.refused(
                    f"the data file {str(name)!r} is not in this folder",
                    given,
                    code="E-HARNESS-DATA",
                    hint="its path is relative to the file that names it",
                )
            if path.suffix not in _SUFFIXES:
                raise folder.refused(
                    f"the data file {str(name)!r} is no JSON", given, code="E-HARNESS-DATA", hint=_LOCAL
                )
            found.setdefault(str(split), []).append(path)
    return found


def listed(value: Any) -> Sequence[Any]:
    """A list as it is, anything else as a list of one."""
    return value if isinstance(value, list) else [value]


def _check_json(folder: Folder, path: Path) -> None:
    """Every line is an object (.jsonl), or the whole file is one value (.json)."""
    line = 0
    try:
        with path.open(encoding="utf-8") as file:
            if path.suffix == ".json":
                json.load(file)
                return
            for text in file:
                line += 1
                if text.strip() and not isinstance(json.loads(text), dict):
                    raise ValueError("the line is no object")
    except (ValueError, RecursionError) as error:
        what = f"is no JSON: {str(error).partition(': line')[0]}"
        raise folder.refused(what, Value(None, path, line), code="E-HARNESS-DATA") from error
    if line == 0:
        raise folder.refused("holds no item", path, code="E-HARNESS-DATA")
