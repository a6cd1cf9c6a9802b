"""What `doit gc` frees in a store of twenty variants: the bytes it says beside those that the disk has back.

    python bench/make_room.py                # SmolLM2-135M, five sparsities × four GGUF types: some minutes
    python bench/make_room.py --folder KEEP  # in a folder that stays

Twenty variants are built; then the spec keeps the four of one sparsity. Each `gc` is asked first what it would do, then
does it; `doit` must find nothing to do after it and `doit audit` no problem. Last the spec has all twenty again: what a
plan says of it, and how long one evicted variant takes to be there again, byte for byte.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from workload import REPO, doit_program, environment, smollm2_spec, timed, told

SPEC = smollm2_spec(
    "variants",
    """\
  pruned: {kind: prune, from: {model: base}, method: magnitude, matrix: {sparsity: SPARSITIES}}
  gguf: {kind: gguf, from: {model: pruned}, matrix: {type: [Q8_0, Q5_K_M, Q4_K_M, Q4_0]}}
""",
)
_ALL, _ONE = "[0.1, 0.2, 0.3, 0.4, 0.5]", "[0.2]"
#: Not what is newest in the log, only what something stands for: else nothing goes from a store as young as this one.
_GC = ("gc", "--newest", "0")


def write_spec(project: Path, sparsities: str) -> None:
    """The spec with these sparsities."""
    (project / "specs" / "variants.yaml").write_text(SPEC.replace("SPARSITIES", sparsities))


def on_disk(folder: Path) -> int:
    """The bytes that a folder's files take on the disk, each inode once."""
    seen = {(stat.st_dev, stat.st_ino): stat.st_blocks * 512 for stat in map(os.lstat, _below(folder))}
    return sum(seen.values())


def _below(folder: Path) -> Sequence[str]:
    return [os.path.join(where, name) for where, _folders, names in os.walk(folder) for name in names]


def gc(project: Path, env: dict[str, str], *arguments: str) -> None:
    """Ask what would go, let it go, and print both beside what the disk has back."""
    said = told(project, env, *_GC, *arguments, "--dry-run")
    count, bytes_ = len(said["evicted"]) + len(said["dropped"]), said["freed_bytes"]
    before = on_disk(project / "cache")
    seconds = timed([doit_program(), *_GC, *arguments], project, env)
    after = on_disk(project / "cache")
    print(f"doit {' '.join((*_GC, *arguments))}: {count} artifacts", flush=True)
    print(f"  said {bytes_:,} bytes, freed {before - after:,} in {seconds:.2f} s; left {after:,}", flush=True)
    again = subprocess.run([doit_program()], cwd=project, env=env, check=True, capture_output=True, text=True)
    if "nothing to do" not in again.stdout:
        raise SystemExit(f"something was to do: {again.stdout}")
    timed([doit_program(), "audit"], project, env)


def run(folder: Path) -> None:
    """The whole series."""
    env = environment(folder)
    project = folder / "project"
    (project / "specs").mkdir(parents=True, exist_ok=True)
    shutil.copy(REPO / "dodo.py", project)
    write_spec(project, _ALL)
    start = time.perf_counter()
    subprocess.run([doit_program()], cwd=project, env=env, check=True)
    print(f"built in {time.perf_counter() - start:.0f} s; cache/ has {on_disk(project / 'cache'):,} bytes", flush=True)
    gc(project, env)
    write_spec(project, _ONE)
    gc(project, env)
    gc(project, env, "--drop", "variants:pruned,variants:base,variants:weights")
    write_spec(project, _ALL)
    states = Counter(target["state"] for target in told(project, env, "plan")["targets"])
    print("all twenty declared again:", ", ".join(f"{count} {state}" for state, count in sorted(states.items())))
    target = "variants:gguf@0.1+Q4_0"
    seconds = timed([doit_program(), "materialize", target], project, env)
    print(f"doit materialize {target}: {seconds:.1f} s")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="work here and leave it")
    folder = parser.parse_args().folder
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        run(folder.resolve())
    else:
        with tempfile.TemporaryDirectory() as name:
            run(Path(name))


if __name__ == "__main__":
    main()
