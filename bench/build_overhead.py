"""What building through ingot costs: 300 trivial targets from scratch against DVC, and a chain against one script.

    python bench/build_overhead.py [--targets 300] [--dvc PATH] [--chain-only] [--model FOLDER]

The second part builds a real chain of eight stages (data set, adapter, merge, prune, quantize, three GGUF files) over a
small trained model, once through ``doit`` and once by calling the same stages one after the other in one Python script.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from workload import REPO, doit_program, environment, find_dvc, make_dvc, make_ingot, row, timed

STAGES = 8
SPEC = """\
format: 1
name: chain
seed: 7
targets:
  base:      {kind: fetch, path: model}
  dataset:   {kind: dataset, sources: [{path: stories.jsonl}], form: text, split: {eval: 0.2}}
  adapter:
    {kind: adapter, from: {model: base, data: dataset}, rank: 8, steps: 60, batch_size: 4, max_length: 128}
  merged:    {kind: merge, from: {model: base, adapter: adapter}}
  pruned:    {kind: prune, from: {model: merged}, method: magnitude, sparsity: 0.2}
  quantized: {kind: quantize, from: {model: pruned}, scheme: W8A16}
  gguf:      {kind: gguf, from: {model: pruned}, type: Q8_0}
  small:     {kind: gguf, from: {model: pruned}, type: Q4_0}
"""


def make_chain(folder: Path, model: Path, rows: Path) -> Path:
    """The project with the real chain."""
    project = folder / "chain"
    (project / "specs").mkdir(parents=True)
    shutil.copy(REPO / "dodo.py", project)
    shutil.copytree(model, project / "specs" / "model", ignore=shutil.ignore_patterns("*.gguf", "SOURCE*", "LICENSE*"))
    shutil.copy(rows, project / "specs" / "stories.jsonl")
    (project / "specs" / "chain.yaml").write_text(SPEC)
    return project


def chain(folder: Path, model: Path, rows: Path) -> None:
    """Time the chain through doit and as one script; print both."""
    project, env = make_chain(folder, model, rows), environment(folder)
    through_doit = timed([doit_program()], project, env)
    plain = Path(__file__).with_name("plain_chain.py")
    start = time.perf_counter()
    subprocess.run([sys.executable, plain, project, folder / "plain"], check=True, env=env, capture_output=True)
    script = time.perf_counter() - start
    allowed = script * 1.1 + 0.5 * STAGES
    verdict = "met" if through_doit <= allowed else "NOT met"
    print(f"chain of {STAGES} stages: doit {through_doit:.2f} s, the same calls in one script {script:.2f} s")
    print(f"goal: at most {allowed:.2f} s  {verdict}")


def main() -> None:
    """Run both parts and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", type=int, default=300)
    parser.add_argument("--dvc", help="the dvc program to compare with")
    parser.add_argument("--chain-only", action="store_true")
    parser.add_argument("--model", type=Path, default=REPO.parent / "shared/data/models/stories260K")
    parser.add_argument("--rows", type=Path, default=REPO.parent / "shared/data/sets/tinystories/stories.clean.jsonl")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not options.chain_only:
            dvc, env = find_dvc(options.dvc), environment(folder)
            ours, theirs = make_ingot(folder, options.targets), make_dvc(folder, dvc, options.targets)
            mine = timed([doit_program()], ours, env)
            peer = timed([dvc, "repro", "-q"], theirs, env)
            print(row(f"{options.targets} trivial targets from scratch, dvc repro", mine, peer, 10))
        if options.model.is_dir():
            chain(folder, options.model, options.rows)
        else:
            print("the chain needs --model, a Llama folder, and --rows, a JSONL with a text field")


if __name__ == "__main__":
    main()
