"""A big model through merge, GGUF and quantization: ingot's one pass against PEFT, llama.cpp's converter and quantizer.

    python bench/weights.py                    # 1.2 B parameters, Q4_0 and Q4_K_M, peers in the same run
    python bench/weights.py --grow 0.3,1.2,8   # ingot alone: time a parameter, memory and disk as the model grows
    python bench/weights.py --types            # three types from one read against three runs
    python bench/weights.py --reuse 1.2        # a second adapter on one base, with the first in the store and without

Models are random Llamas (``random_model.py``) with a rank-64 adapter on all linear layers. What is
timed is `doit weights:gguf` from model and adapter in the store to a checked and recorded GGUF.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from measured import Measured, measure
from random_model import SIZES, Size, write_adapter, write_model
from workload import REPO, doit_program, environment, told

RANK = 64
THREADS = len(os.sched_getaffinity(0))
PEERS = Path(__file__).with_name("weights_peers.py")
_SPEC = """\
format: 1
name: weights
seed: 1
targets:
  base: {{kind: fetch, path: model}}
  adapter: {{kind: fetch, path: adapter}}
  merged: {{kind: merge, from: {{model: base, adapter: adapter}}, virtual: true}}
  gguf: {{kind: gguf, from: {{model: merged}}, {types}}}
"""


@dataclass(frozen=True)
class Project:
    """A project whose model and adapter are in the store."""

    root: Path
    env: dict[str, str]

    def types(self, *types: str) -> None:
        """Have these types of the model made."""
        text = f"type: {types[0]}" if len(types) == 1 else f"matrix: {{type: [{', '.join(types)}]}}"
        (self.root / "specs" / "weights.yaml").write_text(_SPEC.format(types=text))

    def doit(self, *arguments: str) -> Measured:
        """Run doit; the disk's high-water mark is that of ``cache/`` beyond what lay there."""
        before = sum(path.stat().st_size for path in (self.root / "cache").rglob("*") if path.is_file())
        done = measure([doit_program(), *arguments], cwd=self.root, env=self.env, watched=self.root / "cache")
        return Measured(done.seconds, done.anonymous, done.resident, done.disk - before)

    def show(self, target: str) -> dict[str, Any]:
        """The receipt of a target."""
        found: dict[str, Any] = told(self.root, self.env, "show", target)
        return found


def make_project(folder: Path, name: str, source: Path) -> tuple[Project, Size]:
    """A random model and adapter of one size, fetched into a new project; the project's own copy is dropped."""
    root, size = folder / f"project-{name}", SIZES[name]
    (root / "specs").mkdir(parents=True)
    shutil.copy(REPO / "dodo.py", root)
    write_model(root / "specs" / "model", size)
    write_adapter(root / "specs" / "adapter", size, RANK)
    write_vocabulary(root / "specs" / "model", source, size.vocabulary)
    project = Project(root, environment(folder / f"home-{name}"))
    project.types("Q4_0")
    project.doit("weights:base", "weights:adapter")
    return project, size


def write_vocabulary(folder: Path, source: Path, vocabulary: int) -> None:
    """Llama 3's tokenizer, or with 32,000 tokens Llama 2's, from the vocabularies that llama.cpp's sources carry."""
    from ingot.kit.gguf.reader import read_gguf
    from ingot.kit.gguf.tokenizer import write_tokenizer

    name = {32000: "llama-spm", 128256: "llama-bpe"}[vocabulary]
    write_tokenizer(read_gguf(source / "models" / f"ggml-vocab-{name}.gguf").metadata, folder, max_length=4096)


def run_peers(folder: Path, project: Project, source: Path, kind: str) -> dict[str, Measured]:
    """The three steps on the same model."""
    out = folder / "peers"
    out.mkdir(exist_ok=True)
    model, adapter = (project.root / "specs" / name for name in ("model", "adapter"))
    merged, plain, quantized = out / "merged", out / "plain.gguf", out / f"{kind}.gguf"
    steps: Mapping[str, Sequence[str]] = {
        "merge": ("merge", str(model), str(adapter), str(merged)),
        "convert": ("convert", str(source), str(merged), str(plain)),
        "quantize": ("quantize", str(plain), str(quantized), kind, str(THREADS)),
    }
    found = {}
    for name, arguments in steps.items():
        if name != "quantize" and plain.exists() and kind != "Q4_0":
            continue
        found[name] = measure([sys.executable, str(PEERS), *arguments], cwd=out, env=dict(os.environ), watched=out)
    return found


def quantizing_alone(path: Path) -> float:
    """Seconds that ``ggml_quantize_chunk`` by itself takes for the tensors and types of a GGUF, on all threads."""
    from ingot.kit.gguf.reader import read_gguf

    library = _ggml()
    numbers = np.random.default_rng(0).standard_normal(_CHUNK, np.float32) * np.float32(0.02)
    jobs = []
    for info in read_gguf(path).tensors:
        if info.type in ("F32", "F16", "BF16"):
            continue
        width = info.shape[-1]
        rows, step = info.elements // width, max(1, _CHUNK // width)
        jobs += [(info.type, width, min(step, rows - first)) for first in range(0, rows, step)]
    room = threading.local()

    def one(job: tuple[str, int, int]) -> None:
        kind, width, rows = job
        if not hasattr(room, "bytes"):
            room.bytes = np.empty(_CHUNK * 4, np.uint8)
        number = int(GGMLQuantizationType[kind])
        library.ggml_quantize_chunk(
            number, numbers.ctypes.data, room.bytes.ctypes.data, 0, rows, width, ctypes.c_void_p(0)
        )

    for kind in {kind for kind, _, _ in jobs}:
        library.ggml_quantize_init(int(GGMLQuantizationType[kind]))
    with ThreadPoolExecutor(THREADS) as pool:
        start = time.perf_counter()
        list(pool.map(one, jobs))
        return time.perf_counter() - start


#: Weights in a piece that is given to ggml at once.
_CHUNK = 1 << 22


def _ggml() -> Any:
    """llama-cpp-python's own ``libggml-base``, with the two functions used here declared."""
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(path for path in sorted(folder.iterdir()) if "ggml-base" in path.name)))
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_init.argtypes = [ctypes.c_int]
    return library


def against_peers(folder: Path, source: Path, kinds: Sequence[str]) -> None:
    """One size, each type by ingot, by the peers, and by ``ggml_quantize_chunk`` alone."""
    project, size = make_project(folder, "1.2", source)
    ours: dict[str, Measured] = {}
    stages: dict[str, dict[str, Any]] = {}
    alone: dict[str, float] = {}
    for kind in kinds:
        project.types(kind)
        ours[kind] = project.doit("weights:gguf")
        stages[kind] = project.show("weights:gguf")
        alone[kind] = quantizing_alone(project.root / "cache" / "latest" / "weights" / "gguf" / "model.gguf")
    peers = {kind: run_peers(folder, project, source, kind) for kind in kinds}
    print(f"\n{size.parameters / 1e9:.2f} B parameters, rank {RANK} on all linears, bfloat16, {THREADS} threads")
    common = {name: peers[kinds[0]][name] for name in ("merge", "convert")}
    for kind in kinds:
        steps = common | peers[kind]
        total = sum(step.seconds for step in steps.values())
        parts = ", ".join(f"{name} {step.seconds:.1f} s" for name, step in steps.items())
        mine, receipt = ours[kind], stages[kind]
        file = sum(item["size"] for item in receipt["files"])
        print(f"\n{kind}")
        print(f"  ingot   {mine.seconds:6.1f} s  (stage {_wall(receipt):.1f} s)")
        print(f"  peers   {total:6.1f} s  ({parts})  ratio {total / mine.seconds:.1f}x")
        print(f"  ggml_quantize_chunk alone {alone[kind]:.1f} s  ratio {mine.seconds / alone[kind]:.2f}")
        print(f"  peak memory, anonymous / resident: ingot {_memory(receipt)}, peers {_worst(steps)}")
        print(f"  written: ingot {mine.disk / 1e9:.2f} GB = {mine.disk / file:.2f} x the GGUF; peers {_disk(steps)}")


def growing(folder: Path, source: Path, names: Sequence[str], kind: str) -> None:
    """Time a parameter, memory and disk of ingot as the model grows."""
    print(f"\n{kind}, merge streamed into it, {THREADS} threads")
    first = 0.0
    for name in names:
        project, size = make_project(folder, name, source)
        project.types(kind)
        done = project.doit("weights:gguf")
        receipt = project.show("weights:gguf")
        each = done.seconds / (size.parameters / 1e9)
        first = first or each
        print(
            f"  {size.parameters / 1e9:5.2f} B  {done.seconds:7.1f} s  {each:6.2f} s a billion ({each / first:.2f}x)"
            f"  memory, anonymous / resident {_memory(receipt)}  disk {done.disk / 1e9:.2f} GB"
        )
        shutil.rmtree(project.root)


def several_types(folder: Path, source: Path, kinds: Sequence[str]) -> None:
    """Three types from one read against three runs."""
    project, _ = make_project(folder, "1.2", source)
    single = 0.0
    for kind in kinds:
        project.types(kind)
        single += project.doit("weights:gguf").seconds
    shutil.rmtree(project.root)
    project, _ = make_project(folder, "1.2", source)
    project.types(*kinds)
    together = project.doit("weights:gguf").seconds
    print(f"\n{', '.join(kinds)}: three runs {single:.1f} s, one read {together:.1f} s, ratio {single / together:.2f}x")


def second_variant(folder: Path, source: Path, name: str, kind: str) -> None:
    """The file of a second adapter on one base, in a project that has that of the first and in one that has not."""
    root = folder / "parts"
    size = SIZES[name]
    for number, part in enumerate(("one", "two")):
        write_adapter(root / part, size, RANK, upper=True, seed=number)
    found = {}
    for has_first in (False, True):
        project, _ = make_project(folder, name, source)
        for part in ("one", "two") if has_first else ("two",):
            shutil.rmtree(project.root / "specs" / "adapter")
            shutil.copytree(root / part, project.root / "specs" / "adapter")
            project.types(kind)
            project.doit("weights:adapter")
            found[has_first] = project.doit("weights:gguf").seconds, project.show("weights:gguf")
        shutil.rmtree(project.root)
    (alone, fresh), (after, reused) = found[False], found[True]
    same = "equal" if fresh["digest"] == reused["digest"] else "DIFFERENT"
    metrics = {key: float(value["value"]) for key, value in reused["metrics"].items()}
    print(f"\n{kind}, {size.parameters / 1e9:.2f} B, an adapter of the upper half's attention, {THREADS} threads")
    print(f"  alone         {alone:6.1f} s  (stage {_wall(fresh):.1f} s)")
    print(f"  after another {after:6.1f} s  (stage {_wall(reused):.1f} s)  ratio {alone / after:.2f}x, bytes {same}")
    print(
        f"  reused {metrics['reused_tensors']:.0f} tensors, {metrics['reused_bytes'] / 1e9:.2f} of"
        f" {metrics['bytes'] / 1e9:.2f} GB; saved {metrics['saved_s']:.1f} s of processor time"
    )


def _wall(receipt: Mapping[str, Any]) -> float:
    return float(receipt["timings"]["wall_s"])


def _memory(receipt: Mapping[str, Any]) -> str:
    timings = receipt["timings"]
    return f"{timings['peak_anon_bytes'] / 1e9:.2f} / {timings['peak_rss_bytes'] / 1e9:.2f} GB"


def _worst(steps: Mapping[str, Measured]) -> str:
    most = max(step.anonymous for step in steps.values()), max(step.resident for step in steps.values())
    return f"{most[0] / 1e9:.2f} / {most[1] / 1e9:.2f} GB"


def _disk(steps: Mapping[str, Measured]) -> str:
    return f"{max(step.disk for step in steps.values()) / 1e9:.2f} GB"


def find_llama_cpp() -> Path:
    """llama.cpp's converter and vocabularies, found or fetched as the tests do."""
    sys.path.append(str(REPO / "tests"))
    from llamasource import llama_cpp_source

    found: Path = llama_cpp_source()
    return found


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="Q4_0,Q4_K_M", help="types to compare with the peers")
    parser.add_argument("--grow", help="sizes (0.3, 1.2, 8) through Q4_0, without the peers")
    parser.add_argument("--types", action="store_true", help="three types from one read against three runs")
    parser.add_argument("--reuse", metavar="SIZE", help="a second variant of one base in Q4_K_M, without the peers")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder); 8 B needs 40 GB")
    options = parser.parse_args()
    source = find_llama_cpp()
    with tempfile.TemporaryDirectory(prefix="ingot-bench-", dir=options.folder, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if options.grow:
            growing(folder, source, options.grow.split(","), "Q4_0")
        elif options.reuse:
            second_variant(folder, source, options.reuse, "Q4_K_M")
        elif options.types:
            several_types(folder, source, ("Q8_0", "Q5_0", "Q4_0"))
        else:
            against_peers(folder, source, options.kinds.split(","))


if __name__ == "__main__":
    main()
