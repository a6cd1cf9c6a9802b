"""Pickles and other files that run code when they are read, refused by what they are, not by what they are called.

Recognised: a pickle of any protocol, wherever in the file its first import comes; zip and tar archives (torch's three
formats, ``.nemo``, ``.npz``), gzip, zlib, bzip2 and xz streams (joblib's formats) that hold one; numpy arrays of
objects; Keras models (their Lambda layers are code). Nothing is unpickled and nothing turns this off.

Read are the heads of files, the directories of archives and the heads of their members: never all of a large file.
"""

from __future__ import annotations

import bz2
import io
import lzma
import pickletools
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ingot.core.digest import walk_files
from ingot.errors import RefusedInput

_HEAD = 1 << 16
#: Of a compressed stream at most so much is unpacked to be looked at.
_UNPACKED = 4 << 20
_MAX_ENTRIES = 100_000
_MAX_OPCODES = 200_000
_DEPTH = 3
_NEWEST = 5
#: No file has more; the system can count no further, and would raise an error.
_MOST_BYTES = (1 << 62) - 1
_NAMES = (".pkl", ".pickle")
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_MARK = pickletools.markobject
#: What makes the unpickler call what it imported.
_CALLS = frozenset({"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"})
_COUNTED = {-2: 1, -3: 4, -4: 4, -5: 8}
_ARCHIVE = "an archive of pickles"

_Unpack = Callable[[bytes], bytes]


def refuse_pickles(root: Path) -> None:
    """Look at a file or a whole folder; RefusedInput (E-FORMAT-PICKLE) names the first file that holds a pickle."""
    for path in [root / name for name in walk_files(root)] if root.is_dir() else [root]:
        if what := find_pickle(path):
            raise RefusedInput(
                "E-FORMAT-PICKLE",
                f"{path.name} is {what}, which can run code when it is read",
                hint="use safetensors or GGUF; with hf:, leave the file out by 'files:'",
            )


def find_pickle(path: Path) -> str | None:
    """What kind of pickle, or of other code, a file is or holds, in words; None when it is none."""
    with path.open("rb") as file:
        return _look(file, _DEPTH)


def is_pickle(head: bytes) -> bool:
    """Whether bytes begin a pickle; one that is cut off counts when it is one until there."""
    return _runs_code(io.BytesIO(head), whole=False)


def _look(file: BinaryIO, depth: int) -> str | None:
    """What a file is, of those kinds; ``depth`` more levels of archives are opened."""
    head = file.read(_HEAD)
    if _object_array(head):
        return "a numpy array of pickled objects"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "a Keras model in HDF5" if b"model_config" in head or b"keras_version" in head else None
    file.seek(0)
    if _runs_code(file, whole=True):
        return "a pickle"
    return _in_archive(file, head, depth) if depth else None


def _in_archive(file: BinaryIO, head: bytes, depth: int) -> str | None:
    file.seek(0)
    # A zip is found by its end: what stands before it may be anything.
    if zipfile.is_zipfile(file):
        return _in_zip(file, depth)
    if _is_tar(head):
        return _in_tar(file, depth)
    for magic, unpack in _STREAMS:
        if magic.match(head):
            return _in_stream(file, unpack, depth)
    return None


def _object_array(head: bytes) -> bool:
    """Whether a numpy file's description, which is Python text, names objects; one that is too long is taken for it."""
    if not head.startswith(b"\x93NUMPY"):
        return False
    length = int.from_bytes(head[8:10] if head[6:7] == b"\x01" else head[8:12], "little")
    return length > _HEAD - 16 or re.search(rb"['\"][|<>=]?O", head[: 12 + length]) is not None


def _runs_code(file: BinaryIO, *, whole: bool) -> bool:
    """Walk a pickle's opcodes without running one: whether reading it would import or call something.

    Without the protocol mark (protocols 0 and 1, which text can resemble) it counts once something imported is called,
    or at its end when something was imported: plain data is harmless. ``whole`` is False where the bytes may be cut.
    """
    start = file.read(2)
    marked = len(start) == 2 and start[0] == 0x80 and start[1] <= _NEWEST
    file.seek(0)
    stack, seen, imported = _Stack(), 0, False
    while seen < _MAX_OPCODES:
        opcode = _OPCODES.get(code) if (code := file.read(1)) else None
        argument = _argument(file, opcode) if opcode is not None else None
        if opcode is None or argument is None or not stack.take(opcode):
            # Not a pickle from here on, but what came before would have run.
            cut = not code and not whole
            return (marked and seen > 2) or (imported and cut)
        seen += 1
        imported = imported or _imports(opcode.name, argument)
        if imported and opcode.name in _CALLS:
            return True
        if opcode.name == "STOP":
            return marked or imported
    # No text obeys the stack for so long.
    return True


def _argument(file: BinaryIO, opcode: pickletools.OpcodeInfo) -> bytes | None:
    """The head of an opcode's argument; the rest is passed over. None where the file ends in it."""
    length = opcode.arg.n if opcode.arg is not None else 0
    if length == pickletools.UP_TO_NEWLINE:
        lines = [_line(file) for _ in range(2 if opcode.name in {"GLOBAL", "INST"} else 1)]
        return None if None in lines else b" ".join(line for line in lines if line is not None)
    if length < 0:
        raw = file.read(_COUNTED[length])
        length = int.from_bytes(raw, "little")
        if length > _MOST_BYTES:
            return None
    found = file.read(min(length, 256))
    if length > 256:
        file.seek(length - 257, io.SEEK_CUR)
        found += file.read(1)
    return found if len(found) == min(length, 257) else None


def _line(file: BinaryIO) -> bytes | None:
    """The head of a line, without its end."""
    first = file.readline(_HEAD)
    rest = first
    while len(rest) == _HEAD and not rest.endswith(b"\n"):
        rest = file.readline(_HEAD)
    return first[:256].rstrip(b"\n") if rest.endswith(b"\n") else None


def _imports(opcode: str, argument: bytes) -> bool:
    if opcode in {"GLOBAL", "INST"}:
        return re.fullmatch(rb"[A-Za-z_][\w.]* [A-Za-z_][\w.]*", argument) is not None
    return opcode == "STACK_GLOBAL"


class _Stack:
    """How many values lie on the unpickler's stack, above each of its marks."""

    def __init__(self) -> None:
        self._levels = [0]

    def take(self, opcode: pickletools.OpcodeInfo) -> bool:
        """Do what an opcode does to the stack; False where it would fail."""
        before, after = list(opcode.stack_before), list(opcode.stack_after)
        if _MARK in before:
            if len(self._levels) == 1:
                return False
            self._levels.pop()
            before = before[: before.index(_MARK)]
        if self._levels[-1] < len(before):
            return False
        self._levels[-1] -= len(before)
        for item in after:
            if item is _MARK:
                self._levels.append(0)
            else:
                self._levels[-1] += 1
        return True


def _in_zip(file: BinaryIO, depth: int) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()[:_MAX_ENTRIES]
            names = {entry.filename for entry in entries}
            if "config.json" in names and any(name.endswith(".weights.h5") for name in names):
                return "a Keras model"
            for entry in entries:
                if entry.filename.endswith(_NAMES):
                    return _ARCHIVE
                # ``is_dir`` fails where a name is empty.
                if not entry.filename.endswith("/") and not entry.flag_bits & 1:
                    with archive.open(entry) as member:
                        if _member(member.read(_UNPACKED), depth):
                            return _ARCHIVE
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError):
        return None  # not an archive that anything here would open
    return None


def _in_tar(file: BinaryIO, depth: int) -> str | None:
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for number, entry in enumerate(archive):
                member = archive.extractfile(entry) if entry.isreg() and number < _MAX_ENTRIES else None
                if entry.name.endswith(_NAMES) or (member is not None and _member(member.read(_UNPACKED), depth)):
                    return _ARCHIVE
    except (tarfile.TarError, EOFError, ValueError, OSError):
        return None
    return None


def _member(head: bytes, depth: int) -> bool:
    """Whether the head of a member is such a file; of an archive in an archive the names in the head count, too."""
    if head.startswith(b"PK\x03\x04") and re.search(rb"data\.pkl|\.pickle|\.pkl", head):
        return True
    return _look(io.BytesIO(head), depth - 1) is not None


def _is_tar(head: bytes) -> bool:
    """Whether bytes begin a tar archive: the first header's checksum is right, whatever its magic says."""
    block = head[:512]
    if len(block) < 512 or not block[0]:
        return False
    digits = block[148:156].strip(b" \0")
    # The checksum counts its own field as spaces.
    return re.fullmatch(rb"[0-7]{1,7}", digits) is not None and int(digits, 8) == sum(block) - sum(block[148:156]) + 256


def _in_stream(file: BinaryIO, unpack: _Unpack, depth: int) -> str | None:
    file.seek(0)
    try:
        data = unpack(file.read(_UNPACKED))
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError):
        return None
    return f"compressed: {found}" if (found := _look_cut(data, depth - 1)) else None


def _look_cut(data: bytes, depth: int) -> str | None:
    """As ``_look``, of bytes that may be cut."""
    return "a pickle" if is_pickle(data) else "an archive of pickles" if _member(data, depth) else None


def _inflate(window: int) -> _Unpack:
    return lambda data: zlib.decompressobj(window).decompress(data, _UNPACKED)


_STREAMS: tuple[tuple[re.Pattern[bytes], _Unpack], ...] = (
    (re.compile(rb"\x1f\x8b"), _inflate(31)),
    (re.compile(rb"\x78[\x01\x5e\x9c\xda]"), _inflate(15)),
    (re.compile(rb"BZh"), lambda data: bz2.BZ2Decompressor().decompress(data, _UNPACKED)),
    (re.compile(rb"\xfd7zXZ\0|\x5d\0\0"), lambda data: lzma.LZMADecompressor().decompress(data, _UNPACKED)),
)
