"""``pack.json`` (format 1): what a packed artifact holds, and what it must become again.

Law: nothing in it is believed before it was checked. Paths lead nowhere but below the folder that is unpacked into, the
place of each packed file follows from its path, and the digest of the original follows from the hashes of its files;
so who knows that digest knows every byte that may come back. The format is stated in ``docs/formats.md``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from ingot.core import files
from ingot.core.digest import MAX_DEPTH, MAX_FILES, check_name, read_json, sha256_bytes, tree_preimage
from ingot.core.names import twins
from ingot.core.stage import Frozen
from ingot.errors import RefusedInput
from ingot.kit.pack import AGAIN

NAME = "pack.json"
DICTIONARY = "dictionary.zstd"
#: A megabyte holds some 3,000 files; a pack.json of this size, all that an artifact may have.
_MOST = 512 << 20
#: log2 of the largest window that is taken: unpacking needs as much memory.
MAX_WINDOW_LOG = 30

Size = Annotated[int, Field(ge=0, lt=1 << 53)]
Hash = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]


class PackedFile(Frozen):
    """One file: what it was, and what of it lies in the packed artifact."""

    path: str
    size: Size
    sha256: Hash
    method: Literal["zstd", "stored"]
    packed_size: Size
    packed_sha256: Hash
    dictionary: bool = False

    @property
    def place(self) -> str:
        """Where it lies in the packed artifact."""
        return place(self.path, self.method)


class Dictionary(Frozen):
    """The trained dictionary, a file of the packed artifact."""

    size: Size
    sha256: Hash
    id: int


class Manifest(Frozen):
    """All of ``pack.json``: ``artifact`` is the digest of the original, ``window_log`` bounds what a frame may want."""

    format: Literal[1] = 1
    artifact: Hash
    level: int
    window_log: Annotated[int, Field(ge=10, le=MAX_WINDOW_LOG)]
    dictionary: Dictionary | None = None
    files: Annotated[tuple[PackedFile, ...], Field(max_length=MAX_FILES)]

    @property
    def size(self) -> int:
        """Bytes of the original files."""
        return sum(item.size for item in self.files)

    def text(self) -> str:
        """The file's content."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def names(self) -> set[str]:
        """Every file that the packed artifact must hold."""
        return {NAME, *(item.place for item in self.files)} | ({DICTIONARY} if self.dictionary else set())


def place(path: str, method: str) -> str:
    """Two folders, so that ``a.zst`` stored and ``a`` compressed do not meet."""
    return f"zstd/{path}.zst" if method == "zstd" else f"stored/{path}"


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``pack.json``.

    RefusedInput: E-NOT-PACKED (none there), E-PACK-FORM (another form), E-PACK-PATH (a path that leads out of the
    folder, or two that are one), E-PACK-DIGEST (its files do not have the digest that it names).
    """
    try:
        data = files.read_regular(folder / NAME, _MOST + 1)
    except OSError as error:
        what = f"the folder holds no {NAME}, so it is not a packed artifact"
        raise RefusedInput("E-NOT-PACKED", what, hint="a target of the kind pack makes one") from error
    if len(data) > _MOST:
        raise _form(f"it is larger than {_MOST:,} bytes")
    try:
        read_json(data)  # strictly: two readers must see one thing
        found = Manifest.model_validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _form(f"{where or 'it'}: {first['msg'].lower()}") from error
    except (ValueError, RecursionError) as error:
        raise _form(str(error)) from error
    _check_paths([item.path for item in found.files])
    if sha256_bytes(tree_preimage((item.path, item.sha256) for item in found.files)) != found.artifact:
        what = f"the files that {NAME} lists do not have the digest that it names"
        raise RefusedInput("E-PACK-DIGEST", what, facts=[f"artifact {found.artifact}"], hint=AGAIN)
    return found


def _form(why: str) -> RefusedInput:
    return RefusedInput("E-PACK-FORM", f"{NAME} is damaged or of another form: {why}", hint=AGAIN)


def _check_paths(paths: Sequence[str]) -> None:
    for path in paths:
        check_name(path)
        parts = path.split("/")
        if any(part in ("", ".", "..") for part in parts) or len(parts) > MAX_DEPTH:
            raise _path(f"a path that leads elsewhere: {path!r}")
    if len(set(paths)) < len(paths):
        raise _path("a path twice")
    names = set(paths)
    if folder := next((top for path in paths for top in _above(path) if top in names), None):
        raise _path(f"{folder!r} as a file and as a folder")
    if found := twins({*names, *(top for path in paths for top in _above(path))}):
        raise _path(f"{found[0]!r} and {found[1]!r}, which are one name on some file systems")


def _above(path: str) -> Iterator[str]:
    """The folders that a path lies in."""
    parts = path.split("/")
    return ("/".join(parts[:length]) for length in range(1, len(parts)))


def _path(what: str) -> RefusedInput:
    return RefusedInput("E-PACK-PATH", f"{NAME} holds {what}", hint="ingot writes no such file: do not trust this one")
