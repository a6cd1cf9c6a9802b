"""Run a stage in-process as the builder would, for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ingot.core.digest import record_files, tree_digest
from ingot.core.stage import Done, Given, Metric, Stage, load_kind


class Recorder:
    """A Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.events: list[tuple[float, float | None, str, dict[str, float | str]]] = []

    def __call__(self, done: float, total: float | None, unit: str, **live: float | str) -> None:
        self.events.append((done, total, unit, live))

    def phase(self, name: str) -> None:
        self.phases.append(name)


def digest_of(folder: Path) -> str:
    """The artifact digest of a folder."""
    return tree_digest(record_files(folder))


def stage_of(kind: str, params: Mapping[str, Any]) -> Stage:
    """A kind with parameters, validated as the spec reader would."""
    return load_kind(kind).model_validate_json(json.dumps(dict(params)), strict=True)


def run_done(
    kind: str, params: Mapping[str, Any], inputs: Mapping[str, Path], tmp_path: Path, *, name: str = "out"
) -> Done:
    """As ``run_stage``, for all that the run gave back."""
    out, scratch = tmp_path / name, tmp_path / f"{name}-scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    folders = {role: (path,) for role, path in inputs.items()}
    digests = {role: (digest_of(path),) for role, path in inputs.items()}
    given = Given(folders, digests, scratch, threads=2)
    return Done.of(stage_of(kind, params).run(given, out, Recorder()))


def run_stage(
    kind: str,
    params: Mapping[str, Any],
    inputs: Mapping[str, Path | Sequence[Path]],
    tmp_path: Path,
    *,
    sources: Sequence[Path] = (),
    seed: int | None = None,
    threads: int = 2,
    name: str = "out",
) -> tuple[Path, Mapping[str, Metric]]:
    """Validate ``params`` as the spec reader would and run the kind; returns its folder and its metrics."""
    stage = load_kind(kind).model_validate_json(json.dumps(dict(params)), strict=True)
    folders = {role: (value,) if isinstance(value, Path) else tuple(value) for role, value in inputs.items()}
    out, scratch = tmp_path / name, tmp_path / f"{name}-scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    given = Given(
        inputs=folders,
        digests={role: tuple(digest_of(path) for path in paths) for role, paths in folders.items()},
        scratch=scratch,
        sources=tuple(sources),
        seed=seed,
        threads=threads,
    )
    return out, Done.of(stage.run(given, out, Recorder())).metrics
