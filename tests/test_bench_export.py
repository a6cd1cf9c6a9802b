"""``bench/export.py``: its tables say what the registry says; ``--quick`` as a whole is marked slow."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from projectkit import REPO, Sandbox


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The program as a module; what lies beside it can be imported."""
    sys.path.insert(0, str(REPO / "bench"))
    try:
        spec = importlib.util.spec_from_file_location("bench_export", REPO / "bench" / "export.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["bench_export"] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(REPO / "bench"))


@pytest.mark.parametrize("name", ["student", "smollm2"])
def test_its_specs_plan(bench: ModuleType, sandbox: Sandbox, name: str) -> None:
    sandbox.spec(bench.spec(name, bench.QUICK), name)
    planned = {item["target"].partition(":")[2] for item in sandbox.json("plan")["targets"]}
    assert {"base", "report", *bench.EXPORTS, *(f"report.{name}" for name in bench.EXPORTS)} <= planned


def metric(value: float, *interval: float) -> dict[str, Any]:
    return {"value": value, **({"interval": list(interval)} if interval else {})}


def figures(bench: ModuleType, *, difference: float, cosine: float, peak: int, size: int = 10**8) -> Any:
    """What a registry might say: every export alike."""
    parity = {"parity_max_difference": metric(difference), "parity_cosine": metric(cosine)}
    timings = {"wall_s": 2.0, "peak_anon_bytes": peak}
    names = ("base", *bench.EXPORTS)
    files = [{"path": "model.safetensors", "size": size}, {"path": "tokenizer.json", "size": 5}]
    receipts = {name: {"metrics": parity, "timings": timings, "files": files} for name in names}
    row = {"bytes": metric(2_000_000), "perplexity": metric(5.0, 4.0, 6.0)}
    return bench.Figures(receipts, dict.fromkeys(names, row))


TIMES = {
    "first_token_s": 0.004, "token_p50_s": 0.002, "token_p95_s": 0.002, "token_p99_s": 0.003,
    "prompt_tokens_per_second": 1000.0, "generation_tokens_per_second": 500.0,
}  # fmt: skip


def test_its_tables_say_what_was_measured_and_whether_goals_are_met(bench: ModuleType) -> None:
    timed = {"onnx-fp32": TIMES | {"run_memory": 3e6}, "torchscript": {name: 2 * it for name, it in TIMES.items()}}
    fast, slow = {"fp32": 20.0, "fp16": 20.0}, {"fp32": 19.9, "fp16": 1.0}
    best = figures(bench, difference=1e-4, cosine=0.9999, peak=250_000_000)
    good = "\n".join(best.lines(timed, fast))
    assert "| onnx-int8 | 2.00 MB | 0.0001 | 0.999900 | 5.00 (4.00 … 6.00) | – | 2.0 s | 2.5× model |" in good
    assert "| onnx-fp32 | 4.00 ms | 2.00 ms | 2.00 ms | 3.00 ms | 1,000 | 500 | 3 MB |" in good
    assert "ONNX Runtime over TorchScript, a prompt: 2.00×" in good
    assert "ONNX Runtime over TorchScript, a token: 2.00×" in good
    assert good.count(": met") == 6
    assert "NOT met" not in good
    bad = "\n".join(figures(bench, difference=1.01e-4, cosine=0.99989, peak=251_000_000).lines(timed, slow))
    assert bad.count("NOT met") == 6
    small = "\n".join(figures(bench, difference=0, cosine=1, peak=251_000_000, size=10**8 - 1).lines(timed, slow))
    assert "onnx-fp32: peak memory of the stage: 251 MB\n" in small
    assert "over the model's bytes" not in small


@pytest.mark.slow
def test_the_quick_run(bench: ModuleType) -> None:
    del bench
    command = [sys.executable, str(REPO / "bench" / "export.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for runtime in ("transformers", "torchscript", "torch_export", "onnx-int4", "gguf-q8"):
        assert f"\n| {runtime} | " in done.stdout
    for word in ("largest difference of a logit", "lowest cosine similarity"):
        assert any(word in line and line.endswith(": met") for line in done.stdout.splitlines()), done.stdout
