"""File systems of a few megabytes in a file, for real power cuts and disks that are really full; skips without root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


def made(image: Path, megabytes: int) -> Path:
    """A file that holds an empty ext4 without blocks reserved for root."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("needs mkfs.ext4")
    with image.open("wb") as file:
        os.truncate(file.fileno(), megabytes << 20)
    _run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-J", "size=4", str(image))
    return image


@contextmanager
def mounted(image: Path, place: Path, options: str = "") -> Iterator[Path]:
    """The file system in a file at ``place``; skips where it may not be mounted."""
    place.mkdir(exist_ok=True)
    chosen = ",".join(filter(None, ("loop", options)))
    try:
        done = subprocess.run(
            ["mount", "-t", "ext4", "-o", chosen, str(image), str(place)], capture_output=True, text=True, check=False
        )
    except OSError as error:
        pytest.skip(f"needs mount: {error}")
    if done.returncode != 0:
        pytest.skip(f"may not mount a file as a disk here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        _run("umount", "-l", str(place))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


@contextmanager
def full(place: Path, room: int = 0) -> Iterator[None]:
    """The file system at ``place`` is full but for ``room`` kilobytes, to the last block where that is 0."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        free = os.statvfs(place)
        left = max(0, free.f_bavail * free.f_frsize - room * 1024)
        with suppress(OSError):
            while left > 0 or room == 0:
                left -= file.write(bytes(min(1 << 20, left) if left > 0 else 1024))
        os.fsync(file.fileno())
    try:
        yield
    finally:
        filler.unlink()
