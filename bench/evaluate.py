"""What evaluating costs: speed beside llama.cpp, passes, bytes of stored logits, and what a second report builds.

    python bench/evaluate.py HF GGUF TEXT            # a folder, a GGUF of the same model, a text for 100 windows
    python bench/evaluate.py HF GGUF TEXT --quick    # 16 windows, once

Prints one line a figure. Perplexity and its speed stand beside llama.cpp's own loop (``bench/llama_loop.py``) on the
same file, text and threads, in turn; both times hold what is done with the logits, neither loading nor tokenizing.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp

import llama_loop
from ingot.core.digest import record_files, tree_digest
from ingot.core.stage import Done, Given, Metric, load_kind
from ingot.kit import llama_cpp as ours
from ingot.kit.backends.gguf import GgufBackend
from ingot.kit.backends.hf import HfBackend
from ingot.kit.scoring import run, units
from plain_chain import Quiet
from workload import REPO, doit_program, environment

_NOTHING = {"repeats": 1, "generation_tokens": 1, "prompt_tokens": 8}
_SILENCE = llama_cpp.llama_log_callback(lambda *_: None)


class Bench:
    """A model in two forms, a text, and as many windows of it."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.hf, self.gguf, self.scratch = options.hf.resolve(), options.gguf.resolve(), scratch
        self.text = options.text.read_text(encoding="utf-8")
        self.count, self.repeats = (16, 1) if options.quick else (100, 3)
        self.context, self.threads = options.context, os.cpu_count() or 1
        self.data = scratch / "data"
        self.data.mkdir()
        (self.data / "eval.jsonl").write_text(json.dumps({"id": "0", "text": self.text}) + "\n", encoding="utf-8")
        (self.data / "train.jsonl").touch()
        self.folder = scratch / "gguf"
        self.folder.mkdir()
        (self.folder / "model.gguf").symlink_to(self.gguf)
        self._runs = 0

    @property
    def windows(self) -> dict[str, int]:
        """The parameter ``windows``."""
        return {"context": self.context, "count": self.count}

    def stage(
        self, kind: str, params: dict[str, Any], inputs: dict[str, Path]
    ) -> tuple[Path, dict[str, Metric], float]:
        """Run a kind: its folder, its metrics, its seconds."""
        self._runs += 1
        out, scratch = (self.scratch / f"{kind}{self._runs}{end}" for end in ("", "-scratch"))
        out.mkdir()
        scratch.mkdir()
        digests = {role: (_digest(path),) for role, path in inputs.items()}
        given = Given({role: (path,) for role, path in inputs.items()}, digests, scratch, threads=self.threads)
        stage = load_kind(kind).model_validate_json(json.dumps(params), strict=True)
        start = time.perf_counter()
        metrics = Done.of(stage.run(given, out, Quiet())).metrics
        return out, dict(metrics), time.perf_counter() - start

    def speed(self) -> None:
        """Perplexity of the GGUF: figures and speed beside llama.cpp's own loop."""
        mine: list[float] = []
        theirs: list[float] = []
        backend = GgufBackend(self.gguf, context=self.context, threads=self.threads)
        rows = [{"id": "0", "text": self.text}]
        chosen = units.windows(backend, rows, units.Windows(self.context, self.context, "second_half", self.count, ""))
        for _ in range(self.repeats):
            start = time.perf_counter()
            scores = run.score(backend, chosen, None, Quiet())
            mine.append(time.perf_counter() - start)
            llama_cpp.llama_log_set(_SILENCE, ctypes.c_void_p(0))
            found = llama_loop.perplexity(
                self.gguf, self.text, context=self.context, chunks=self.count, threads=self.threads
            )
            theirs.append(found.seconds)
        perplexity = math.exp(
            math.fsum(document.nll for document in scores.documents)
            / sum(document.tokens for document in scores.documents)
        )
        tokens = self.context * len(chosen)
        print(f"perplexity: {perplexity:.4f}, llama.cpp's loop {found.perplexity:.4f}, {len(chosen)} windows")
        print(f"speed: {tokens / min(mine):.0f} tokens/s, llama.cpp's loop {tokens / min(theirs):.0f}")
        print(f"ratio of speed: {min(theirs) / min(mine):.3f} (promised: 0.9)")

    def logits(self, variants: int = 3) -> None:
        """Bytes and divergence of stored logits; passes and seconds of variants, both ways."""
        scoring = {"windows": self.windows}
        params = {**_NOTHING, **scoring}
        with passes() as count:
            stored, made, seconds = self.stage("logits", scoring, {"reference": self.hf, "data": self.data})
            inputs = {"candidate": self.folder, "data": self.data}
            for _ in range(variants):
                _, found, took = self.stage("evaluate", params, {**inputs, "reference": stored})
                seconds += took
            stored_passes = count()
        with passes() as count:
            _, full, took = self.stage("evaluate", params, {**inputs, "reference": self.hf})
            live_passes = count() * variants
        share = made["share_of_dump"].value
        print(f"stored logits: {share:.4f} of the float32 dump (promised: 0.1), {made['stored_bytes'].value} B")
        for name in ("kl_divergence", "kl_p99", "top1_agreement"):
            one, other = found[name].value, full[name].value
            print(f"{name}: {one:.6g} stored, {other:.6g} full, relative difference {abs(one / other - 1):.1e}")
        print(f"{variants} variants: {stored_passes} passes stored, {live_passes} live")
        print(f"{variants} variants: {seconds:.1f} s stored, {took * variants:.1f} s live ({variants} x {took:.1f} s)")


@contextmanager
def passes() -> Iterator[Callable[[], int]]:
    """Counts how often a model goes over the text."""
    calls: list[str] = []
    kinds: list[Any] = [HfBackend, GgufBackend]
    before = [kind.logits_of for kind in kinds]

    def counted(kind: Any, original: Any) -> None:
        def logits_of(backend: Any, examples: Any) -> Any:
            calls.append(backend.container)
            return original(backend, examples)

        kind.logits_of = logits_of

    for kind, original in zip(kinds, before, strict=True):
        counted(kind, original)
    try:
        yield lambda: len(calls)
    finally:
        for kind, original in zip(kinds, before, strict=True):
            kind.logits_of = original


def _digest(folder: Path) -> str:
    return tree_digest(record_files(folder)) if not any(path.is_symlink() for path in folder.iterdir()) else "0" * 64


_SPEC = """\
format: 1
name: variants
seed: 1
targets:
  base: {{kind: fetch, path: model}}
  dataset: {{kind: dataset, sources: [{{python_stdlib: topics}}], split: {{eval: 0.1}}, form: text}}
  gguf: {{kind: gguf, from: {{model: base}}, matrix: {{type: [{types}]}}}}
  report:
    kind: report
    from: {{data: dataset, reference: base, candidates: [gguf]}}
    documents: 4
    max_length: 64
    other_tokenizer: bits_per_byte
"""


def second_report(hf: Path, scratch: Path) -> None:
    """What a report builds after one variant was added."""
    project = scratch / "project"
    (project / "specs").mkdir(parents=True)
    shutil.copy(REPO / "dodo.py", project)
    wanted = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    (project / "specs" / "model").mkdir()
    for name in wanted:
        if (hf / name).is_file():
            shutil.copyfile(hf / name, project / "specs" / "model" / name)
    env = environment(scratch)
    for types in ("F16, Q8_0", "F16, Q8_0, F32"):
        (project / "specs" / "variants.yaml").write_text(_SPEC.format(types=types), encoding="utf-8")
        plan = subprocess.run(
            [doit_program(), "plan", "--json"], cwd=project, env=env, capture_output=True, text=True, check=True
        )
        stale = [item["target"] for item in json.loads(plan.stdout)["targets"] if item["state"] != "fresh"]
        subprocess.run([doit_program()], cwd=project, env=env, capture_output=True, check=True)
        print(f"report of {types}: built {', '.join(name.partition(':')[2] for name in stale)}")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("hf", "gguf", "text"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--context", type=int, default=512)
    options = parser.parse_args()
    ours.silence()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        bench.speed()
        bench.logits()
        second_report(bench.hf, Path(scratch))


if __name__ == "__main__":
    main()
