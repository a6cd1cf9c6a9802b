"""Windows of ``evaluate``: the figures of llama-perplexity and of transformers alone, and what cannot be cut."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from test_evaluate import FAST, write_rows

from ingot.errors import RefusedInput
from ingot.kit.chat import Example
from ingot.kit.scoring.units import Windows
from projectkit import REPO
from stagekit import run_stage, stage_of
from tinymodels import copy_model

WINDOWS = {**FAST, "windows": {"context": 64}}


@pytest.fixture(scope="module")
def loop() -> ModuleType:
    """``bench/llama_loop.py``: llama.cpp's own loop."""
    spec = importlib.util.spec_from_file_location("llama_loop", REPO / "bench" / "llama_loop.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["llama_loop"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def texts(shared_data: Path) -> list[str]:
    lines = (shared_data / "sets" / "tinystories" / "stories.clean.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[:6]]


@pytest.fixture
def data(texts: list[str], tmp_path: Path) -> Path:
    return write_rows(tmp_path / "data", ({"text": text} for text in texts))


@pytest.fixture
def gguf(stories_gguf: Path, tmp_path: Path) -> Path:
    (tmp_path / "gguf").mkdir()
    shutil.copyfile(stories_gguf, tmp_path / "gguf" / "model.gguf")
    return tmp_path / "gguf"


def test_windows_are_those_of_llama_perplexity(
    loop: ModuleType, gguf: Path, data: Path, texts: list[str], tmp_path: Path
) -> None:
    """The same chunks, the same tokens scored, the same nll of each: as llama.cpp's own loop on the same file."""
    out, metrics = run_stage("evaluate", WINDOWS, {"candidate": gguf, "data": data}, tmp_path)
    peer = loop.perplexity(gguf / "model.gguf", "\n\n".join(texts), context=64)
    lines = [json.loads(line) for line in (out / "documents.jsonl").read_text(encoding="utf-8").splitlines()]
    assert metrics["windows"].value == len(peer.nll) > 20
    assert {line["tokens"] for line in lines} == {peer.scored} == {31}
    # its attention rounds to 16 bits, in another order here: a token more or less would differ 100 times as much
    assert [line["nll"] for line in lines] == pytest.approx(peer.nll, rel=2e-3)
    assert metrics["perplexity"].value == pytest.approx(peer.perplexity, rel=5e-4)


def direct(folder: Path, text: str, context: int, first: int) -> list[float]:
    """The nll of each window by transformers alone: one forward pass of each window, no cache."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    found = []
    for start in range(0, len(ids) - context + 1, context):
        window = torch.tensor([[tokenizer.bos_token_id, *ids[start + 1 : start + context]]])
        with torch.inference_mode():
            logits = model(input_ids=window).logits[0, first - 1 : -1]
        found.append(float(torch.nn.functional.cross_entropy(logits, window[0, first:], reduction="sum")))
    return found


def test_windows_equal_a_direct_computation(stories: Path, data: Path, texts: list[str], tmp_path: Path) -> None:
    for number, (score, first) in enumerate((("second_half", 33), ("all", 1))):
        params = {**FAST, "windows": {"context": 64, "score": score}}
        out, metrics = run_stage(
            "evaluate", params, {"candidate": stories, "data": data}, tmp_path, name=f"out{number}"
        )
        expected = direct(stories, "\n\n".join(texts), 64, first)
        lines = [json.loads(line) for line in (out / "documents.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [line["nll"] for line in lines] == pytest.approx(expected, rel=1e-5)
        assert metrics["perplexity"].value == pytest.approx(
            math.exp(math.fsum(expected) / (len(expected) * (64 - first))), rel=1e-6
        )
        assert metrics["perplexity"].interval is not None


def test_all_windows_scored_count_the_bytes_of_the_text_once(stories: Path, texts: list[str], tmp_path: Path) -> None:
    """Without overlap, and each window scored from its second token: what is not counted is the first of each."""
    data = write_rows(tmp_path / "data", [{"text": text} for text in texts])
    params = {**FAST, "windows": {"context": 32, "score": "all"}}
    out, metrics = run_stage("evaluate", params, {"candidate": stories, "data": data}, tmp_path)
    lines = [json.loads(line) for line in (out / "documents.jsonl").read_text(encoding="utf-8").splitlines()]
    size = len("\n\n".join(texts).encode())
    assert 0.9 * size < sum(line["bytes"] for line in lines) < size
    nll = math.fsum(line["nll"] for line in lines)
    bits = nll / math.log(2) / sum(line["bytes"] for line in lines)
    assert metrics["bits_per_byte"].value == pytest.approx(bits, rel=1e-12)
    assert metrics["bits_per_byte"].n == sum(line["bytes"] for line in lines)


def test_windows_against_stored_logits(stories: Path, gguf: Path, data: Path, tmp_path: Path) -> None:
    scoring = {"windows": WINDOWS["windows"]}
    stored, _ = run_stage("logits", scoring, {"reference": stories, "data": data}, tmp_path, name="logits")
    inputs = {"candidate": gguf, "data": data}
    _, found = run_stage("evaluate", WINDOWS, {**inputs, "reference": stored}, tmp_path, name="stored")
    _, full = run_stage("evaluate", WINDOWS, {**inputs, "reference": stories}, tmp_path, name="live")
    assert found["top1_agreement"] == full["top1_agreement"]
    assert found["nll_difference"].value == pytest.approx(full["nll_difference"].value, abs=1e-9)
    assert found["kl_divergence"].value == pytest.approx(full["kl_divergence"].value, rel=0.1)
    assert "documents" not in found
    measured = stage_of("evaluate", WINDOWS).measured(frozenset({"candidate", "data", "reference"}))
    # Of a GGUF file no zero weights are counted.
    assert set(found) == {name for name in measured if "energy" not in name or name in found} - {"sparsity"}


def ids_of(count: int) -> list[int]:
    return [1, *range(100, 100 + count - 1)]


@pytest.mark.parametrize(
    ("stride", "score", "first"),
    [(8, "second_half", 5), (8, "all", 1), (8, "stride", 1), (3, "stride", 5), (3, "second_half", 5)],
)
def test_how_windows_are_cut(stride: int, score: str, first: int) -> None:
    """Starts every ``stride`` tokens, full windows alone, the begin token in the place of the first."""
    ids = ids_of(30)
    windows = list(Windows(8, stride, score, None, "").cut(ids, 1))
    starts = range(0, 23, stride)
    assert windows == [Example([1, *ids[start + 1 : start + 8]], first) for start in starts]
    assert list(Windows(8, stride, score, None, "").cut(ids, None))[1].ids == ids[stride : stride + 8]
    assert list(Windows(8, stride, score, 2, "").cut(ids, 1)) == windows[:2]


def test_scored_strides_score_each_token_once() -> None:
    ids = ids_of(40)
    windows = list(Windows(8, 4, "stride", None, "").cut(ids, None))
    scored = [token for window in windows for token in window.ids[window.labels_from :]]
    assert scored == ids[4:]


def test_a_corpus_shorter_than_two_windows_is_refused(stories: Path, texts: list[str], tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data", [{"text": texts[0][:200]}])
    params = {**FAST, "windows": {"context": 512}}
    for number, (kind, role) in enumerate((("evaluate", "candidate"), ("logits", "reference"))):
        settings = params if kind == "evaluate" else {"windows": params["windows"]}
        with pytest.raises(RefusedInput, match="less than two windows of 512") as refused:
            run_stage(kind, settings, {role: stories, "data": data}, tmp_path, name=f"out{number}")
        assert refused.value.code == "E-EVAL-SHORT"
        assert list((tmp_path / f"out{number}").iterdir()) == []


def test_windows_over_conversations_are_refused(stories: Path, texts: list[str], tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data", [{"text": texts[0]}, {"prompt": texts[0], "completion": texts[1]}])
    with pytest.raises(RefusedInput, match="plain text") as refused:
        run_stage("evaluate", WINDOWS, {"candidate": stories, "data": data}, tmp_path)
    assert refused.value.code == "E-EVAL-WINDOWS"


def test_windows_beyond_the_context_are_refused(gguf: Path, data: Path, tmp_path: Path) -> None:
    params = {**FAST, "windows": {"context": 200}}
    with pytest.raises(RefusedInput, match="context is 128") as refused:
        run_stage("evaluate", params, {"candidate": gguf, "data": data}, tmp_path)
    assert refused.value.code == "E-EVAL-CONTEXT"


def test_markup_in_a_text_is_text(stories: Path, gguf: Path, texts: list[str], tmp_path: Path) -> None:
    """As llama-perplexity reads it: ``</s>`` in the middle of a text is no end token, in either tokenizer."""
    data = write_rows(tmp_path / "data", [{"text": texts[0] + "</s>" + texts[1] + "<s>" + texts[2]}])
    params: dict[str, Any] = {**FAST, "windows": {"context": 32}}
    inputs = {"data": data, "reference": stories}
    _, metrics = run_stage("evaluate", params, {**inputs, "candidate": gguf}, tmp_path)
    assert metrics["kl_divergence"].value < 1e-4


def test_an_own_begin_token_is_where_the_tokenizer_puts_one(stories: Path, data: Path, tmp_path: Path) -> None:
    """A tokenizer without one: nothing is put before the text, and windows keep their first token."""
    plain = copy_model(stories, tmp_path / "plain")
    tokenizer = json.loads((plain / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["post_processor"] = None
    (plain / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    config = json.loads((plain / "tokenizer_config.json").read_text(encoding="utf-8"))
    (plain / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": False}), encoding="utf-8")
    stored, _ = run_stage("logits", {"windows": {"context": 64}}, {"reference": plain, "data": data}, tmp_path)
    lines = [json.loads(line) for line in (stored / "units.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["ids"][0] for line in lines} != {1}
    assert all(line["ids"][0] != 1 for line in lines)
