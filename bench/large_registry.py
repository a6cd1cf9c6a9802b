"""A long history: plan, why, history, show, audit, appending and proofs on a registry of 10,000 entries.

    python bench/large_registry.py [--entries 10000] [--targets 300]

Builds the targets, then signs builds of the same targets under other parameters, as years of use would, until the log
has that many entries; then times what a user runs (medians). The first command after the log grew brings the derived
index up to date and is timed by itself; so are the appends before it. The last plan is of a change at the root of every
chain: all targets stale or waiting, each predicted. Of a record of this kind there is no peer to measure against: DVC
keeps none.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import history
from workload import doit_program, environment, make_ingot, median, timed

_COMMANDS = (
    ("doit (nothing to do)", ()),
    ("doit plan", ("plan",)),
    ("doit why T", ("why", "chains:t005")),
    ("doit show T", ("show", "chains:t005")),
    ("doit history T", ("history", "chains:t005")),
    ("doit history --json", ("history", "--json")),
)


def _grow(project: Path, entries: int) -> int:
    """Sign builds of other parameters until the log has ``entries`` entries; how many it has now."""
    from ingot import registry as public

    os.chdir(project)
    opened = public.open_log()
    receipts = [public.latest(target) for target in sorted(opened.index.latest)]
    history.sign(opened.registry, _others(receipts, entries - history.length(opened.registry)))
    return history.length(opened.registry)


def _others(receipts: Sequence[Any], count: int) -> Iterator[dict[str, Any]]:
    """Receipts like the given ones with one parameter changed; time goes on with each."""
    from ingot.core.key import key_of

    for number in range(count):
        receipt = history.like(receipts[number % len(receipts)])
        receipt["key_parts"]["params"]["env"]["RUN"] = str(number)
        receipt["key"] = key_of(receipt["key_parts"])
        yield receipt


def _appends(project: Path, repeats: int) -> Iterator[tuple[str, float]]:
    """The time of one append, durable and signed: the first of a process, which verifies the log, and a later one."""
    from ingot import registry as public
    from ingot.core.statement import build_statement

    firsts: list[float] = []
    laters: list[float] = []
    for _ in range(repeats):
        registry = public.open_log(project).registry
        receipt = public.latest(min(public.open_log(project).index.latest), project)
        for statement in [build_statement(it) for it in _others([receipt], 2)]:
            start = time.perf_counter()
            registry.append([statement])
            (firsts if len(firsts) == len(laters) else laters).append(time.perf_counter() - start)
    yield "first append of a process", statistics.median(firsts)
    yield "append", statistics.median(laters)


def main() -> None:
    """Run the benchmark and print one line a command."""
    options = history.options(__doc__)
    doit = doit_program()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = environment(folder)
        os.environ.update(env)
        project = make_ingot(folder, options.targets)
        timed([doit], project, env)
        start = time.perf_counter()
        entries = _grow(project, options.entries)
        print(f"{entries:,} entries, {options.targets} targets; signed in {time.perf_counter() - start:.1f} s")
        for title, seconds in _appends(project, options.repeats):
            print(f"{title:<32} {seconds * 1000:8.1f} ms")
        print(f"{'first plan after the log grew':<32} {timed([doit, 'plan'], project, env):8.3f} s")
        # The results of the spec as it stands are found again, and the log says so.
        found = f"doit ({options.targets} results found again)"
        print(f"{found:<32} {timed([doit], project, env):8.3f} s")
        for title, arguments in _COMMANDS:
            print(f"{title:<32} {median([doit, *arguments], project, env, options.repeats):8.3f} s")
        print(f"{'doit audit':<32} {median([doit, 'audit'], project, env, 3):8.3f} s")
        proof = project / "proof.tlog-proof"
        made = median([doit, "registry", "proof", "chains:t005", "--output", str(proof)], project, env, 3)
        print(f"{'doit registry proof T':<32} {made:8.3f} s")
        print(
            f"{'doit registry verify':<32} {median([doit, 'registry', 'verify', str(proof)], project, env, 3):8.3f} s"
        )
        tiles = timed([doit, "registry", "export", str(folder / "tiles")], project, env)
        print(f"{'doit registry export (tiles)':<32} {tiles:8.3f} s")
        (project / "specs" / "in.txt").write_text("some other text\n" * 200)
        stale = median([doit, "plan", "--json"], project, env, options.repeats)
        print(f"{'doit plan, all stale, predicted':<32} {stale:8.3f} s")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
