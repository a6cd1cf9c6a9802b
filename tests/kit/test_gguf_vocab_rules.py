"""Tokenizers as GGUF fields: names, normalizers, what the self-check leaves out, SentencePiece models written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import make_tokenizer
from tokenizers import normalizers, pre_tokenizers

from ingot.errors import RefusedInput
from ingot.kit.gguf import check, pretokenizers
from ingot.kit.gguf.reader import read_gguf
from ingot.kit.gguf.sentencepiece import Settings, read_sentencepiece, write_sentencepiece
from ingot.kit.gguf.vocab import vocabulary_fields
from ingot.kit.hf import load_tokenizer
from vocabkit import folder_of, write_fields


def _small(folder: Path) -> None:
    make_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def _byte_level(folder: Path, change: Callable[[dict[str, Any]], None], **config: Any) -> dict[str, Any]:
    """The fields of a small byte-level tokenizer whose tokenizer.json was changed."""
    _small(folder)
    tokenizer = load_tokenizer(folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    fields = vocabulary_fields(folder, {"vocab_size": 400, **config}, tokenizer)
    return dict(read_gguf(write_fields(fields, folder / "x.gguf")).metadata)


def _split(pattern: str, *, whole: bool) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        data["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}],
        }
        data["model"]["ignore_merges"] = whole

    return change


@pytest.mark.parametrize(
    ("pattern", "whole", "name"),
    [
        (pretokenizers.LLAMA3, True, "llama-bpe"),
        (pretokenizers.LLAMA3, False, "dbrx"),
        (pretokenizers.QWEN2, False, "qwen2"),
        (pretokenizers.TEKKEN, True, "tekken"),
    ],
)
def test_the_steps_and_whole_words_name_the_rule(tmp_path: Path, pattern: str, whole: bool, name: str) -> None:
    assert _byte_level(tmp_path, _split(pattern, whole=whole))["tokenizer.ggml.pre"] == name


def test_whole_words_that_llama_cpp_would_merge_are_refused(tmp_path: Path) -> None:
    """Every merge away: the tokens that they made are then reached as whole words only."""
    assert _byte_level(tmp_path, _split(pretokenizers.QWEN2, whole=True))["tokenizer.ggml.pre"] == "qwen2"

    def unreachable(data: dict[str, Any]) -> None:
        _split(pretokenizers.QWEN2, whole=True)(data)
        data["model"]["merges"] = []

    with pytest.raises(RefusedInput, match="ignore_merges") as caught:
        _byte_level(tmp_path, unreachable)
    assert caught.value.code == "E-GGUF-TOKENIZER"


@pytest.mark.parametrize("kind", ["Lowercase", "NFKC", "Precompiled"])
def test_a_normalizer_that_changes_letters_is_refused(tmp_path: Path, kind: str) -> None:
    def change(data: dict[str, Any]) -> None:
        data["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": kind}]}

    with pytest.raises(RefusedInput, match="rewrites text by") as caught:
        _byte_level(tmp_path, change)
    assert caught.value.code == "E-GGUF-TOKENIZER"


def test_the_settings_of_a_llama_state_its_space(tmp_path: Path) -> None:
    def nothing(_data: dict[str, Any]) -> None: ...

    key = "tokenizer.ggml.add_space_prefix"
    assert key not in _byte_level(tmp_path, nothing)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "add_prefix_space": False}))
    fields = vocabulary_fields(tmp_path, {"vocab_size": 400}, load_tokenizer(tmp_path))
    assert key not in {field.key for field in fields}
    config = {"vocab_size": 400, "architectures": ["LlamaForCausalLM"]}
    assert key in {field.key for field in vocabulary_fields(tmp_path, config, load_tokenizer(tmp_path))}


def test_a_code_llama_gets_the_tokens_for_filling_in(tmp_path: Path) -> None:
    def nothing(_data: dict[str, Any]) -> None: ...

    found = _byte_level(tmp_path, nothing, vocab_size=32016, architectures=["LlamaForCausalLM"])
    roles = [found[f"tokenizer.ggml.{role}_token_id"] for role in ("prefix", "suffix", "middle", "eot")]
    assert roles == [32007, 32008, 32009, 32010]


def _phi(stories: Path) -> dict[str, Any]:
    """The small SentencePiece vocabulary as that of a Phi-3, with a token for turns."""
    fields = dict(read_gguf(stories / "stories260Ktok512-f32.gguf").metadata)
    fields["tokenizer.ggml.tokens"] = [*fields["tokenizer.ggml.tokens"], "<|user|>"]
    fields["tokenizer.ggml.scores"] = [*fields["tokenizer.ggml.scores"], -1000.0]
    fields["tokenizer.ggml.token_type"] = [*fields["tokenizer.ggml.token_type"], 3]
    return {**fields, "general.architecture": "phi3", "general.name": "Phi-3 mini"}


def test_a_phi_3_says_so_in_its_name(stories: Path, tmp_path: Path) -> None:
    folder = folder_of(_phi(stories), tmp_path / "phi")
    tokenizer = load_tokenizer(folder)
    assert tokenizer("<|user|>\n a") == tokenizer("<|user|>a")
    assert tokenizer("<s>\n a") != tokenizer("<s>a")
    config = json.loads((folder / "config.json").read_text())
    path = write_fields(vocabulary_fields(folder, config, tokenizer), tmp_path / "x.gguf")
    assert read_gguf(path).metadata["general.name"] == "Phi-3"
    other = folder_of({**_phi(stories), "general.name": "other"}, tmp_path / "other")
    fields = vocabulary_fields(other, config, load_tokenizer(other))
    assert "general.name" not in {field.key for field in fields}


def test_fillers_are_left_out_and_come_back(stories: Path, tmp_path: Path) -> None:
    padded = _phi(stories)
    size = len(padded["tokenizer.ggml.tokens"])
    padded["tokenizer.ggml.tokens"] = [*padded["tokenizer.ggml.tokens"], f"[PAD{size}]"]
    padded["tokenizer.ggml.scores"] = [*padded["tokenizer.ggml.scores"], -10000.0]
    padded["tokenizer.ggml.token_type"] = [*padded["tokenizer.ggml.token_type"], 5]
    folder = folder_of(padded, tmp_path / "hf")
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) == size
    config = json.loads((folder / "config.json").read_text())
    found = read_gguf(write_fields(vocabulary_fields(folder, config, tokenizer), tmp_path / "x.gguf")).metadata
    assert found["tokenizer.ggml.tokens"][-1] == f"[PAD{size}]"
    assert found["tokenizer.ggml.token_type"][-1] == 5


def test_a_written_sentencepiece_model_is_one(stories: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentencepiece")
    pieces = list(read_sentencepiece((stories / "tokenizer.model").read_bytes()))
    data = write_sentencepiece(pieces, Settings(add_space=True, unk=0, bos=1, eos=2, pad=None))
    assert list(read_sentencepiece(data)) == pieces
    ours = library.SentencePieceProcessor(model_proto=data)
    theirs = library.SentencePieceProcessor(model_file=str(stories / "tokenizer.model"))
    for probe in ("Once upon a time there was a girl.", "Größe 🚀 12"):
        assert ours.EncodeAsIds(probe) == theirs.EncodeAsIds(probe)
    assert (ours.unk_id(), ours.bos_id(), ours.eos_id(), ours.pad_id()) == (0, 1, 2, -1)


def test_the_self_check_leaves_out_what_llama_cpp_does_otherwise(tmp_path: Path) -> None:
    _small(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    plain = list(check.probe_texts(tokenizer))
    tekken = pretokenizers.rule_named("tekken")
    assert tekken is not None
    assert 0 < len(list(check.probe_texts(tokenizer, tekken))) < len(plain)
    assert all(tekken.agrees_on(probe) for probe in check.probe_texts(tokenizer, tekken))
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert not any("e\u0301" in probe for probe in check.probe_texts(tokenizer))
    assert any("e\u0301" in probe for probe in plain)
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    assert not any(probe.startswith("before") for probe in check.probe_texts(tokenizer))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    assert any(probe.startswith("before") for probe in check.probe_texts(tokenizer))
