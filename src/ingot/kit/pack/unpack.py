"""Unpack: every byte is compared with what ``pack.json`` says of it, aside, and takes its name only when all is right.

Order: paths and the digest of the whole (``manifest``), the list of files, the room on the disk, the header of each
frame, then its content, of which no more is written than its size says; then both hashes. The digest of the original
follows from the hashes of its files, so when each of them is right, so is the whole.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ingot.core import disk, files, staging
from ingot.core.digest import sha256_bytes, walk_files
from ingot.errors import DiskFailed, RefusedInput, UsageError
from ingot.kit.pack import AGAIN
from ingot.kit.pack.frames import Output, Source, check_header, contents, decompressor
from ingot.kit.pack.manifest import DICTIONARY, Manifest, PackedFile, read_manifest


def unpack(folder: Path, target: Path) -> Manifest:
    """Restore the files of a packed artifact as ``target``.

    UsageError (E-UNPACK-TARGET): something is there, or its parent is not. RefusedInput: E-NOT-PACKED, E-PACK-FORM,
    E-PACK-PATH, E-PACK-DIGEST, E-PACK-FILES, E-PACK-SIZE, E-PACK-WINDOW, E-PACK-DAMAGED. DiskFailed: E-SPACE and
    others. Whatever is raised, nothing is left.
    """
    _check_target(target)
    manifest = read_manifest(folder)
    _check_files(folder, manifest)
    _check_room(target.parent, manifest.size)
    reader = _Reader(folder, manifest)
    with _aside(target) as place:
        for item in manifest.files:
            _restore(reader, item, place)
    return manifest


class _Reader:
    """The packed side: opens what it needs to read a file."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.window_log = manifest.window_log
        self._plain = decompressor(self.window_log, None)
        self._trained = self._with_dictionary(manifest)

    def _with_dictionary(self, manifest: Manifest) -> Any | None:
        if manifest.dictionary is None:
            return None
        data = files.read_regular(self.folder / DICTIONARY, manifest.dictionary.size + 1)
        if len(data) != manifest.dictionary.size or sha256_bytes(data) != manifest.dictionary.sha256:
            raise _damaged(DICTIONARY, "is not the dictionary that it was")
        return decompressor(self.window_log, data)

    def opened(self, item: PackedFile) -> Any | None:
        """The decompressor of a file; None for one that is stored."""
        if item.method == "stored":
            return None
        found = self._trained if item.dictionary else self._plain
        if found is None:
            raise RefusedInput("E-PACK-FORM", f"{item.path!r} needs a dictionary, and pack.json names none", hint=AGAIN)
        return found


def _restore(reader: _Reader, item: PackedFile, place: Path) -> None:
    """Write one file and compare it."""
    packed, opened = reader.folder / item.place, reader.opened(item)
    if opened is not None:
        check_header(packed, item.size, reader.window_log)
    with disk.explained(packed), Source(packed) as source, Output(place, item.path) as output:
        for piece in contents(source, item.size, opened):
            if output.size + len(piece) > item.size:
                what = f"{item.place} holds more than the {item.size:,} bytes that pack.json says"
                raise RefusedInput("E-PACK-SIZE", what, hint=AGAIN)
            output.write(piece)
        found, packed_sha = output.record(), source.rest()
    if (source.size, packed_sha) != (item.packed_size, item.packed_sha256):
        raise _damaged(item.place, f"is not what was packed (SHA-256 {packed_sha[:12]}, {source.size:,} bytes)")
    if (found.size, found.sha256) != (item.size, item.sha256):
        raise _damaged(item.path, f"does not come back as it was ({found.size:,} bytes, SHA-256 {found.sha256[:12]})")
    disk.fsync_file(place / item.path)


def _damaged(name: str, what: str) -> RefusedInput:
    return RefusedInput("E-PACK-DAMAGED", f"{name} {what}", hint=AGAIN)


def _check_files(folder: Path, manifest: Manifest) -> None:
    """The folder holds what ``pack.json`` says, and nothing else (E-PACK-FILES)."""
    found, wanted = set(walk_files(folder)), manifest.names()
    if found == wanted:
        return
    facts = [f"missing: {name}" for name in sorted(wanted - found)][:8]
    facts += [f"not in pack.json: {name}" for name in sorted(found - wanted)][:8]
    raise RefusedInput(
        "E-PACK-FILES", "the folder does not hold the files that pack.json lists", facts=facts, hint=AGAIN
    )


def _check_target(target: Path) -> None:
    if os.path.lexists(target) and (target.is_symlink() or not target.is_dir() or any(target.iterdir())):
        raise UsageError("E-UNPACK-TARGET", f"{target} is there already", hint="name a new folder, or an empty one")
    if not target.parent.is_dir():
        raise UsageError("E-UNPACK-TARGET", f"the folder of {target} is not there", hint=f"mkdir -p {target.parent}")


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        what = f"the files take {size:,} bytes, and {free:,} are free"
        raise DiskFailed("E-SPACE", what, hint="free some space, or unpack to another disk")


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A folder beside the target that becomes it at the end, durable; removed when anything is raised."""
    place = target.with_name(f".{target.name}.unpack-{secrets.token_hex(4)}")
    with disk.explained(place):
        place.mkdir()
    try:
        yield place
        for folder, _, _ in os.walk(place, topdown=False):
            disk.fsync_dir(Path(folder))
        disk.rename_durable(place, target)
    finally:
        staging.remove_tree(place)
