"""Nothing to do: 300 targets up to date, ingot against DVC in one run.

    python bench/noop.py [--targets 300] [--dvc PATH]

Builds the same chains with both, then times what a user runs when nothing has changed (medians of several runs).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from workload import doit_program, environment, find_dvc, make_dvc, make_ingot, median, row, timed


def main() -> None:
    """Run the benchmark and print one line a comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dvc", help="the dvc program to compare with")
    options = parser.parse_args()
    dvc, doit = find_dvc(options.dvc), doit_program()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = environment(folder)
        ours, theirs = make_ingot(folder, options.targets), make_dvc(folder, dvc, options.targets)
        timed([doit], ours, env)
        timed([dvc, "repro", "-q"], theirs, env)
        noop = median([doit], ours, env, options.repeats)
        listing = median([doit, "list"], ours, env, options.repeats)
        plan = median([doit, "plan", "--json"], ours, env, options.repeats)
        status = median([dvc, "status"], theirs, env, options.repeats)
        repro = median([dvc, "repro", "-q"], theirs, env, options.repeats)
    print(f"{options.targets} targets, nothing to do (median of {options.repeats})")
    print(row("doit against dvc status", noop, status, 2))
    print(row("doit against dvc repro", noop, repro, 6))
    print(f"{'doit list':<44} ingot {listing:8.3f} s   goal 0.6 s  {'met' if listing < 0.6 else 'NOT met'}")
    print(f"{'doit plan --json':<44} ingot {plan:8.3f} s   goal 1 s    {'met' if plan < 1 else 'NOT met'}")


if __name__ == "__main__":
    main()
