"""Real tokenizers, both ways: Hugging Face's ids, the original fields, and llama.cpp's ids from our fields."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import vocabkit
from ingot.errors import RefusedInput
from ingot.kit.gguf import pretokenizers
from ingot.kit.gguf.pretokenizers import RULES, Rule, byte_level_steps, rules_of
from ingot.kit.gguf.reader import read_gguf
from ingot.kit.gguf.tokenizer import pre_tokenizer, write_tokenizer
from ingot.kit.gguf.tokenizer_folder import Added, filler
from ingot.kit.gguf.writer import i32s, text, texts
from ingot.kit.hf import load_tokenizer
from ingot.kit.parity.probes import PROBES

#: Whether a token goes before or after a text is always written: the oldest of the files leave it to llama.cpp.
_AROUND = {"tokenizer.ggml.add_bos_token": (None, False), "tokenizer.ggml.add_eos_token": (None, False)}
#: Vocabulary → what our fields say otherwise, but for the token types (docs/gguf-tokenizers.md explains each).
DIFFERENCES: Mapping[str, Mapping[str, Any]] = {
    "llama-spm": {},
    "phi-3": {},
    "starcoder": {**_AROUND, "tokenizer.ggml.pre": ("starcoder", "smollm")},
    "deepseek-coder": {},
    "gpt-2": _AROUND,
    "qwen2": _AROUND,
    "qwen35": _AROUND,
    "llama-bpe": {**_AROUND, "tokenizer.ggml.add_bos_token": (None, True)},
    "refact": {**_AROUND, "tokenizer.ggml.pre": ("refact", "smollm")},
    "falcon": _AROUND,
    "mpt": {**_AROUND, "tokenizer.ggml.pre": ("mpt", "gpt-2")},
    "deepseek-llm": {},
    "command-r": {"tokenizer.ggml.pre": ("command-r", "smollm")},
    "baichuan": {
        "tokenizer.ggml.add_bos_token": (None, True),
        "tokenizer.ggml.add_eos_token": (None, False),
        "tokenizer.ggml.pre": (None, "default"),
        "tokenizer.ggml.unknown_token_id": (None, 0),
    },
}
_FAST = ("phi-3", "starcoder", "deepseek-coder")
_NO_TEXTS = ("baichuan",)


def _types(fields: Mapping[str, Any]) -> list[int]:
    """The token types that the converter of today gives: fillers unused, what looks like a control token one."""
    rows = zip(fields["tokenizer.ggml.tokens"], vocabkit.plain(fields["tokenizer.ggml.token_type"]), strict=True)
    found = []
    for index, (token, kind) in enumerate(rows):
        looks = kind == 4 and Added(index, token, special=False).looks_special
        found.append(5 if token == filler(index) else 3 if looks else kind)
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _FAST else pytest.mark.slow) for name in DIFFERENCES]
)
def test_a_real_vocabulary_both_ways(name: str, tmp_path: Path) -> None:
    theirs = vocabkit.metadata(name)
    cases = [] if name in _NO_TEXTS else vocabkit.expected(name)
    folder = vocabkit.folder_of(theirs, tmp_path / "hf")
    tokenizer = load_tokenizer(folder)
    for words, ids in cases:
        assert tokenizer(words, add_special_tokens=False)["input_ids"] == ids, words
    path = vocabkit.written(folder, tmp_path / "ours.gguf")
    ours = read_gguf(path).metadata
    found = vocabkit.differences(theirs, ours)
    assert vocabkit.plain(ours["tokenizer.ggml.token_type"]) == _types(theirs)
    named = {key for key in found if key.startswith("tokenizer.chat_template") and key != "tokenizer.chat_template"}
    assert named == ({key for key in theirs if key.startswith("tokenizer.chat_template")} - {"tokenizer.chat_template"})
    rest = {key: pair for key, pair in found.items() if key not in named | {"tokenizer.ggml.token_type"}}
    assert rest == DIFFERENCES[name]
    with vocabkit.opened(path) as vocabulary:
        for words, ids in cases:
            assert vocabulary.ids(words) == ids, words
        for words in PROBES:
            rule = pretokenizers.rule_named(str(ours.get("tokenizer.ggml.pre")))
            if rule is None or rule.agrees_on(words):
                assert vocabulary.ids(words) == tokenizer(words, add_special_tokens=False)["input_ids"], words
        assert vocabulary.ids("a", add=True) == tokenizer("a")["input_ids"]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        pytest.param("aquila", "does not say how it splits", marks=pytest.mark.slow),
        pytest.param("gpt-neox", "does not say how it splits", marks=pytest.mark.slow),
        pytest.param("gemma-4", "'gemma4'", marks=pytest.mark.slow),
        ("bert-bge", "'bert'"),
        pytest.param("nomic-bert-moe", "'t5'", marks=pytest.mark.slow),
    ],
)
def test_other_vocabularies_are_refused_by_name(name: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match=what) as caught:
        write_tokenizer(vocabkit.metadata(name), tmp_path, max_length=8)
    assert caught.value.code == "E-GGUF-TOKENIZER"
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def learned() -> tuple[dict[str, int], list[tuple[str, str]], list[str]]:
    """A vocabulary whose merges cross every border between words, so that each other split gives other ids."""
    words = [probe for probe in PROBES if probe]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings: dict[str, Any] = {"vocab_size": 1200, "initial_alphabet": sorted(alphabet), "max_token_length": 6}
    trained.train_from_iterator(words * 3, trainers.BpeTrainer(show_progress=False, **settings))
    model = json.loads(trained.to_str())["model"]
    pieces = [piece for probe in words for piece in probe.split(" ")]
    pieces += [" ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "22", "333", "4444", "!!", "/", "\n/", "中文", "é", "É"]
    dice = random.Random(4)
    mixed = ["".join(dice.choice(pieces) for _ in range(8)) for _ in range(250)]
    return model["vocab"], [(left, right) for left, right in model["merges"]], words + mixed


def _tokenizers(rule: Rule, name: str, learned: Any, tmp_path: Path) -> tuple[Tokenizer, Path]:
    vocab, merges, _ = learned
    ours = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=rule.ignore_merges))
    ours.pre_tokenizer = pre_tokenizer(rule)
    fields = [
        text("tokenizer.ggml.model", "gpt2"),
        text("tokenizer.ggml.pre", name),
        texts("tokenizer.ggml.tokens", sorted(vocab, key=lambda token: vocab[token])),
        i32s("tokenizer.ggml.token_type", [1] * len(vocab)),
        texts("tokenizer.ggml.merges", [" ".join(pair) for pair in merges]),
    ]
    return ours, vocabkit.write_fields(fields, tmp_path / f"{name}.gguf")


@pytest.mark.parametrize("rule", RULES, ids=[rule.names[0] for rule in RULES])
def test_a_rule_splits_as_llama_cpp_does(rule: Rule, learned: Any, tmp_path: Path) -> None:
    for name in rule.names:
        ours, path = _tokenizers(rule, name, learned, tmp_path)
        compared = 0
        with vocabkit.opened(path) as vocabulary:
            for words in learned[2]:
                if rule.agrees_on(words):
                    compared += 1
                    assert ours.encode(words).ids == vocabulary.ids(words), (name, words)
        assert compared > 100


def test_another_rule_gives_other_ids(learned: Any, tmp_path: Path) -> None:
    """The texts tell the rules apart: with the name of another one, some of them get other ids."""
    for place, (rule, other) in enumerate(zip(RULES, RULES[1:] + RULES[:1], strict=True)):
        (tmp_path / str(place)).mkdir()
        ours, _ = _tokenizers(rule, rule.names[0], learned, tmp_path / str(place))
        _, path = _tokenizers(other, other.names[0], learned, tmp_path / str(place))
        if rule.steps != other.steps:
            with vocabkit.opened(path) as vocabulary:
                assert any(ours.encode(words).ids != vocabulary.ids(words) for words in learned[2]), rule.names[0]


def test_where_llama_cpp_splits_otherwise_is_told() -> None:
    rule = pretokenizers.rule_named("tekken")
    assert rule is not None
    assert rule.agrees_on("plain Text, 中文 and русский")
    assert not rule.agrees_on("a\u0301")
    assert not rule.agrees_on("aÉ")


@pytest.mark.parametrize("rule", RULES, ids=[rule.names[0] for rule in RULES])
def test_a_rule_is_found_by_its_steps(rule: Rule) -> None:
    steps = byte_level_steps(json.loads(pre_tokenizer(rule).__getstate__()))
    assert steps is not None
    assert rule in list(rules_of(steps))
    assert all(list(rules_of(spelling)) == [rule] for spelling in rule.spellings)


def test_no_name_stands_for_two_rules() -> None:
    names = [name for rule in RULES for name in rule.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "steps",
    [
        [{"type": "ByteLevel", "use_regex": False}, {"type": "Digits", "individual_digits": True}],
        [{"type": "ByteLevel", "add_prefix_space": True}],
        [{"type": "Split", "pattern": {"Regex": pretokenizers.LLAMA3}, "behavior": "Removed", "invert": False},
         {"type": "ByteLevel", "use_regex": False}],
        [{"type": "Punctuation", "behavior": "Isolated"}, {"type": "ByteLevel"}],
    ],
)  # fmt: skip
def test_steps_that_only_look_alike_have_no_name(steps: list[dict[str, Any]]) -> None:
    found = byte_level_steps({"type": "Sequence", "pretokenizers": steps})
    assert found is not None
    assert not list(rules_of(found))
