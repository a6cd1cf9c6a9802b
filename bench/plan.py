"""``doit plan`` beside a long history: 300 targets to build, 10,000 entries in the registry.

    python bench/plan.py [--targets 300] [--entries 10000]

Builds the chains once, appends builds like theirs, each with bytes and figures of its own, changes what every chain
begins with, and times the plan: all of it stale or waiting, everything predicted. No peer predicts, so none is timed.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ingot.core.registry import Registry, default_keys_dir, default_pins_dir
from ingot.core.statement import build_statement, receipt_of
from workload import doit_program, environment, make_ingot, median, timed

_BATCH = 500


def lengthen(project: Path, entries: int) -> None:
    """Append builds like those in the log until it has so many entries."""
    places = {"lock_file": project / "ingot.lock", "quarantine": project / "cache" / "quarantine"}
    registry = Registry(project / "registry", **places, keys=default_keys_dir(), pins=default_pins_dir())
    found = [receipt_of(entry.statement) for entry in registry.entries() if entry.type == "build"]
    missing = entries - sum(head.size for head in registry.heads().values())
    numbers = iter(range(missing))
    while batch := [_like(found[number % len(found)], number) for number in _some(numbers)]:
        registry.append(batch)


def _some(numbers: Any) -> list[int]:
    return [number for _count, number in zip(range(_BATCH), numbers, strict=False)]


def _like(receipt: dict[str, Any], number: int) -> dict[str, Any]:
    made = copy.deepcopy(receipt) | {"digest": f"{number:08x}" * 8, "key": f"{number:08x}" * 8}
    made["timings"]["wall_s"] = 1 + number % 7
    return build_statement(made)


def main() -> None:
    """Run the benchmark and print one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", type=int, default=300)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    doit = doit_program()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = environment(folder)
        os.environ.update(env)
        project = make_ingot(folder, options.targets)
        timed([doit], project, env)
        lengthen(project, options.entries)
        first = timed([doit, "plan", "--json"], project, env)
        fresh = median([doit], project, env, options.repeats)
        (project / "specs" / "in.txt").write_text("some other text\n" * 200)
        seconds = median([doit, "plan", "--json"], project, env, options.repeats)
        size = (project / "cache" / "index.json").stat().st_size
        index = json.loads((project / "cache" / "index.json").read_bytes())
    kept = sum(len(builds) for kind in index["history"]["builds"].values() for builds in kind.values())
    print(f"{options.targets} targets to build, {options.entries} entries (median of {options.repeats})")
    print(f"{'doit plan --json':<44} {seconds:8.3f} s   goal 1 s  {'met' if seconds < 1 else 'NOT met'}")
    print(f"{'doit, nothing to do':<44} {fresh:8.3f} s")
    print(f"{'the first plan, which reads the logs':<44} {first:8.3f} s")
    print(f"{'cache/index.json':<44} {size / 1e6:8.3f} MB, {kept} builds kept")


if __name__ == "__main__":
    main()
