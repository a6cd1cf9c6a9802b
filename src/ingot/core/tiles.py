"""A log as static files that any C2SP ``tlog-tiles`` client reads: checkpoint, tiles of hashes, bundles of entries.

``tile/<L>/<N>[.p/<W>]`` holds up to 256 hashes of subtrees of 256^L leaves, ``tile/entries/<N>[.p/<W>]`` the entries of
the same leaves, each after its length in two bytes (big endian). Format: c2sp.org/tlog-tiles.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ingot.core.disk import make_dirs_durable, sweep_asides, write_file_atomic
from ingot.core.files import read_regular
from ingot.core.log import Log
from ingot.core.merkle import leaf_hash, root_of
from ingot.core.proof import signed_lines
from ingot.errors import RegistryDamaged

_WIDTH = 256
#: A tile of hashes is at most 8 KiB; a bundle of entries at most 256 of them, each at most 64 KiB with its length.
_MOST = _WIDTH * (1 << 16)


@dataclass(frozen=True)
class Exported:
    """What an export holds, and how many of its files were written anew."""

    size: int
    files: int
    written: int


def export(log: Log, folder: Path) -> Exported:
    """Write a log as static files below ``folder``; what is there already and equal is left.

    The checkpoint comes last: whoever reads it finds everything that it signs, after a power cut too. Earlier partial
    tiles stay, since somebody may hold the checkpoint that needs them. Whoever calls this sees to it that no two write
    to one folder at once. RegistryDamaged: the log does not verify, or a file that never
    changes has other content there (E-TILE: another log was exported to this folder, or it was changed).
    """
    lines, note = signed_lines(log)
    make_dirs_durable(folder)
    for each, _folders, _names in os.walk(folder):
        # What a killed export left.
        sweep_asides(Path(each))
    files = written = 0
    for name, data in tiles(lines):
        files += 1
        written += _put(folder / name, data)
    write_file_atomic(folder / "checkpoint", note)
    return Exported(len(lines), files, written)


def tiles(lines: Sequence[bytes]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each tile and bundle of a log of these entries, the entries first."""
    for at in range(0, len(lines), _WIDTH):
        part = lines[at : at + _WIDTH]
        yield f"tile/entries/{_name(at // _WIDTH, len(part))}", b"".join(_framed(line) for line in part)
    hashes, level = [leaf_hash(line) for line in lines], 0
    while hashes:
        for at in range(0, len(hashes), _WIDTH):
            part = hashes[at : at + _WIDTH]
            yield f"tile/{level}/{_name(at // _WIDTH, len(part))}", b"".join(part)
        whole = len(hashes) // _WIDTH
        hashes = [root_of(hashes[number * _WIDTH : (number + 1) * _WIDTH]) for number in range(whole)]
        level += 1


def _name(number: int, width: int) -> str:
    """``x001/x234/067`` for tile 1,234,067, and ``.p/W`` after it where it is not full."""
    digits = f"{number:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    path = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
    return path if width == _WIDTH else f"{path}.p/{width}"


def _framed(line: bytes) -> bytes:
    return len(line).to_bytes(2, "big") + line


def _put(path: Path, data: bytes) -> int:
    """1 where the file was not there yet; it never changes, so another content is another log or damage."""
    try:
        known = read_regular(path, _MOST)
    except FileNotFoundError:
        make_dirs_durable(path.parent)
        write_file_atomic(path, data)
        return 1
    if known != data:
        what = f"{path} is there with other content: the folder holds another log, or was changed"
        raise RegistryDamaged("E-TILE", what, hint="export to an empty folder")
    return 0
