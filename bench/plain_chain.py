"""The eight stages of ``build_overhead``'s chain, called one after the other in one process, without ingot's machinery.

    python bench/plain_chain.py PROJECT OUT

No store, no keys, no hashing, no child processes: what the same library calls cost by themselves.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from ingot.core.spec_cache import load_graphs
from ingot.core.stage import Given, load_kind


class Quiet:
    """A progress that shows nothing."""

    def __call__(self, done: float, total: float | None, unit: str, **live: float | str) -> None:
        """Show nothing."""

    def phase(self, name: str) -> None:
        """Show nothing."""


def main() -> None:
    """Run every stage of the project's spec in order."""
    project, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    (graph,) = load_graphs(project, [project / "specs" / "chain.yaml"], out / "cache")
    folders: dict[str, Path] = {}
    for node in graph.nodes:
        folder, scratch = out / node.name, out / f"{node.name}-scratch"
        folder.mkdir(parents=True)
        scratch.mkdir()
        inputs = {role: tuple(folders[name] for name in names) for role, names in node.inputs.items()}
        stage = load_kind(node.kind).model_validate_json(json.dumps(node.params), strict=True)
        given = Given(
            inputs=inputs,
            digests={role: tuple("0" * 64 for _ in paths) for role, paths in inputs.items()},
            scratch=scratch,
            sources=tuple(project / str(source["path"]) for _pointer, source, _base in node.sources),
            seed=node.seed,
            threads=len(os.sched_getaffinity(0)),
        )
        stage.run(given, folder, Quiet())
        folders[node.name] = folder


if __name__ == "__main__":
    main()
