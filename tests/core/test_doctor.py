"""What doctor says of a machine that lacks something; the machine is described to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ingot.core import doctor
from ingot.core.graph import Node
from ingot.core.key import NOT_INSTALLED
from ingot.core.plan import Planned


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


def test_no_need_of_nothing_is_told(tmp_path: Path) -> None:
    assert "needed" not in doctor.disk(tmp_path, todo("a"), lambda _name: receipt(size=10)).detail
    assert "0.1 MB needed" in doctor.disk(tmp_path, todo("a"), lambda _name: receipt(size=100_000)).detail
    described = doctor.memory(todo("a"), lambda _name: receipt(peak=10), lambda: (4_000_000_000, 8_000_000_000))
    assert described.detail == "4.0 GB of 8.0 GB available"


def test_a_program_is_looked_for_on_path() -> None:
    nodes = [node(programs={"sox": ("sox", "--version")})]
    (absent,) = doctor.programs(nodes, lambda _name: None)
    assert (absent.word, absent.detail) == ("missing", "not on PATH, for s:a")
    (present,) = doctor.programs(nodes, lambda name: f"/bin/{name}")
    assert (present.word, present.detail) == ("ok", "/bin/sox")


def receipt(size: int = 0, peak: int = 0) -> dict[str, Any]:
    return {"files": [{"size": size}], "timings": {"peak_anon_bytes": peak}}


def todo(*names: str) -> list[Planned]:
    return [Planned(node(name), "stale") for name in names]


def test_a_disk_too_small_for_what_is_known(tmp_path: Path) -> None:
    below = tmp_path / "not" / "there" / "yet"
    assert doctor.disk(below, todo("a"), lambda _name: receipt(size=10)).word == "ok"
    check = doctor.disk(below, todo("a", "b"), lambda name: receipt(size=1 << 60) if name == "s:a" else None)
    assert check.word == "missing"
    assert "1 target never built: size not known" in check.detail
    assert check.fix.startswith("free ")


def test_memory_too_small_for_the_largest_peak_known() -> None:
    peaks = {"s:a": receipt(peak=3_000_000_000), "s:b": receipt(peak=9_000_000_000)}
    check = doctor.memory(todo("a", "b"), peaks.get, lambda: (4_000_000_000, 8_000_000_000))
    assert check.word == "missing"
    assert "9.0 GB needed by s:b as when last built" in check.detail
    assert check.fix.endswith("free 5.0 GB")
    assert doctor.memory(todo("a"), peaks.get, lambda: (4_000_000_000, 8_000_000_000)).word == "ok"
    assert doctor.memory(todo("a"), peaks.get, lambda: (0, 0)).word == "note"


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
