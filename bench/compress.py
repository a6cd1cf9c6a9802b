"""What each way of making a model smaller costs and loses: one table, from one ingot run.

    python bench/compress.py                      # SmolLM2-135M and Python's documentation; about an hour on 2 cores
    python bench/compress.py --folder KEEP        # in a folder that stays: an ended run goes on there
    python bench/compress.py --only w4            # those targets alone whose names begin so

Perplexity and KL divergence to the base are measured on held-out documents, with 95 % intervals (bootstrap over
documents). Seconds and memory are those of the stage, from its receipt. The orders that the literature has are looked
at in the loss: GPTQ and AWQ below RTN, SparseGPT below Wanda below magnitude, recovered below pruned.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workload import REPO, doit_program, environment, smollm2_spec, told

SPEC = smollm2_spec(
    "compress",
    """\
  dataset:
    kind: dataset
    sources: [{python_stdlib: docstrings}]
    dedup: {threshold: 0.8}
    split: {eval: 0.1}
""",
)
_QUANTIZED = {
    "w8a16": "scheme: W8A16",
    "w4_rtn": "scheme: W4A16, group_size: 64",
    "w4_gptq": "scheme: W4A16, group_size: 64, method: gptq",
    "w4_awq": "scheme: W4A16, group_size: 64, method: awq",
    "nf4": "scheme: NF4",
}
_PRUNED = ("magnitude", "wanda", "sparsegpt")
#: Which target is expected to lose less than which.
ORDER = (
    ("w4_gptq", "w4_rtn"),
    ("w4_awq", "w4_rtn"),
    ("p24_sparsegpt", "p24_wanda"),
    ("p24_wanda", "p24_magnitude"),
    *((f"r24_{method}", f"p24_{method}") for method in _PRUNED),
)


def targets(documents: int, steps: int) -> dict[str, str]:
    """The candidates as YAML, by name."""
    found: dict[str, str] = {}
    for name, settings in _QUANTIZED.items():
        roles, more = "model: base", ""
        if "method" in settings:
            roles, more = f"{roles}, calibration: dataset", f", documents: {documents}"
        found[name] = f"{{kind: quantize, from: {{{roles}}}, {settings}{more}}}"
    for method in _PRUNED:
        roles, more = "model: base", ""
        if method != "magnitude":
            roles, more = f"{roles}, calibration: dataset", f", documents: {documents}"
        found[f"p24_{method}"] = f"{{kind: prune, from: {{{roles}}}, method: {method}, pattern: '2:4'{more}}}"
        roles = f"model: p24_{method}, data: dataset"
        found[f"r24_{method}"] = f"{{kind: recover, from: {{{roles}}}, steps: {steps}, batch_size: 4}}"
    return found


def write_spec(folder: Path, chosen: Mapping[str, str], held_out: int) -> None:
    """The project; what is there already stays."""
    (folder / "specs").mkdir(parents=True, exist_ok=True)
    shutil.copy(REPO / "dodo.py", folder)
    lines = [SPEC, *(f"  {name}: {text}\n" for name, text in chosen.items())]
    lines.append(
        "  report:\n    kind: report\n    from: {data: dataset, reference: base, "
        f"candidates: [{', '.join(chosen)}]}}\n    documents: {held_out}\n"
    )
    (folder / "specs" / "compress.yaml").write_text("".join(lines))


def _span(metric: Mapping[str, Any], digits: int) -> str:
    low, high = metric["interval"]
    return f"{metric['value']:.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"


def line(name: str, row: Mapping[str, Any], receipt: Mapping[str, Any]) -> str:
    """One line of the table."""
    metrics, timings = row["metrics"], receipt["timings"]
    kl = _span(metrics["kl_divergence"], 4) if "kl_divergence" in metrics else "0"
    size = metrics["bytes"]["value"] / 1e6
    return (
        f"| {name} | {size:.0f} MB | {_span(metrics['perplexity'], 2)} | {kl}"
        f" | {timings['wall_s']:.0f} s | {timings['peak_anon_bytes'] / 1e9:.2f} GB |"
    )


def main() -> None:
    """Build everything, then print the table and the orders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="work here, and leave everything")
    parser.add_argument("--only", default="", help="only the targets whose names begin so")
    parser.add_argument("--documents", type=int, default=64, help="calibration documents")
    parser.add_argument("--held-out", type=int, default=24, help="held-out documents that are scored")
    parser.add_argument("--steps", type=int, default=40, help="steps of recovery")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder.resolve() if options.folder else Path(name) / "project"
        env = dict(os.environ) if options.folder else environment(Path(name))
        found = targets(options.documents, options.steps)
        chosen = {key: text for key, text in found.items() if key.startswith(options.only)}
        write_spec(folder, chosen, options.held_out)
        subprocess.run([doit_program(), "compress"], cwd=folder, env=env, check=True)
        show(folder, env, list(chosen))


def show(folder: Path, env: dict[str, str], names: list[str]) -> None:
    """The table, and which of the expected orders hold."""
    receipts = {name: told(folder, env, "show", f"compress:{name}") for name in ["base", *names]}
    report = folder / "cache" / "latest" / "compress" / "report" / "report.json"
    rows = {row["candidate"]: row for row in json.loads(report.read_text())["rows"]}
    print("| target | weights | perplexity (95 %) | KL to base, nats/token (95 %) | stage | memory |")
    print("|---|---|---|---|---|---|")
    for name, receipt in receipts.items():
        print(line(name, rows[receipt["digest"]], receipt))
    for better, worse in ORDER:
        if better in receipts and worse in receipts:
            one, other = (rows[receipts[name]["digest"]]["metrics"]["nll"]["value"] for name in (better, worse))
            verdict = "as expected" if one < other else "NOT as expected"
            print(f"{better} {one:.4f} nats/token, {worse} {other:.4f}: {verdict}")


if __name__ == "__main__":
    main()
