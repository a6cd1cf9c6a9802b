"""Exports and their baselines, measured side by side in one run.

Each gets a process of its own, and their turns alternate (A B C A B C …): a machine that becomes warm or busy treats
all alike. All read the same prompt and then the same tokens, whatever they would have said themselves, on as many
threads. The archives of baselines lie in scratch and go with it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ingot.core.stage import Metric, Progress
from ingot.errors import RefusedInput
from ingot.kit.runtime.contestants import Contestant, Entry, Watch
from ingot.kit.runtime.figures import Measured, figures
from ingot.kit.runtime.hardware import hardware
from ingot.kit.runtime.opening import find
from ingot.kit.runtime.timing import Run

#: Baselines by name that run an archive, which is made first.
ARCHIVED = ("torchscript", "torch_export", "onnxruntime", "llama_cpp")
EXPORT = "export"


@dataclass(frozen=True)
class Workload:
    """What every runtime does, and how often; ``baselines`` are measured beside the exports."""

    prompt_tokens: int
    generation_tokens: int
    repeats: int
    warmup: int
    baselines: tuple[str, ...]


@dataclass(frozen=True)
class Bench:
    """Where the work is done: ``model`` is the folder that the exports were made of."""

    workload: Workload
    model: Path
    scratch: Path
    threads: int

    @property
    def context(self) -> int:
        """The tokens that a run reads."""
        return self.workload.prompt_tokens + self.workload.generation_tokens


@dataclass
class Racer:
    """A process with what it said and its times."""

    process: Contestant
    words: str = ""
    runs: list[Run] = field(default_factory=list)


def measure(bench: Bench, exports: Sequence[Path | None], progress: Progress) -> list[Measured]:
    """What was measured of each export, with the baselines' figures beside it; of one that cannot run here (None, or
    Core ML elsewhere than on a Mac: the reference interpreter's speed says nothing) these alone.

    RefusedInput (E-BENCHMARK-CONTEXT) where a run is longer than the model's context; StageFailed (E-BENCHMARK) where
    a runtime fails or crashes.
    """
    refuse_long(bench.model, bench.context)
    ids = token_ids(bench.model, bench.context)
    machine = hardware()
    with ExitStack() as stack:
        watch = Watch()
        stack.callback(watch.close)
        racers: dict[str, Racer] = {}
        for entry in _entries(bench, exports, progress):
            progress.phase(f"load {entry.name}")
            process = stack.enter_context(Contestant(entry.name, bench.scratch, bench.threads))
            watch.add(process.pid)
            racers[entry.name] = Racer(process, str(process.open(entry)["words"]))
        race(bench.workload, ids, racers, progress)
        found = {name: _figures(bench, racer, watch) for name, racer in racers.items()}
    baselines = {f"{name}_{key}": metric for name in bench.workload.baselines for key, metric in found[name].items()}
    notes = _notes(bench, machine, racers)
    return [
        Measured({**found.get(name, {}), **baselines}, {**notes, **_own(racers.get(name))})
        for name in map(_name, range(len(exports)))
    ]


def _name(index: int) -> str:
    return EXPORT if index == 0 else f"{EXPORT} {index + 1}"


def _entries(bench: Bench, exports: Sequence[Path | None], progress: Progress) -> Iterator[Entry]:
    """The exports, then the baselines, whose archives are made here."""
    context, threads = bench.context, bench.threads
    for index, folder in enumerate(exports):
        if folder is not None and (find(folder)[0] != "coreml" or sys.platform == "darwin"):
            yield Entry(_name(index), EXPORT, folder, context, threads)
    for name in bench.workload.baselines:
        source = Entry(name, name, bench.model, context, threads)
        if name not in ARCHIVED:
            yield source
            continue
        progress.phase(f"make {name}")
        archive = bench.scratch / f"benchmark.{name}"
        with Contestant(name, bench.scratch, threads) as maker:
            maker.make(source, archive)
        yield Entry(name, name, archive, context, threads)


def race(workload: Workload, ids: Sequence[int], racers: Mapping[str, Racer], progress: Progress) -> None:
    """All in turn, again and again; the first ``warmup`` rounds are not counted."""
    prompt, tokens = ids[: workload.prompt_tokens], ids[workload.prompt_tokens :]
    progress.phase("measure speed")
    rounds = workload.warmup + workload.repeats
    for index in range(rounds):
        for place, racer in enumerate(racers.values()):
            run = racer.process.run(prompt, tokens)
            if index >= workload.warmup:
                racer.runs.append(run)
            progress(index * len(racers) + place + 1, rounds * len(racers), "runs")


def _figures(bench: Bench, racer: Racer, watch: Watch) -> dict[str, Metric]:
    how = f"batch 1, {racer.words}, {bench.threads} thread{'s' * (bench.threads != 1)}"
    return figures(racer.runs, bench.workload.prompt_tokens, how, watch.peak(racer.process.pid))


def _notes(bench: Bench, machine: Mapping[str, object], racers: Mapping[str, Racer]) -> dict[str, object]:
    beside = {name: racers[name].words for name in bench.workload.baselines}
    return {"hardware": dict(machine), "threads": bench.threads, "order": list(racers), "baselines": beside}


def _own(racer: Racer | None) -> dict[str, object]:
    return {} if racer is None else {"runtime": racer.words}


def token_ids(model: Path, count: int) -> list[int]:
    """The ids that are read: the project's probe texts by the model's tokenizer, over and over."""
    from ingot.kit import hf
    from ingot.kit.parity.probes import PROBES

    tokenizer = hf.load_tokenizer(model)
    ids = [int(token) for text in PROBES for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    return (begin + ids * (1 + count // max(1, len(ids))))[:count]


def refuse_long(model: Path, count: int) -> None:
    """RefusedInput (E-BENCHMARK-CONTEXT) where the model's context is shorter than so many tokens."""
    from ingot.kit import hf

    context = hf.read_config(model).get("max_position_embeddings")
    if isinstance(context, int) and count > context:
        raise RefusedInput(
            "E-BENCHMARK-CONTEXT",
            f"the benchmark reads {count} tokens and the model's context is {context}",
            hint="set benchmark.prompt_tokens and generation_tokens to less",
        )
