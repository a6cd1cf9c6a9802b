"""Pickles are refused by what they are, not by what they are called: reading one can run code.

Recognised: a pickle of any protocol (also at the head of torch's old format), a zip that holds one (torch's format
since 1.6), a tar that holds one (torch's oldest), numpy arrays of objects. Nothing turns this off.
"""

from __future__ import annotations

import io
import pickletools
import re
import tarfile
import zipfile
from pathlib import Path

from ingot.errors import RefusedInput

_HEAD = 1 << 16
_MAX_ENTRIES = 100_000
_NEWEST = 5
_NAMES = (".pkl", ".pickle")


def refuse_pickles(root: Path) -> None:
    """Look at a file or a whole folder; RefusedInput (E-FORMAT-PICKLE) names the first file that holds a pickle."""
    for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if path.is_file() and (what := find_pickle(path)):
            raise RefusedInput(
                "E-FORMAT-PICKLE",
                f"{path.name} is {what}, which can run code when it is read",
                hint="use safetensors or GGUF; with hf:, leave the file out by 'files:'",
            )


def find_pickle(path: Path) -> str | None:
    """What kind of pickle a file is or holds, in words; None when it is none."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if is_pickle(head):
        return "a pickle"
    if _object_array(head):
        return "a numpy array of pickled objects"
    if zipfile.is_zipfile(path):
        return _in_zip(path)
    if head[257:262] == b"ustar" or path.suffix == ".tar":
        return _in_tar(path)
    return None


def is_pickle(head: bytes) -> bool:
    """Whether bytes begin a pickle; one cut off by the end of ``head`` counts when it parses until there.

    Without the protocol mark (protocols 0 and 1, which text can resemble) only one that imports something counts:
    any other is plain data.
    """
    marked = len(head) > 1 and head[0] == 0x80 and head[1] <= _NEWEST
    seen, imports = 0, False
    try:
        for opcode, argument, _position in pickletools.genops(io.BytesIO(head)):
            seen += 1
            imports = imports or _imports(opcode.name, argument)
            if opcode.name == "STOP":
                return marked or imports
    except (ValueError, IndexError, OverflowError):
        return (marked and seen > 2) or (imports and len(head) == _HEAD)
    return False


def _imports(opcode: str, argument: object) -> bool:
    if opcode in {"GLOBAL", "INST"}:
        return re.fullmatch(r"[A-Za-z_][\w.]* [A-Za-z_][\w.]*", str(argument)) is not None
    return opcode == "STACK_GLOBAL"


def _object_array(head: bytes) -> bool:
    return head.startswith(b"\x93NUMPY") and (b"'|O" in head[:4096] or b"'O" in head[:4096])


def _in_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist()[:_MAX_ENTRIES]:
                if entry.filename.endswith(_NAMES):
                    return "an archive of pickles"
                if entry.is_dir() or entry.flag_bits & 1:
                    continue
                with archive.open(entry) as file:
                    head = file.read(_HEAD)
                if is_pickle(head) or _object_array(head):
                    return "an archive of pickles"
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError):
        return None  # not an archive that anything here would open
    return None


def _in_tar(path: Path) -> str | None:
    try:
        with tarfile.open(path, "r:") as archive:
            for entry in archive:
                file = archive.extractfile(entry) if entry.isreg() else None
                if file is not None and is_pickle(file.read(_HEAD)):
                    return "an archive of pickles"
    except (tarfile.TarError, EOFError):
        return None
    return None
