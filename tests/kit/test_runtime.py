"""Runtimes that are measured: the times, their order, the baselines and what goes wrong."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import make_llama

from ingot.core import procfs
from ingot.errors import RefusedInput, StageFailed
from ingot.kit import hf
from ingot.kit.backends import Next
from ingot.kit.backends.hf import HfBackend
from ingot.kit.decoder.build import build_decoder
from ingot.kit.decoder.layers import Form
from ingot.kit.decoder.shape import decoder_shape
from ingot.kit.quant.plain import iter_plain_tensors
from ingot.kit.runtime import archives, measure, runners, timing
from ingot.kit.runtime.contestants import Contestant, Entry, Watch
from ingot.kit.runtime.figures import figures, percentile
from ingot.kit.runtime.hardware import hardware
from ingot.kit.runtime.timing import Run, continued, timed
from stagekit import Recorder, run_done, stage_of

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("torch_export", "onnxruntime")]
SECONDS = st.lists(st.floats(1e-6, 10), min_size=2, max_size=60)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("tiny") / "hf")


# --- times ---------------------------------------------------------------------------------------------------


class Clock:
    """A clock that only a model moves, and such a model: it takes the seconds that it is told, and says 7."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self.now, self.left, self.read = 100.0, list(seconds), [[0]]

    def perf_counter(self) -> float:
        return self.now

    def prefill(self, ids: Sequence[int]) -> Next:
        self.read = [list(ids)]
        return self._work()

    def step(self, token: int) -> Next:
        self.read.append([token])
        return self._work()

    def _work(self) -> Next:
        self.now += self.left.pop(0)
        row: Next = np.eye(9, dtype=np.float32)[7]
        return row


def test_each_token_gets_the_seconds_that_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Clock([8, 1, 2, 0.5])
    monkeypatch.setattr(timing, "time", model)
    assert timed(model, [1, 2, 3], 3) == Run(8, (1, 2, 0.5), (7, 7, 7, 7))
    assert model.read == [[1, 2, 3], [7], [7], [7]]


def test_all_read_the_same_tokens_whatever_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Clock([1] * 4)
    monkeypatch.setattr(timing, "time", model)
    assert timed(model, [1], 3, continued([4, 5, 6])).said == (7, 7, 7, 7)
    assert model.read == [[1], [4], [5], [6]]


@given(SECONDS)
def test_percentiles_are_those_of_other_libraries(values: list[float]) -> None:
    others = statistics.quantiles(values, n=100, method="inclusive")
    for share in (1, 50, 95, 99):
        assert percentile(values, share) == pytest.approx(others[share - 1], rel=1e-9)
        assert percentile(values, share) == np.percentile(values, share)


def test_figures_equal_the_formulas() -> None:
    runs = [Run(2, (1, 3), ()), Run(4, (1, 1), ()), Run(8, (2, 6), ())]
    found = figures(runs, 16, "here", 1000)
    assert {name: metric.value for name, metric in found.items()} == {
        "first_token_s": 4,
        "token_p50_s": 1.5,
        "token_p95_s": pytest.approx(np.percentile([1, 3, 1, 1, 2, 6], 95)),
        "token_p99_s": pytest.approx(np.percentile([1, 3, 1, 1, 2, 6], 99)),
        "prompt_tokens_per_second": 4,
        "generation_tokens_per_second": 0.5,
        "run_memory": 1000,
    }
    assert [found[name].n for name in ("first_token_s", "token_p95_s", "run_memory")] == [3, 6, None]
    assert all("here" in metric.method for metric in found.values())
    assert "run_memory" not in figures(runs, 16, "here", None)


@dataclass
class Fake:
    """A process that is told to run, and remembers when."""

    name: str
    turns: list[str]

    def run(self, prompt: Sequence[int], tokens: Sequence[int]) -> Run:
        self.turns.append(f"{self.name} {list(prompt)} {list(tokens)}")
        return Run(len(self.turns), (1.0,), ())


def test_turns_alternate_and_the_first_rounds_are_not_counted() -> None:
    turns: list[str] = []
    racers = {name: measure.Racer(cast("Contestant", Fake(name, turns))) for name in "ab"}
    measure.race(measure.Workload(2, 1, 2, 1, ()), [5, 6, 7], racers, Recorder())
    assert turns == ["a [5, 6] [7]", "b [5, 6] [7]"] * 3
    assert [[run.first for run in racer.runs] for racer in racers.values()] == [[3, 5], [4, 6]]


# --- processes -----------------------------------------------------------------------------------------------


def test_who_waits_is_stopped_and_a_crash_is_one_message(tiny: Path, tmp_path: Path) -> None:
    with Contestant("transformers", tmp_path, 1) as process:
        said = process.open(Entry("transformers", "transformers", tiny, 16, 1))
        assert "float32" in said["words"]
        assert procfs.state(process.pid) == "T"
        runs = [process.run([3, 4, 5], [6, 7]) for _ in range(2)]
        assert procfs.state(process.pid) == "T"
        assert [len(run.steps) for run in runs] == [2, 2]
        assert runs[0].said == runs[1].said
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(StageFailed, match="transformers ended while it was measured: killed by SIGKILL") as caught:
            process.run([3], [4])
    assert caught.value.code == "E-BENCHMARK"


def test_what_a_runtime_refuses_names_it(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF and nothing that follows")
    with Contestant("export", tmp_path, 1) as process, pytest.raises(StageFailed) as caught:
        process.open(Entry("export", "export", tmp_path, 16, 1))
    assert (caught.value.code, caught.value.what) == ("E-BENCHMARK", "export cannot be measured")
    assert caught.value.facts[0].startswith("E-GGUF-")


def test_the_peak_of_a_process_is_seen_from_outside() -> None:
    if not procfs.memory(os.getpid()).anon:
        pytest.skip("this system does not tell a process's anonymous memory")
    program = "import sys; data = b'x' * (64 << 20); sys.stdin.readline(); del data; print(flush=True); input()"
    watch = Watch()
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        watch.add(process.pid)
        begin = time.monotonic()
        while watch._peaks[process.pid] < 64 << 20 and time.monotonic() - begin < 60:
            time.sleep(0.01)
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        now, peak = procfs.memory(process.pid).anon, watch.peak(process.pid)
        process.kill()
    watch.close()
    assert now < 64 << 20 <= (peak or 0)


def test_hardware_is_what_the_machine_says(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: A Processor 9000\n",
        "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 500 kB\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = hardware(tmp_path)
    wanted = {"processor": "A Processor 9000", "memory_bytes": 1024000, "governor": "powersave"}
    assert {name: found[name] for name in wanted} == wanted
    assert found["cores"] == os.cpu_count()
    assert not {"processor", "governor"} & set(hardware(tmp_path / "none"))


# --- baselines -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torchscript", "llama_cpp", *SLOW])
def test_a_baseline_computes_what_its_source_computes(name: str, tiny: Path, tmp_path: Path) -> None:
    runners.make_archive(name, tiny, tmp_path / "made", 1)
    source = HfBackend(tiny, dtype="float32", threads=1)
    made, words = runners.open_runner(name, tmp_path / "made", context=64, threads=1)
    assert "float32" in words
    near = 0.03 if name == "llama_cpp" else 1e-4  # its cache is in half precision
    for ids in ([5, 9, 200, 3, 77], [8], list(range(40))):
        assert np.allclose(made.prefill(ids), source.prefill(ids), atol=near)
        for token in (4, 250, 17):
            assert np.allclose(made.step(token), source.step(token), atol=near)


def test_an_archive_that_computes_something_else_is_refused(tiny: Path) -> None:
    shape = decoder_shape(hf.read_config(tiny), "E")

    def runner() -> archives.CallRunner:
        decoder = build_decoder(shape, iter_plain_tensors(tiny), Form(scaled_norm=False), "E")
        return archives.CallRunner(archives.Call(decoder), shape)

    archives.prove(runner(), runner(), shape.vocabulary)
    broken = runner()
    advance = broken._advance
    # right for every prompt, and wrong for what follows it, as a program is that took the length for a constant
    broken.step = lambda token: advance([token, token])  # type: ignore[method-assign]
    with pytest.raises(StageFailed) as caught:
        archives.prove(runner(), broken, shape.vocabulary)
    assert caught.value.code == "E-BENCHMARK"


def test_an_architecture_that_the_decoder_is_not_is_named(tmp_path: Path) -> None:
    hf.write_json(tmp_path / "config.json", {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"})
    with pytest.raises(RefusedInput, match="GPT2LMHeadModel") as caught:
        archives.make("torchscript", tmp_path, tmp_path / "made", 1)
    assert caught.value.code == "E-BENCHMARK"


# --- of a target ---------------------------------------------------------------------------------------------

ASKED: Mapping[str, Any] = {"prompt_tokens": 8, "generation_tokens": 4, "repeats": 2, "baselines": ["torchscript"]}


def test_a_gguf_tells_its_speed_and_holds_nothing_of_it(tiny: Path, tmp_path: Path) -> None:
    done = run_done("gguf", {"type": "Q8_0", "benchmark": ASKED}, {"model": tiny}, tmp_path)
    plain = run_done("gguf", {"type": "Q8_0"}, {"model": tiny}, tmp_path, name="plain")
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["model.gguf"]
    assert (tmp_path / "out" / "model.gguf").read_bytes() == (tmp_path / "plain" / "model.gguf").read_bytes()
    assert list((tmp_path / "plain-scratch").iterdir()) == []
    found = set(done.metrics) - set(plain.metrics)
    linux = {"run_memory"} if procfs.memory(os.getpid()).anon else set()
    names = {"first_token_s", "token_p50_s", "token_p95_s", "token_p99_s"} | linux
    names |= {"prompt_tokens_per_second", "generation_tokens_per_second"}
    assert found == names | {f"torchscript_{name}" for name in names}
    assert all(done.metrics[name].value > 0 for name in found)
    assert done.metrics["token_p99_s"].n == 8
    assert "llama.cpp" in done.metrics["first_token_s"].method
    assert "TorchScript" in done.metrics["torchscript_first_token_s"].method
    notes = cast("dict[str, Any]", done.notes["runtime"])
    assert notes["order"] == ["export", "torchscript"]
    assert notes["hardware"]["cores"] == os.cpu_count()
    assert notes["threads"] == 2


def test_keys_of_targets_that_measure_nothing_stay_as_they_were() -> None:
    assert "benchmark" not in stage_of("gguf", {"type": "Q8_0"}).model_dump(mode="json")
    asked = stage_of("gguf", {"type": "Q8_0", "benchmark": {}}).model_dump(mode="json")["benchmark"]
    assert asked["baselines"] == ["transformers", "torchscript", "torch_export"]


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is here")
def test_what_the_reference_interpreter_stands_in_for_has_no_speed(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "model.mlpackage").mkdir(parents=True)
    bench = measure.Bench(measure.Workload(8, 4, 1, 0, ()), tiny, tmp_path, 1)
    for export in (tmp_path / "out", None):
        (found,) = measure.measure(bench, [export], Recorder())
        assert found.metrics == {}
        assert "runtime" not in found.notes


def test_a_run_beyond_the_context_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedInput) as caught:
        run_done("gguf", {"type": "F16", "benchmark": {"prompt_tokens": 250}}, {"model": tiny}, tmp_path)
    assert (caught.value.code, caught.value.what) == (
        "E-BENCHMARK-CONTEXT", "the benchmark reads 282 tokens and the model's context is 256",
    )  # fmt: skip
    assert list((tmp_path / "out").iterdir()) == [], "it is known before anything is written"


def test_a_baseline_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        stage_of("gguf", {"type": "F16", "benchmark": {"baselines": ["torchscript", "torchscript"]}})
