"""The files of a ``.mlpackage``: found by its manifest, never outside of its folder, of bounded size."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.errors import RefusedInput
from ingot.kit.code_guard import read_json_value
from ingot.kit.mil import proto
from ingot.kit.mil.blobs import Blobs

#: A program's text; its weights lie beside it. The largest seen of an export has a few MB.
_MOST_PROTOBUF = 1 << 28
_PREFIX = "@model_path/"


@dataclass(frozen=True)
class Package:
    """An opened package: its ``Model`` message, and where files that the program names are looked up."""

    path: Path
    folder: Path
    model: Any
    opened: dict[str, Blobs]

    def blobs(self, name: str) -> Blobs:
        """The weights that a program knows as ``@model_path/…``. RefusedInput (E-MIL-PACKAGE) for any other place."""
        if name not in self.opened:
            if not name.startswith(_PREFIX):
                raise _refused(f"a weight lies outside of the package: {name}")
            self.opened[name] = Blobs(_inside(self.path, self.folder, name.removeprefix(_PREFIX)))
        return self.opened[name]


def open_package(path: Path) -> Package:
    """Read a package's manifest and program.

    RefusedInput (E-MIL-PACKAGE): no manifest, one that leads elsewhere, something that is no ML program.
    """
    manifest = path / "Manifest.json"
    if not manifest.is_file():
        raise _refused(f"{path.name} holds no Manifest.json, so it is not a Core ML package")
    value = read_json_value(manifest)
    entries = value.get("itemInfoEntries") if isinstance(value, dict) else None
    root = value.get("rootModelIdentifier") if isinstance(value, dict) else None
    entry = entries.get(root) if isinstance(entries, dict) and isinstance(root, str) else None
    where = entry.get("path") if isinstance(entry, dict) else None
    if not isinstance(where, str):
        raise _refused("Manifest.json does not say where the model is")
    file = _inside(path, path / "Data", where)
    return Package(path, file.parent, _read_model(file), {})


def _inside(package: Path, folder: Path, name: str) -> Path:
    """A regular file below a folder of the package, no link on the way to it."""
    parts = name.split("/")
    if not re.fullmatch(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*", name) or {"", ".", ".."} & set(parts):
        raise _refused(f"the package names the file {name!r}, which is no plain path inside of it")
    found = folder.joinpath(*parts)
    if not found.is_file() or found.resolve() != package.resolve() / found.relative_to(package):
        raise _refused(f"the package names the file {name!r}, which is not a file inside of it")
    return found


def _read_model(path: Path) -> Any:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

    if (size := path.stat().st_size) > _MOST_PROTOBUF:
        raise _refused(f"{path.name} has {size} bytes, more than the {_MOST_PROTOBUF} that are read")
    model = proto.modules()[0].Model()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise _refused(f"{path.name} is damaged: it is no message of the Core ML format") from error
    if (kind := model.WhichOneof("Type")) != "mlProgram":
        raise _refused(f"the model is of kind {kind or 'none'}; only ML programs are run")
    return model


def _refused(what: str) -> RefusedInput:
    return RefusedInput("E-MIL-PACKAGE", what)
