"""``doit query`` on a long history: exports and their evaluations, 10,000 entries in one log.

    python bench/query.py [--entries 10000] [--targets 300]

Signs one target's build, then builds and measurements of exports like it, as years of use would, and times what a user
asks (medians). Of a record of this kind there is no peer to measure against.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import history
from workload import doit_program, environment, make_ingot, median, timed

_METHOD = (
    "mean over the held-out documents as the documentation says; 95 % interval: percentile bootstrap over documents"
)
_QUESTIONS = (
    ("doit query", ()),
    ("smallest where …", ("smallest where kl_divergence <= 0.9 and generation_tokens_per_second >= 20",)),
    ("doit query --all", ("--all",)),
)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _metrics(number: int) -> dict[str, Any]:
    """As many as an evaluation has, of which three differ from one to the next."""
    found = {f"metric_{at}": 1.5 for at in range(11)}
    found |= {
        "bytes": 1e6 + number % 977,
        "kl_divergence": number % 1009 / 1000,
        "generation_tokens_per_second": number % 61,
    }
    return {name: {"value": value, "unit": "1", "method": _METHOD, "n": 9} for name, value in found.items()}


def _receipts(like: Mapping[str, Any], count: int, targets: int) -> Iterator[dict[str, Any]]:
    """A build of an export, then its evaluation, and so on."""
    from ingot.core.key import key_of

    for number in range(count):
        at, export = number // 2, number % 2 == 0
        name = f"gguf@v{at % targets}"
        receipt = history.like(like)
        item = {"target": f"chains:{name}", "digest": _digest(f"{name} {at}")}
        receipt["kind"] = "gguf" if export else "evaluate"
        receipt["target"] = item["target"] if export else f"chains:report.{name}"
        receipt["digest"] = item["digest"] if export else _digest(f"evaluation {at}")
        receipt["inputs"] = (
            {} if export else {"candidate": item, "data": {"target": "chains:data", "digest": _digest("data")}}
        )
        known = {role: f"sha256:{value['digest']}" for role, value in receipt["inputs"].items()}
        params = {"n": at} if export else {"documents": 24}
        receipt["key_parts"] = {**receipt["key_parts"], "kind": receipt["kind"], "inputs": known, "params": params}
        receipt["metrics"] = _metrics(at)
        receipt["key"] = key_of(receipt["key_parts"])
        yield receipt


def _grow(project: Path, entries: int, targets: int) -> int:
    """Sign exports and evaluations until the log has ``entries`` entries; how many it has now."""
    from ingot import registry as public

    os.chdir(project)
    opened = public.open_log()
    like = public.latest(next(iter(opened.index.latest)))
    history.sign(opened.registry, _receipts(like, entries - history.length(opened.registry), targets))
    return history.length(opened.registry)


def main() -> None:
    """Run the benchmark and print one line a question."""
    options = history.options(__doc__)
    doit = doit_program()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = environment(folder)
        os.environ.update(env)
        project = make_ingot(folder, 6)
        timed([doit], project, env)
        start = time.perf_counter()
        entries = _grow(project, options.entries, options.targets)
        print(f"{entries:,} entries, {options.targets} exports; signed in {time.perf_counter() - start:.1f} s")
        print(f"{'first query after the log grew':<32} {timed([doit, 'query'], project, env):8.3f} s")
        for title, arguments in _QUESTIONS:
            print(f"{title:<32} {median([doit, 'query', *arguments], project, env, options.repeats):8.3f} s")


if __name__ == "__main__":
    main()
