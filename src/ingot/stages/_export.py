"""What all kinds that export share: how an export is proven equal to its source and how its speed is measured.

A kind gives its fields ``parity`` and its roles ``DATA``, lists ``PARITY_MEASURES`` among its measures, and in ``run``
hands what it saved to ``kit.parity`` (its ``prove`` module shows how). For the speed it has a field ``benchmark``,
null by default, lists ``RUNTIME_MEASURES`` and hands what it built to ``with_speed``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from ingot.core.stage import Done, Frozen, Given, Measure, Progress, Role

if TYPE_CHECKING:
    from ingot.kit.parity.golden import Golden
    from ingot.kit.parity.limits import Limits
    from ingot.kit.parity.reference import Reference
    from ingot.kit.runtime.figures import Measured

#: The role that golden texts come from: the held-out rows of a data set.
DATA = Role(accepts=("dataset",), optional=True)

PARITY_MEASURES = (
    Measure("parity_cosine", "1"),
    Measure("parity_max_difference", "1"),
    Measure("parity_top1_agreement", "1"),
    Measure("parity_kl", "nats/token"),
    Measure("parity_tokens", "tokens"),
    Measure("parity_texts", "1"),
)
#: Of exports whose weights are stored in fewer bits than they had: against the weights that are stored.
EXECUTION_MEASURES = (
    Measure("execution_cosine", "1", "with quantized weights"),
    Measure("execution_max_difference", "1", "as execution_cosine"),
    Measure("execution_top1_agreement", "1", "as execution_cosine"),
    Measure("execution_kl", "nats/token", "as execution_cosine"),
)
TOKENIZER_MEASURE = Measure("tokenizer_texts", "1")

#: The metrics of a benchmark, of the export and (BASELINE) of what was measured beside it.
RUNTIME_MEASURES = tuple(
    Measure(f"{prefix}{name}", unit, when)
    for prefix, when in (("", "with `benchmark`"), ("BASELINE_", "for each of `benchmark.baselines`"))
    for name, unit in (
        ("first_token_s", "s"),
        ("token_p50_s", "s"),
        ("token_p95_s", "s"),
        ("token_p99_s", "s"),
        ("prompt_tokens_per_second", "tokens/s"),
        ("generation_tokens_per_second", "tokens/s"),
        ("run_memory", "B"),
    )
)

_NAMES = frozenset(it.metric for it in RUNTIME_MEASURES)
_PARITY = frozenset(it.metric for it in (*PARITY_MEASURES, TOKENIZER_MEASURE))
_EXECUTION = frozenset(it.metric for it in EXECUTION_MEASURES)


def measured_by(names: Sequence[str], benchmark: Benchmark | None, *, proven: bool, quantized: bool) -> tuple[str, ...]:
    """What an export measures of all ``names`` that its kind can: by whether it is ``proven`` equal to its source, and
    stored in fewer bits; of a benchmark its own figures and those of each baseline."""
    absent = (frozenset() if proven else _PARITY) | (frozenset() if proven and quantized else _EXECUTION) | _NAMES
    own = [name for name in RUNTIME_MEASURES if not name.metric.startswith("BASELINE_")]
    prefixes = [] if benchmark is None else ["", *(f"{baseline}_" for baseline in benchmark.baselines)]
    timed = [f"{prefix}{measure.metric}" for prefix in prefixes for measure in own]
    return (*(name for name in names if name not in absent), *timed)


Share = Annotated[float, Field(ge=0, le=1)]


class Parity(Frozen):
    """On how many texts an export is compared with its source, and how far apart the two may be."""

    texts: int = Field(default=4, ge=1, le=32, description="golden texts, from one token to max_length")
    max_length: int = Field(default=128, ge=1, le=32768, description="tokens of the longest golden text")
    cosine: Share | None = Field(
        default=None, description="least cosine similarity of any position's logits; null: by precision"
    )
    max_difference: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="largest difference of a logit; null: unbounded"
    )
    top1: Share | None = Field(
        default=None,
        description="least share of positions with the same likeliest token; null: as cosine",
    )
    kl: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="mean KL(source‖export) in nats a token; null: as cosine"
    )

    def limits(self, precision: str) -> Limits:
        """The limits of a precision (a name of ``kit.parity.limits``), with those that are given in their place."""
        from ingot.kit.parity.limits import LIMITS

        given = {"cosine": self.cosine, "top1": self.top1, "kl": self.kl, "max_difference": self.max_difference}
        return LIMITS[precision].but(**given)

    def of_source(
        self, given: Given, longest: int, progress: Progress, shapes: tuple[int, ...] = ()
    ) -> tuple[Golden, Reference]:
        """Golden texts of at most ``longest`` tokens, and what the model computes on them; it is then let go.

        ``shapes`` are lengths that each get a text. RefusedInput: E-DATASET-EMPTY, E-TOKENIZER; StageFailed: E-PARITY.
        """
        from ingot.kit.hf import load_tokenizer
        from ingot.kit.parity.golden import Choice, golden
        from ingot.kit.parity.reference import SourceModel, record

        progress.phase("run the source")
        folder = given.one("model")
        choice = Choice(self.texts, min(self.max_length, longest), shapes)
        texts = golden(load_tokenizer(folder), given.maybe("data"), choice)
        return texts, record(lambda: SourceModel(folder, threads=given.threads), texts, given.scratch / "parity")


Baseline = Literal["transformers", "torchscript", "torch_export", "onnxruntime", "llama_cpp"]


def _each_once(values: tuple[Baseline, ...]) -> tuple[Baseline, ...]:
    if len(set(values)) != len(values):
        raise ValueError("names a baseline twice")
    return values


class Benchmark(Frozen):
    """How fast an export answers and what memory it takes, side by side with what else runs the same model."""

    prompt_tokens: int = Field(default=128, ge=2, le=131072, description="length of the prompt that is read at once")
    generation_tokens: int = Field(default=32, ge=1, le=131072, description="tokens read one by one after the prompt")
    repeats: int = Field(default=5, ge=1, le=1000, description="runs that are counted")
    warmup: int = Field(default=1, ge=0, le=100, description="runs before them that are not")
    baselines: Annotated[tuple[Baseline, ...], AfterValidator(_each_once)] = Field(
        default=("transformers", "torchscript", "torch_export"),
        description="what else runs the model that was exported, in float32, in the same minutes",
    )

    def refuse_long(self, model: Path) -> None:
        """RefusedInput (E-BENCHMARK-CONTEXT), before anything is built, where a run is longer than the context."""
        from ingot.kit.runtime.measure import refuse_long

        refuse_long(model, self.prompt_tokens + self.generation_tokens)

    def measure(self, exports: Sequence[Path | None], model: Path, given: Given, progress: Progress) -> list[Measured]:
        """What was measured of each export of ``model``, in their order; None: one that nothing here can run.

        RefusedInput: E-BENCHMARK-CONTEXT; StageFailed: E-BENCHMARK.
        """
        from ingot.kit.runtime.measure import Bench, Workload, measure

        return measure(Bench(Workload(**self.model_dump()), model, given.scratch, given.threads), exports, progress)


def held(
    benchmarks: Sequence[Benchmark | None], given: Given, progress: Progress
) -> tuple[Given, dict[str, Callable[[], Done]]]:
    """For a kind that streams: a virtual model that others are to run, too, written to scratch; and what flowed by.

    Others run it for the role ``data`` and for a benchmark. RefusedInput (E-BENCHMARK-CONTEXT) where that reads more
    than the model can.
    """
    from ingot.kit.stream.inputs import written

    asked = [benchmark for benchmark in benchmarks if benchmark is not None]
    if not asked and given.maybe("data") is None:
        return given, {}
    given, flowed = written(given, "model", progress)
    for benchmark in asked:
        benchmark.refuse_long(given.one("model"))
    return given, flowed


def with_speed(
    built: Sequence[tuple[Benchmark | None, Path | None, Done]], model: Path, given: Given, progress: Progress
) -> list[Done]:
    """What was built, each with its speed where its benchmark asks for it; those that ask for the same in one run.

    ``built`` holds the benchmark, the export's folder (None: nothing here can run it) and what was measured so far;
    ``model`` is the folder that all were made of.
    """
    found = [done for _, _, done in built]
    for benchmark in dict.fromkeys(benchmark for benchmark, _, _ in built if benchmark is not None):
        places = [index for index, (asked, _, _) in enumerate(built) if asked == benchmark]
        measured = benchmark.measure([built[index][1] for index in places], model, given, progress)
        for index, speed in zip(places, measured, strict=True):
            metrics, notes = found[index].metrics, found[index].notes
            found[index] = replace(
                found[index], metrics={**metrics, **speed.metrics}, notes={**notes, "runtime": speed.notes}
            )
    return found
