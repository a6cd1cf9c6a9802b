"""Model folders that would make a library run code, or read what nobody checked, are refused before one sees them.

A library takes orders from every config of a folder: keys that name classes to import or kernels to fetch, and files
that it reads instead of those that were checked. Program files in the folder are refused as well: nothing here runs
them, but the next tool might.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ingot.core.digest import read_json, walk_files
from ingot.errors import RefusedInput

_MAX_JSON = 64 << 20
#: Refused unless empty, false or null, at any depth.
_CODE_KEYS = frozenset(
    {"auto_map", "auto_mapping", "custom_pipelines", "custom_generate", "trust_remote_code", "use_kernels"}
)
#: Where a value with one of these marks names a repository on the hub whose code would be fetched and run.
_REPOSITORY = ("/", ":")
#: Another file of weights than the one that was checked.
_OTHER_WEIGHTS = "transformers_weights"
_PROGRAMS = (".py", ".pyc", ".pyd", ".so", ".dylib", ".dll")
#: Lists of tokens, which may be any words, and no config.
_VOCABULARIES = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json", "tekken.json"})


def refuse_code(folder: Path) -> None:
    """Look at the names and at all JSON files of a model or adapter folder.

    RefusedInput: E-CONFIG-CODE (a config asks for code, with the file and the key), E-FORMAT-CODE (a program file),
    E-JSON-LIMIT (a JSON file that is too large or nested too deep), E-NOT-HF (one that is none).
    """
    for name in walk_files(folder):
        if name.lower().endswith(_PROGRAMS):
            raise RefusedInput(
                "E-FORMAT-CODE",
                f"the model's folder holds a program ({name}), which a library may run",
                hint="leave it out: under 'fetch', name the files to take in 'files'",
            )
        if name.endswith(".json"):
            path = folder / name
            status = path.stat()
            _check(path, name, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _check(path: Path, name: str, _size: int, _mtime_ns: int) -> None:
    """Refuse one JSON file; what passed is not read again while it stays as it is."""
    try:
        value = read_json_value(path)
    except RefusedInput as error:
        if error.code == "E-NOT-HF" and path.name in _VOCABULARIES:
            return  # the tokenizer's own reader says better what is wrong with it
        raise
    if path.name not in _VOCABULARIES:
        _refuse_keys(name, value)


def read_json_value(path: Path) -> object:
    """A JSON file of bounded size and depth. RefusedInput: E-JSON-LIMIT, E-NOT-HF when it is not JSON."""
    if path.stat().st_size > _MAX_JSON:
        raise RefusedInput("E-JSON-LIMIT", f"{path.name} is larger than {_MAX_JSON >> 20} MiB")
    try:
        return read_json(path.read_bytes())
    except RecursionError as error:
        raise RefusedInput("E-JSON-LIMIT", f"{path.name} is nested too deep") from error
    except ValueError as error:
        raise RefusedInput("E-NOT-HF", f"{path.name} is not valid JSON: {error}") from error


def _refuse_keys(file: str, value: object) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if _asks_for_code(str(key), item):
                raise RefusedInput(
                    "E-CONFIG-CODE",
                    f"{file} asks for code from elsewhere ({str(key)[:80]!r}), which ingot never runs",
                    hint="use a model whose architecture is part of transformers",
                )
            _refuse_keys(file, item)
    elif isinstance(value, list):
        for item in value:
            _refuse_keys(file, item)


def _asks_for_code(key: str, value: Any) -> bool:
    if key in _CODE_KEYS:
        return bool(value)
    if key == _OTHER_WEIGHTS:
        return value is not None
    if "attn_implementation" in key or "experts_implementation" in key or "kernel" in key:
        return any(mark in text for text in _texts(value) for mark in _REPOSITORY)
    return False


def _texts(value: object) -> list[str]:
    """All texts within a value."""
    if isinstance(value, str):
        return [value]
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in items for text in _texts(item)]
