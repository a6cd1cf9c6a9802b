"""Core ML packages as files: written in canonical form, so that equal programs are equal bytes.

A package is ``model.mlpackage/Manifest.json`` and ``Data/com.apple.CoreML/`` with ``model.mlmodel`` (protobuf) and
``weights/weight.bin``. coremltools stamps random identifiers and the date; here identifiers come from the content and
the protobuf is serialized deterministically.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingot.kit.coreml.program import MODEL, ROOT, WEIGHTS
from ingot.kit.hf import write_json

_DATE = "com.github.apple.coremltools.conversion_date"


def write(made: Path, spec: Any, target: Path, facts: Mapping[str, str]) -> None:
    """Begin a package: the file of weights of a converted one, and a program with ``facts`` in its metadata."""
    (target / WEIGHTS).parent.mkdir(parents=True)
    shutil.copyfile(made / WEIGHTS, target / WEIGHTS)
    own = spec.description.metadata.userDefined
    own.pop(_DATE, None)
    for name, value in facts.items():
        own[name] = value
    (target / MODEL).write_bytes(spec.SerializeToString(deterministic=True))


def seal(package: Path) -> None:
    """Write the manifest of a package whose files are whole."""
    entries = {}
    for name, what in (("model.mlmodel", "CoreML Model Specification"), ("weights", "CoreML Model Weights")):
        entries[_identifier(package / ROOT / name)] = {
            "author": "com.apple.CoreML",
            "description": what,
            "name": name,
            "path": f"com.apple.CoreML/{name}",
        }
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": _identifier(package / MODEL),
    }
    write_json(package / "Manifest.json", manifest)


def _identifier(path: Path) -> str:
    """A UUID (version 8 of RFC 9562) from the name and bytes of a file, or of all files of a folder."""
    digest = hashlib.sha256(path.name.encode() + b"\0")
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    value = int.from_bytes(digest.digest()[:16], "big")
    value = value & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62
    return str(uuid.UUID(int=value)).upper()
