"""What doctor says of a machine that lacks something; the machine is described to it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ingot.core import capacity, doctor
from ingot.core.capacity import Room
from ingot.core.forecast import Forecast
from ingot.core.graph import Node
from ingot.core.key import NOT_INSTALLED
from ingot.core.plan import Planned
from ingot.core.predict import Prediction


def node(name: str = "a", **changes: Any) -> Node:
    facts: dict[str, Any] = {"kind": "gguf", "revision": 1, "reproducibility": "deterministic", "produces": "any"}
    return Node(**(facts | {"params": {}, "spec": "s", "name": name, "target": name} | changes))


def test_an_old_python_is_missing_with_a_fix() -> None:
    assert doctor.python((3, 11, 0)).word == "ok"
    check = doctor.python((3, 10, 14))
    assert (check.word, check.fix != "") == ("missing", True)
    assert check.detail == "3.10.14, needs 3.11 or later"


def test_missing_packages_are_named_with_their_extra() -> None:
    installed = {"torch": "2.13.0", "gguf": NOT_INSTALLED, "numpy": "2.4"}
    nodes = [
        node(tools=("gguf", "numpy"), extra="gguf"),
        node("b", kind="merge", tools=("torch",), extra="ml"),
        node("c", kind="command"),
    ]
    first, second = doctor.packages(nodes, installed.__getitem__)
    assert (first.name, first.word, first.fix) == ("packages [gguf]", "missing", "pip install 'ingot[gguf]'")
    assert first.detail == "gguf for gguf"
    assert (second.word, second.detail) == ("ok", "torch 2.13.0 for merge")


def test_a_package_that_is_there_is_named_once() -> None:
    nodes = [
        node(tools=("torch", "numpy"), extra="a"),
        node(tools=("gguf", "torch"), extra="b"),
        node(tools=("torch",), extra="c"),
    ]
    details = [check.detail for check in doctor.packages(nodes, lambda _name: "1")]
    assert details == ["numpy 1, torch 1 for gguf", "gguf 1 for gguf", "as above for gguf"]


def test_a_gpu_is_looked_for_where_it_is_asked_for() -> None:
    nodes = [node(device="cuda"), node("b", device="auto"), node("c")]
    (absent,) = doctor.device(nodes, lambda: False)
    assert (absent.word, absent.detail) == ("missing", "none to be seen, for s:a")
    (there,) = doctor.device(nodes, lambda: True)
    assert (there.word, there.detail) == ("ok", "for s:a")
    assert list(doctor.device(nodes[1:], lambda: False)) == []


def test_a_program_is_looked_for_on_path() -> None:
    nodes = [node(programs={"sox": ("sox", "--version")})]
    (absent,) = doctor.programs(nodes, lambda _name: None)
    assert (absent.word, absent.detail) == ("missing", "not on PATH, for s:a")
    (present,) = doctor.programs(nodes, lambda name: f"/bin/{name}")
    assert (present.word, present.detail) == ("ok", "/bin/sox")


GB = 10**9
ROOM = Room(free_bytes=10 * GB, reserve_bytes=GB, available_bytes=4 * GB, total_bytes=8 * GB)


def forecast(room: Room = ROOM, **needs: tuple[int, int] | None) -> Forecast:
    """Of targets that write so many bytes with so much memory at their peak; None where there is no history."""
    plan = {f"s:{name}": Planned(node(name, params={"is": name}), "stale") for name in needs}
    predictions = {
        f"s:{name}": None if need is None else Prediction(1.0, need[1], need[0], 0, 1, "same_target")
        for name, need in needs.items()
    }
    work = capacity.work(plan, list(plan), predictions)
    unknown = tuple(name for name in plan if predictions[name] is None)
    return Forecast(work, predictions, unknown, work.disk(), work.memory(), room)


def test_a_disk_too_small_for_what_is_known() -> None:
    check = doctor.disk(forecast(a=(9 * GB, 1)))
    assert (check.word, check.detail) == ("ok", "10.0 GB free, 9.0 GB needed in all")
    check = doctor.disk(forecast(a=(12 * GB, 1), b=None))
    assert (check.word, check.detail) == (
        "missing", "10.0 GB free, 12.0 GB needed in all, 1 target with no history yet",
    )  # fmt: skip
    assert check.fix.startswith("free 3.0 GB")
    assert doctor.disk(forecast()).detail == "10.0 GB free"


def test_a_disk_too_small_for_the_log() -> None:
    check = doctor.disk(forecast(replace(ROOM, free_bytes=GB), a=None))
    assert (check.word, check.fix) == ("missing", "free 1.0 GB")


def test_memory_too_small_for_the_largest_peak_known() -> None:
    check = doctor.memory(forecast(a=(1, 3 * GB), b=(1, 9 * GB)))
    assert (check.word, check.detail) == ("missing", "4.0 GB of 8.0 GB available, 9.0 GB needed by s:b")
    assert "doit s:a" in check.fix
    assert doctor.memory(forecast(a=(1, 3 * GB))).word == "ok"
    assert doctor.memory(forecast(replace(ROOM, total_bytes=0), a=(1, 3 * GB))).word == "note"


def test_llama_cpp_is_really_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needs = [node(needs=("llama-cpp-python",))]
    assert list(doctor.llama_cpp([node()], lambda _name: "1")) == []
    assert list(doctor.llama_cpp(needs, lambda _name: NOT_INSTALLED)) == [], "the packages' check names it"
    (tmp_path / "llama_cpp.py").write_text("raise OSError('libllama.so: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (check,) = doctor.llama_cpp(needs, lambda _name: "0.3.36")
    assert check.word == "missing"
    assert "libllama.so: cannot open shared object file" in check.detail
    assert check.fix.startswith("pip install ")


def test_llama_cpp_that_hangs_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "_PROBE_SECONDS", 1)
    (check,) = doctor.llama_cpp([node(needs=("llama-cpp-python",))], lambda _name: "0.3.36")
    assert "does not load in 1 s" in check.detail


def test_addresses_follow_the_targets_and_the_users_settings() -> None:
    nodes = [
        node(params={"pypi": "x==1"}),
        node("b", params={"hf": "a/b"}),
        node("c", params={"url": "https://example.org/m"}),
        node("d"),
    ]
    assert doctor.remotes(nodes, {"HF_ENDPOINT": "https://mirror.example"}) == {
        "PyPI": "https://pypi.org/simple/",
        "hub": "https://mirror.example",
        "s:c": "https://example.org/m",
    }


def test_the_key_of_this_user_is_told_from_others(tmp_path: Path) -> None:
    registry, keys = tmp_path / "registry", tmp_path / "keys"
    assert "begins a log" in doctor.signing_key(registry, keys).detail
    (registry / "0123456789ab").mkdir(parents=True)
    assert "1 log of others" in doctor.signing_key(registry, keys).detail
    keys.mkdir()
    (keys / "0123456789ab").touch()
    assert "this user signs log 0123456789ab" in doctor.signing_key(registry, keys).detail


def test_the_commands_of_the_checks_are_real() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--help"], capture_output=True, text=True, check=True
    )
    assert "--force-reinstall" in help_text.stdout


def test_git_without_the_union_merge_of_the_lock_is_noted_with_its_fix(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    check = doctor.git(tmp_path)
    assert check.word == "note"
    assert "conflict on ingot.lock" in check.detail
    subprocess.run(["sh", "-c", check.fix], cwd=tmp_path, check=True)
    check = doctor.git(tmp_path)
    assert (check.word, check.detail) == ("note", "no commit yet: receipts name none, and nothing pins the log")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "x"], cwd=tmp_path, check=True)
    assert doctor.git(tmp_path).word == "ok"
