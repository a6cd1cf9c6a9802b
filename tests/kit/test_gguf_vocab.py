"""Tokenizers as GGUF fields: what cannot be said is refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import make_tokenizer

from ingot.errors import RefusedInput
from ingot.kit.gguf import sentencepiece as sentencepiece_file
from ingot.kit.gguf import vocab
from ingot.kit.hf import load_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return tmp_path


def _fields(folder: Path, size: int = 400, tokenizer: Any = None) -> dict[str, bytes]:
    fields = vocab.vocabulary_fields(folder, {"vocab_size": size}, tokenizer or load_tokenizer(folder))
    return {field.key: field.payload for field in fields}


def test_a_byte_level_tokenizer(folder: Path) -> None:
    fields = _fields(folder)
    assert fields["tokenizer.ggml.model"].endswith(b"gpt2")
    assert fields["tokenizer.ggml.pre"].endswith(b"smollm")
    assert fields["tokenizer.ggml.eos_token_id"] == struct.pack("<II", 4, 2)
    assert fields["tokenizer.ggml.add_bos_token"] == struct.pack("<I?", 7, False)
    assert b"[PAD399]" in fields["tokenizer.ggml.tokens"]
    types = struct.unpack("<400i", fields["tokenizer.ggml.token_type"][16:])
    assert types[:4] == (3, 3, 3, 1)
    assert types[-1] == 5


def _set(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


def _prefix(data: dict[str, Any]) -> None:
    data["pre_tokenizer"]["pretokenizers"][-1]["add_prefix_space"] = True


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_set("model", "type", value="Unigram"), "its model is Unigram"),
        (_prefix, "adds a space"),
        (_set("pre_tokenizer", value={"type": "Whitespace"}), "neither byte-level BPE nor SentencePiece"),
        (_set("model", "vocab", "far", value=4000), "token 4000 lies beyond"),
        (
            _set("added_tokens", value=[{"id": 5000, "content": "<x>", "special": True}]),
            "added token 5000 lies beyond",
        ),
    ],
)
def test_what_gguf_cannot_say_is_refused(folder: Path, change: Callable[[dict[str, Any]], None], what: str) -> None:
    tokenizer = load_tokenizer(folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(RefusedInput, match=what) as caught:
        _fields(folder, tokenizer=tokenizer)
    assert caught.value.code == "E-GGUF-TOKENIZER"


def test_a_folder_without_tokenizer_is_refused(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(RefusedInput, match=r"no tokenizer\.json"):
        _fields(folder, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("single", "begin", "end"),
    [("<|im_start|> $A", True, False), ("$A <|im_end|>", False, True), ("<|im_start|> $A <|im_end|>", True, True)],
)
def test_tokens_around_a_text_are_observed(folder: Path, single: str, begin: bool, end: bool) -> None:
    fields = _fields(folder, tokenizer=_around(folder, single))
    assert fields["tokenizer.ggml.add_bos_token"] == struct.pack("<I?", 7, begin)
    assert fields["tokenizer.ggml.add_eos_token"] == struct.pack("<I?", 7, end)


@pytest.mark.parametrize("single", ["<|endoftext|> $A", "<|im_start|> <|im_start|> $A", "$A <|im_start|>"])
def test_other_tokens_around_a_text_are_refused(folder: Path, single: str) -> None:
    with pytest.raises(RefusedInput, match="one begin and one end token"):
        _fields(folder, tokenizer=_around(folder, single))


def _around(folder: Path, single: str) -> Any:
    from tokenizers import processors

    tokenizer = load_tokenizer(folder)
    special = [("<|endoftext|>", 0), ("<|im_start|>", 1), ("<|im_end|>", 2)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair="$A $B:1", special_tokens=special
    )
    return tokenizer


def test_sentencepiece_equals_what_the_library_reads(stories: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    data = (stories / "tokenizer.model").read_bytes()
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    pieces = list(sentencepiece_file.read_sentencepiece(data))
    ids = range(reference.GetPieceSize())
    assert [piece for piece, _, _ in pieces] == [reference.IdToPiece(index) for index in ids]
    assert [score for _, score, _ in pieces] == [reference.GetScore(index) for index in ids]
    assert [kind for _, _, kind in pieces[:4]] == [2, 3, 3, 6]


@pytest.mark.parametrize("cut", [1, 5, 100, 4001])
def test_a_damaged_sentencepiece_model_is_refused(stories: Path, cut: int) -> None:
    data = (stories / "tokenizer.model").read_bytes()
    with pytest.raises(RefusedInput, match="not a SentencePiece model") as caught:
        list(sentencepiece_file.read_sentencepiece(data[:cut] + b"\xff" * 20))
    assert caught.value.code == "E-GGUF-TOKENIZER"


def test_a_vocabulary_with_gaps_is_refused(stories: Path, tmp_path: Path) -> None:
    data = json.loads((stories / "tokenizer.json").read_text())
    data["model"]["vocab"]["gap"] = 600
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(RefusedInput, match="gaps"):
        _fields(tmp_path, 700, load_tokenizer(stories))
