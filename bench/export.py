"""What exports compute, how fast, how large, and what making them takes: one run, side by side with their peers.

    python bench/export.py                 # a student of 0.3 M parameters and SmolLM2-135M
    python bench/export.py --quick         # the student alone, trained for a moment: minutes
    python bench/export.py --folder KEEP   # in a folder that stays: what is built there is not built again

The exports are targets of a spec that this writes. Parity is their own proof, on held-out documents; quality is one
report's, with intervals; memory is that of the stage. Then transformers, TorchScript, torch.export, ONNX Runtime and
llama.cpp are timed in one race (``ingot.kit.runtime``): a process each, in turn, with the same prompt, the same tokens
and as many threads.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workload import REPO, SMOLLM2, doit_program, environment, told

_STUDENT = """\
  tokens: {{kind: tokenizer, from: {{data: dataset}}, vocab_size: 512}}
  base:
    kind: student
    from: {{data: dataset, tokenizer: tokens}}
    preset: 0.3m
    steps: {steps}
    batch_size: 32
    learning_rate: 5e-3
    max_length: 256
    device: cpu
"""
_TEXTS = """\
  dataset:
    kind: dataset
    sources: [{python_stdlib: docstrings}]
    dedup: {threshold: 0.8}
    split: {eval: 0.1}
"""
#: How each model is made, by the name of its spec.
MODELS = {"student": _STUDENT, "smollm2": SMOLLM2.replace("{", "{{").replace("}", "}}")}
#: Each export's kind and parameters.
EXPORTS: Mapping[str, str] = {
    "onnx-fp32": "kind: onnx",
    "onnx-int8": "kind: onnx, quantization: int8",
    "onnx-int8-dynamic": "kind: onnx, quantization: int8_dynamic",
    "onnx-int4": "kind: onnx, quantization: int4",
    "gguf-f16": "kind: gguf, type: F16",
    "gguf-q8": "kind: gguf, type: Q8_0",
    "coreml-fp32": "kind: coreml, weights: float32, compute_precision: float32, sequence_lengths: [128, 256]",
    "coreml-fp16": "kind: coreml, weights: float16, sequence_lengths: [128, 256]",
    "coreml-int8": "kind: coreml, weights: int8, sequence_lengths: [128, 256]",
}
#: What is timed: the exports that have a runtime here, and what runs the model itself.
TIMED = ("onnx-fp32", "onnx-int8", "onnx-int8-dynamic", "onnx-int4", "gguf-f16", "gguf-q8")
#: Bytes of a model from which on memory is held against them.
LARGE = 100_000_000
BASELINES = ("transformers", "torchscript", "torch_export")


@dataclass(frozen=True)
class Effort:
    """How much is trained and measured."""

    steps: int = 400
    documents: int = 24
    prompt: int = 128
    generated: int = 32
    repeats: int = 7


QUICK = Effort(steps=20, documents=4, prompt=64, generated=8, repeats=2)


def spec(name: str, effort: Effort) -> str:
    """The spec of one model and its exports."""
    lines = [f"format: 1\nname: {name}\nseed: 7\ntargets:\n", _TEXTS, MODELS[name].format(steps=effort.steps)]
    lines += [f"  {each}: {{{params}, from: {{model: base, data: dataset}}}}\n" for each, params in EXPORTS.items()]
    lines.append(f"  report:\n    kind: report\n    documents: {effort.documents}\n    repeats: 1\n")
    lines.append("    prompt_tokens: 64\n    generation_tokens: 4\n")
    lines.append(f"    from: {{data: dataset, reference: base, candidates: [{', '.join(EXPORTS)}]}}\n")
    return "".join(lines)


def main() -> None:
    """Build, race, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="work here, and leave everything")
    parser.add_argument("--quick", action="store_true", help="the small model alone, and little of everything")
    parser.add_argument("--only", choices=tuple(MODELS), help="one model")
    options = parser.parse_args()
    effort = QUICK if options.quick else Effort()
    names = [options.only] if options.only else ["student"] if options.quick else list(MODELS)
    with tempfile.TemporaryDirectory() as scratch:
        project = options.folder.resolve() if options.folder else Path(scratch) / "project"
        env = dict(os.environ) if options.folder else environment(Path(scratch))
        (project / "specs").mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / "dodo.py", project)
        for name in names:
            (project / "specs" / f"{name}.yaml").write_text(spec(name, effort))
            subprocess.run([doit_program(), name], cwd=project, env=env, check=True)
            timed = race(project, name, effort, Path(scratch))
            speeds = {form: interpreted(project, name, f"coreml-{form}", effort) for form in ("fp32", "fp16")}
            lines = Figures.read(project, env, name).lines(timed, speeds)
            print(f"\n## {name}\n", *lines, sep="\n")


def race(project: Path, name: str, effort: Effort, scratch: Path) -> Mapping[str, Mapping[str, float]]:
    """Everything that can be timed here, in one race: metrics by name of what was timed."""
    from ingot.kit.runtime.measure import Bench, Workload, measure

    latest = project / "cache" / "latest" / name
    threads = len(os.sched_getaffinity(0))
    place = scratch / f"race-{name}"
    place.mkdir()
    work = Workload(effort.prompt, effort.generated, effort.repeats, 1, BASELINES)
    bench = Bench(work, (latest / "base").resolve(), place, threads)
    found = measure(bench, [(latest / export).resolve() for export in TIMED], Quiet())
    timed = {
        export: {metric: it.value for metric, it in each.metrics.items() if not metric.startswith(BASELINES)}
        for export, each in zip(TIMED, found, strict=True)
    }
    for baseline in BASELINES:
        own = {key: it.value for key, it in found[0].metrics.items() if key.startswith(f"{baseline}_")}
        timed[baseline] = {key.removeprefix(f"{baseline}_"): value for key, value in own.items()}
    return timed


def interpreted(project: Path, name: str, export: str, effort: Effort) -> float:
    """Tokens a second of a prompt that the reference interpreter reads; the median of three after one to warm up."""
    from ingot.kit.backends.coreml import CoremlBackend
    from ingot.kit.runtime.measure import token_ids
    from ingot.kit.runtime.timing import timed

    latest = project / "cache" / "latest" / name
    backend = CoremlBackend((latest / export).resolve(), threads=len(os.sched_getaffinity(0)))
    prompt = token_ids((latest / "base").resolve(), effort.prompt)
    return effort.prompt / statistics.median([timed(backend, prompt, 0).first for _ in range(4)][1:])


class Quiet:
    """A progress that shows nothing."""

    def __call__(self, done: float, total: float | None, unit: str, **live: float | str) -> None:
        """Nothing."""

    def phase(self, name: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Figures:
    """What the registry says of one model and its exports: receipts and the report's rows, by name."""

    receipts: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, project: Path, env: dict[str, str], name: str) -> Figures:
        """Of the results in force."""
        receipts = {each: told(project, env, "show", f"{name}:{each}") for each in ["base", *EXPORTS]}
        report = json.loads((project / "cache" / "latest" / name / "report" / "report.json").read_text())
        by_digest = {row["candidate"]: row["metrics"] for row in report["rows"]}
        return cls(receipts, {each: by_digest[receipt["digest"]] for each, receipt in receipts.items()})

    @property
    def model_bytes(self) -> int:
        """Bytes of the model's weights as they are stored."""
        files = self.receipts["base"]["files"]
        return sum(int(file["size"]) for file in files if file["path"].endswith(".safetensors"))

    def lines(self, timed: Mapping[str, Mapping[str, float]], speeds: Mapping[str, float]) -> Iterator[str]:
        """The tables and whether each goal is met; ``speeds`` are the interpreter's, by precision."""
        yield from self._exports()
        yield ""
        yield from _speeds(timed)
        yield ""
        yield from self._goals(timed, speeds)

    def _exports(self) -> Iterator[str]:
        yield "| export | size | difference | cosine | perplexity (95 %) | KL, nats/token (95 %) | made in | memory |"
        yield "|---|---|---|---|---|---|---|---|"
        for name in ("base", *EXPORTS):
            metrics, row, timings = self.receipts[name]["metrics"], self.rows[name], self.receipts[name]["timings"]
            parity = [_value(metrics, "parity_max_difference", ".2g"), _value(metrics, "parity_cosine", ".6f")]
            made = [f"{timings['wall_s']:.1f} s", f"{timings['peak_anon_bytes'] / self.model_bytes:.1f}× model"]
            size = f"{row['bytes']['value'] / 1e6:.2f} MB"
            cells = [name, size, *parity, _span(row, "perplexity", 2), _span(row, "kl_divergence", 5), *made]
            yield f"| {' | '.join(cells)} |"

    def _goals(self, timed: Mapping[str, Mapping[str, float]], speeds: Mapping[str, float]) -> Iterator[str]:
        exact, half = (self.receipts[f"coreml-{form}"]["metrics"] for form in ("fp32", "fp16"))
        difference, cosine = exact["parity_max_difference"]["value"], half["parity_cosine"]["value"]
        yield goal("interpreter, fp32: largest difference of a logit from torch", difference, most=1e-4)
        yield goal("interpreter, fp16: lowest cosine similarity with torch", cosine, least=0.9999)
        for form, speed in speeds.items():
            yield goal(f"interpreter, {form}: tokens of a prompt a second", speed, least=20)
        for export in ("onnx-fp32", "coreml-fp16"):
            peak = self.receipts[export]["timings"]["peak_anon_bytes"]
            if self.model_bytes < LARGE:
                # Libraries alone take 200 MB: of a small model a ratio says nothing.
                yield f"{export}: peak memory of the stage: {peak / 1e6:.0f} MB"
                continue
            yield goal(f"{export}: peak memory of the stage over the model's bytes", peak / self.model_bytes, most=2.5)
        ours, theirs = timed["onnx-fp32"], timed["torchscript"]
        for what, metric in (("prompt", "first_token_s"), ("token", "token_p50_s")):
            yield f"ONNX Runtime over TorchScript, a {what}: {theirs[metric] / ours[metric]:.2f}×"


def _speeds(timed: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    names = ("first_token_s", "token_p50_s", "token_p95_s", "token_p99_s")
    speeds = ("prompt_tokens_per_second", "generation_tokens_per_second")
    yield "| runtime | first token | token p50 | p95 | p99 | prompt tokens/s | tokens/s | memory |"
    yield "|---|---|---|---|---|---|---|---|"
    for runtime, metrics in timed.items():
        cells = [f"{1e3 * metrics[name]:.2f} ms" for name in names] + [f"{metrics[name]:,.0f}" for name in speeds]
        memory = f"{metrics['run_memory'] / 1e6:,.0f} MB" if "run_memory" in metrics else "–"
        yield f"| {' | '.join([runtime, *cells, memory])} |"


def goal(what: str, value: float, *, least: float | None = None, most: float | None = None) -> str:
    """One line: a value, its limit, and whether it is kept."""
    limit, kept = (f"≥ {least:g}", value >= least) if least is not None else (f"≤ {most:g}", value <= (most or 0))
    return f"{what}: {value:.6g}, goal {limit}: {'met' if kept else 'NOT met'}"


def _value(metrics: Mapping[str, Any], name: str, form: str) -> str:
    return format(metrics[name]["value"], form) if name in metrics else "–"


def _span(metrics: Mapping[str, Any], name: str, digits: int) -> str:
    """A metric with its interval; a dash where it was not measured."""
    if name not in metrics:
        return "–"
    metric: Mapping[str, Any] = metrics[name]
    ends: Sequence[float] = metric.get("interval") or ()
    inside = f" ({' … '.join(f'{end:.{digits}f}' for end in ends)})" if ends else ""
    return f"{metric['value']:.{digits}f}{inside}"


if __name__ == "__main__":
    main()
