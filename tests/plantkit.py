"""Files of an attacker, made byte by byte: each is harmless here and would not be where its fault is not refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
#: A key that no service has given to anybody, of the form that one gives.
KEY = "sk-" + "a1B2" * 8


class Harmful:
    """Would run a program when it is unpickled; the program does nothing."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("true",))


def pickled(protocol: int = 4) -> bytes:
    """A pickle that calls something."""
    return pickle.dumps(Harmful(), protocol=protocol)


def safetensors(header: Mapping[str, Any] | bytes, data: bytes = b"\0" * 8, *, length: int | None = None) -> bytes:
    """A safetensors file with this header; ``length`` is what it claims where that is not the truth."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def zipped(members: Mapping[str, bytes]) -> bytes:
    """A zip archive of these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(members: Mapping[str, bytes], mode: str = "w") -> bytes:
    """A tar archive of these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]  # the mode is a parameter
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def put(path: Path, data: bytes) -> Path:
    """Write a file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def model_folder(folder: Path, **files: object) -> Path:
    """A minimal Hugging Face folder; ``files`` are further JSON files by name without suffix."""
    put(folder / "config.json", json.dumps({"model_type": "llama"}).encode())
    put(folder / "model.safetensors", safetensors({"a": F32}))
    for name, value in files.items():
        put(folder / f"{name}.json", json.dumps(value).encode())
    return folder
