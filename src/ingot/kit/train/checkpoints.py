"""Checkpoints on disk: one folder each, whole or ignored.

``step-00000012/`` holds ``tensors.safetensors`` and ``state.json``: ``{"sha256": of the canonical text of state,
"state": {"about", "body", "tensors": size and xxh3-128 of the file}}``. A folder is written aside, synced and renamed,
so a kill leaves the one before. It is taken up only where ``about`` is exactly what the attempt says of itself (the
target's key among it), both hashes agree and the format is known; else the next older one is. The last two are kept.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ingot.core import disk
from ingot.core.digest import hash_file, sha256_bytes
from ingot.errors import DiskFailed, RefusedInput
from ingot.kit import hf
from ingot.kit.safetensors_check import check_file

FORMAT = 1
_KEPT = 2
_NAME = re.compile(r"step-(\d{8})")
_TENSORS, _STATE, _ASIDE = "tensors.safetensors", "state.json", ".writing"


@dataclass(frozen=True)
class Checkpoint:
    """Plain data and tensors, as they were after ``step`` steps."""

    step: int
    body: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


class Checkpoints:
    """The checkpoints of one training in a folder; ``about`` is plain data that says whose they are.

    With ``folder`` None nothing is kept and nothing found.
    """

    def __init__(self, folder: Path | None, about: Mapping[str, Any]) -> None:
        self._folder = folder
        self._about = json.loads(_text({**about, "format": FORMAT}))

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole and ours."""
        for path in self._found():
            found = self._read(path)
            if found is not None:
                return found
        return None

    def save(self, found: Checkpoint) -> None:
        """Write one; when this returns it survives a power cut. Older ones but the last are dropped."""
        if self._folder is None:
            return
        disk.make_dirs(self._folder, 0o700)
        aside, target = self._folder / _ASIDE, self._folder / f"step-{found.step:08d}"
        for left in (aside, target):
            shutil.rmtree(left, ignore_errors=True)
        with disk.explained(aside):
            aside.mkdir()
            hf.write_safetensors(aside / _TENSORS, dict(found.tensors))
        size, _, xxh3 = hash_file(aside / _TENSORS)
        state = {"about": self._about, "body": found.body, "tensors": {"size": size, "xxh3_128": xxh3}}
        with disk.explained(aside):
            (aside / _STATE).write_text(_text({"sha256": _digest(state), "state": state}), encoding="utf-8")
        for path in (aside / _TENSORS, aside / _STATE):
            disk.fsync_file(path)
        disk.fsync_dir(aside)
        disk.rename_durable(aside, target)
        for path in list(self._found())[_KEPT:]:
            shutil.rmtree(path, ignore_errors=True)

    def _found(self) -> Iterator[Path]:
        """The folders of checkpoints, the newest first."""
        if self._folder is None or not self._folder.is_dir():
            return iter(())
        return iter(sorted((path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True))

    def _read(self, path: Path) -> Checkpoint | None:
        """A checkpoint; None when it is damaged, partial, or somebody else's."""
        try:
            stored = json.loads((path / _STATE).read_text(encoding="utf-8"))
            state = stored["state"]
            if stored["sha256"] != _digest(state) or state["about"] != self._about:
                return None
            size, _, xxh3 = hash_file(path / _TENSORS)
            if {"size": size, "xxh3_128": xxh3} != state["tensors"]:
                return None
            check_file(path / _TENSORS)
            with safe_open(path / _TENSORS, framework="pt") as file:
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, ValueError, KeyError, TypeError, DiskFailed, RefusedInput):
            return None
        return Checkpoint(int(path.name.removeprefix("step-")), state["body"], tensors)


def _text(value: object) -> str:
    """JSON of one form; its floats are read back exactly."""
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))


def _digest(state: object) -> str:
    return sha256_bytes(_text(state).encode())
