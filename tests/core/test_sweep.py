"""The sweep of outputs: what passes, and what it may not read."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from ggufkit import raw_gguf, text
from ingot.core.sweep import Forbidden, sweep, sweep_text
from ingot.errors import StageFailed
from plantkit import F32, KEY, put, safetensors

HERE = Forbidden("/data/cache/staging/0123", "/data/someone/project", "/home/user", ("the-canary-value",))


def refusal(out: Path, kind: str = "dataset", forbidden: Forbidden = HERE) -> str | None:
    """The code that an output is refused with; None when it passes."""
    try:
        sweep(out, kind, forbidden)
    except StageFailed as error:
        return error.code
    return None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", b'{"text": "open(\'/home/user/x\'), /home/tom, ' + KEY.encode() + b'"}'),
        ("tokenizer.json", b'{"model": {"vocab": {"/home/tom": 1, "' + KEY.encode() + b'": 2}}}'),
        ("config.json", b'{"template": "look into /home/tom for it", "b": "/data/someone/projects", "a": [1, null]}'),
        ("config.json", b"not JSON"),
        ("config.json", b"[" * 100_000),
        ("model.safetensors", safetensors({"a": F32, "__metadata__": {"format": "pt"}})),
        ("model.safetensors", b"no safetensors"),
        ("model.gguf", raw_gguf([text("a") + struct.pack("<II", 4, 1), text("b") + struct.pack("<I", 8) + text("c")])),
        ("model.gguf", b"GGUF"),
        ("a/b/c.bin", b"\0" * 200_000),
    ],
)  # fmt: skip
def test_ordinary_outputs_pass(tmp_path: Path, name: str, content: bytes) -> None:
    put(tmp_path / name, content)
    assert refusal(tmp_path) is None


def test_long_texts_are_read_to_their_limit_and_weights_are_not(tmp_path: Path) -> None:
    put(tmp_path / "rows.jsonl", b"x" * 100_000 + b"the-canary-value")
    assert refusal(tmp_path) == "E-OUTPUT-SECRET"
    (tmp_path / "rows.jsonl").unlink()
    put(tmp_path / "rows.bin", b"x" * 100_000 + b"the-canary-value")
    put(tmp_path / "w.safetensors", safetensors({"a": F32}, b"\0" * 100_000 + b"the-canary-value"))
    assert refusal(tmp_path) is None, "said in the docstring: of other files the first 64 KiB are read"
    sweep_text("an entry", HERE)


def test_what_fetch_brings_may_name_any_place_but_staging(tmp_path: Path) -> None:
    put(tmp_path / "config.json", b'{"_name_or_path": "/home/tom/m", "a": "/data/someone/project/x"}')
    assert refusal(tmp_path, "fetch") is None
    assert refusal(tmp_path, "merge") == "E-OUTPUT-PATH"
    put(tmp_path / "log.txt", b"/data/cache/staging/0123/out")
    assert refusal(tmp_path, "fetch") == "E-OUTPUT-PATH"


def test_a_folder_of_one_part_gives_nobody_away(tmp_path: Path) -> None:
    put(tmp_path / "rows.txt", b"cd /app/x and /root")
    assert refusal(tmp_path, "command", Forbidden("/s/1", "/app", "/root")) is None


def test_the_places_of_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/data/homes/tom")
    monkeypatch.setenv("SOME_TOKEN", "12345678")
    found = Forbidden.here(tmp_path / "s", tmp_path)
    assert (found.home, found.project, found.staging) == ("/data/homes/tom", str(tmp_path), str(tmp_path / "s"))
    assert "12345678" in found.secrets
