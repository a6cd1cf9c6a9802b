"""``python -m ingot.chat`` as a person runs it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


def chat(*arguments: str, asked: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ingot.chat", *arguments]
    return subprocess.run(command, input=asked, capture_output=True, text=True, check=False, timeout=120)


needs_llama = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs llama-cpp-python")


@needs_llama
def test_a_model_without_a_template_continues_the_text(stories_gguf: Path) -> None:
    done = chat(str(stories_gguf), "Once upon a time", "--tokens", "12")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "there was a" in done.stdout


@needs_llama
def test_lines_of_standard_input_are_answered_in_turn(stories_gguf: Path) -> None:
    done = chat(str(stories_gguf), "--tokens", "5", asked="Once upon a time\n\nOnce upon a time\n")
    first, second = done.stdout.splitlines()
    assert first == second != ""


@needs_llama
def test_more_than_the_context_is_an_error_with_a_hint(stories_gguf: Path) -> None:
    done = chat(str(stories_gguf), "word " * 500, "--context", "32")
    assert done.returncode == 2
    assert done.stderr.startswith("E-CONTEXT: ")


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "model.gguf"
    other.write_bytes(b"PK\x03\x04")
    done = chat(str(other), "hello")
    assert (done.returncode, done.stdout, done.stderr) == (3, "", f"E-GGUF: {other} is not a GGUF file\n")
    done = chat(str(tmp_path / "none.gguf"), "hello")
    assert done.returncode == 2
    assert done.stderr.startswith("E-FILE: ")


@needs_llama
def test_a_reader_that_goes_away_is_no_traceback(stories_gguf: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "ingot.chat", str(stories_gguf), "Once upon a time", "--tokens", "5"],
        stdout=write, stderr=subprocess.PIPE, text=True, check=False, timeout=120,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
