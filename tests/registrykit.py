"""Helpers of the registry's tests: a project and a user's home in a temporary folder."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.core.registry import Registry
from ingot.core.statement import decision_statement

DIGEST = "ab" * 32


@dataclass(frozen=True)
class Project:
    """One work tree of one user: ``home`` holds the keys and the pins."""

    tree: Path
    home: Path

    @property
    def root(self) -> Path:
        return self.tree / "registry"

    @property
    def lock_file(self) -> Path:
        return self.tree / "ingot.lock"

    @property
    def quarantine(self) -> Path:
        return self.tree / "cache" / "quarantine"

    def registry(self) -> Registry:
        """A registry as a new process would open it."""
        return Registry(
            self.root,
            lock_file=self.lock_file,
            quarantine=self.quarantine,
            keys=self.home / "config" / "keys",
            pins=self.home / "state" / "pins",
        )

    def folder(self) -> Path:
        """The folder of the only log."""
        (folder,) = self.root.iterdir()
        return folder

    def log(self) -> Path:
        return self.folder() / "log.jsonl"

    def checkpoint(self) -> Path:
        return self.folder() / "checkpoint"


def project(tmp_path: Path, name: str = "project", user: str = "user") -> Project:
    made = Project(tmp_path / name, tmp_path / f"home-of-{user}")
    made.tree.mkdir(parents=True, exist_ok=True)
    made.home.mkdir(exist_ok=True)
    return made


def selected(number: int, time: str | None = None) -> dict[str, Any]:
    """A small entry that can be told from others by its number."""
    return decision_statement("selected", {"target": "demo:gguf", "digest": DIGEST, "number": number}, time=time)


def numbers(registry: Registry) -> list[int]:
    """The numbers of the entries made by ``selected``, in the order of ``entries()``."""
    return [entry.statement["predicate"]["number"] for entry in registry.entries() if entry.type == "selected"]


def codes(registry: Registry) -> set[str]:
    """The codes that ``check`` reports."""
    return {problem["code"] for problem in registry.check()}


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def receipt(**changes: Any) -> dict[str, Any]:
    """A receipt with every field."""
    made: dict[str, Any] = {
        "type": "build",
        "target": "demo:gguf@Q4_0",
        "spec": "demo",
        "spec_digest": "11" * 32,
        "kind": "gguf",
        "revision": 1,
        "key": "22" * 32,
        "key_parts": {"format": 1, "kind": "gguf", "params": {"type": "Q4_0"}, "inputs": {"model": "sha256:" + DIGEST}},
        "reproducibility": "deterministic",
        "digest": "33" * 32,
        "inputs": {
            "model": {"target": "demo:merged", "digest": DIGEST},
            "candidates": [{"target": "demo:a", "digest": DIGEST}, {"target": "demo:b", "digest": "44" * 32}],
            "evaluations": [],
        },
        "files": [{"path": "model.gguf", "size": 7, "sha256": "55" * 32, "xxh3_128": "66" * 16}],
        "metrics": {"size": {"value": 7, "unit": "B", "method": "sum of file sizes"}},
        "environment": {"python": "3.11.7", "threads": 2, "network": "isolated", "ingot": "0.1.0"},
        "timings": {
            "started": "2026-11-20T10:00:00.000000Z",
            "finished": "2026-11-20T10:00:01.500000Z",
            "wall_s": 1.5,
            "cpu_s": 1.25,
            "peak_anon_bytes": 1_000_000,
            "peak_rss_bytes": 2_000_000,
        },
        "git": {"commit": "77" * 20, "clean": True},
    }
    return json.loads(json.dumps(made | changes))  # type: ignore[no-any-return]


def append_many(at: Project, first: int, count: int) -> None:
    """Append numbered entries one by one: what each of several processes runs."""
    registry = at.registry()
    for number in range(first, first + count):
        registry.append([selected(number)])
