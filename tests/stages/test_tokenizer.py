from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tokenizers import normalizers

import vocabkit
from ingot.errors import RefusedInput, StageFailed
from ingot.kit import chat, hf, learn_tokenizer
from ingot.kit.gguf import pretokenizers
from ingot.kit.parity.probes import PROBES
from stagekit import digest_of, run_stage, stage_of
from tinymodels import dataset

SPLITS = ("smollm", "gpt-2", "llama-bpe", "qwen2")


def rows(folder: Path, train: list[dict[str, Any]], held_out: list[dict[str, Any]] | None = None) -> Path:
    folder.mkdir()
    for name, found in (("train", train), ("eval", held_out or [])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture(scope="module")
def learned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return run_stage("tokenizer", {"vocab_size": 300}, {"data": data}, tmp_path_factory.mktemp("learned"))


def some_texts(count: int) -> list[str]:
    """Texts of characters of every plane and width, with the words and marks that rules cut at."""
    dice = random.Random(3)
    pieces = ["Tom", " has", "\n", "\r\n", "\t", "  ", "don't", "12", "345", "!?", "é", "中文", "🙂", "\x00", "\u200d"]
    ranges = ((0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000))
    texts = []
    for _ in range(count):
        parts = [dice.choice(pieces) for _ in range(6)]
        parts += [chr(dice.randrange(*dice.choice(ranges))) for _ in range(6)]
        dice.shuffle(parts)
        texts.append("".join(parts))
    return texts


def test_it_learns_as_many_tokens_as_asked_and_measures_them(learned: tuple[Path, Any], data: Path) -> None:
    out, metrics = learned
    assert sorted(path.name for path in out.iterdir()) == [
        "chat_template.jinja", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    tokenizer = hf.load_lone_tokenizer(out)
    assert metrics["vocabulary"].value == len(tokenizer) == 300
    assert (
        metrics["merges"].value
        == 300 - 256 - 4
        == len(json.loads((out / "tokenizer.json").read_text())["model"]["merges"])
    )
    size = count = 0
    for row in chat.read_rows(data, "eval"):
        for turn in row["messages"]:
            text = f"{turn['role']}\n{turn['content']}"
            size += len(text.encode()) + 1  # the line break after a turn
            count += len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1
    found = metrics["bytes_per_token"]
    assert (found.value, found.n) == (pytest.approx(size / count), count)
    assert found.interval is not None
    assert found.interval[0] <= found.value <= found.interval[1]
    assert metrics["documents_read_back"].value == 12


def test_any_text_comes_back_and_every_byte_has_a_token(learned: tuple[Path, Any]) -> None:
    tokenizer = hf.load_lone_tokenizer(learned[0])
    decode = {token: index for token, index in tokenizer.get_vocab().items() if len(token) == 1}
    assert len(decode) == 256
    for text in some_texts(300):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_chats_are_rendered_and_texts_begin_with_the_begin_token(learned: tuple[Path, Any]) -> None:
    tokenizer = hf.load_lone_tokenizer(learned[0])
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    prompt, full = chat.render(row, chat.Template.of(tokenizer))
    assert prompt == "<|startoftext|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert full == prompt + "Ho<|im_end|>\n"
    example = chat.encode(tokenizer, row, max_length=99)
    assert tokenizer.decode(example.ids[example.labels_from :]) == "Ho<|im_end|>\n"
    assert tokenizer("Hi")["input_ids"][0] == tokenizer.bos_token_id == 0
    pair = chat.encode(tokenizer, {"prompt": "1+1=", "completion": "2"}, max_length=99)
    assert pair.ids[-1] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_nothing_is_merged_across_a_special_token() -> None:
    plan = learn_tokenizer.Plan(400, 1, "gpt-2", chats=True)
    row = {"messages": [{"role": "user", "content": "a<|im_end|>b"}]}
    assert list(learn_tokenizer.texts_of([row], plan)) == ["user\na", "b", "\n"]
    assert list(learn_tokenizer.texts_of([{"prompt": "x", "completion": "y"}], plan)) == ["xy"]


def test_equal_texts_give_equal_bytes_on_any_number_of_threads(
    data: Path, learned: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, parallel in enumerate(("false", "true", "true")):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        out, _ = run_stage("tokenizer", {"vocab_size": 300}, {"data": data}, tmp_path, name=str(number))
        assert digest_of(out) == digest_of(learned[0])


@pytest.mark.parametrize("split", SPLITS)
def test_llama_cpp_gives_the_same_ids(data: Path, tmp_path: Path, split: str) -> None:
    params = {"vocab_size": 320, "split": split, "min_frequency": 1, "special_tokens": ["<|tool|>"]}
    out, _ = run_stage("tokenizer", params, {"data": data}, tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(out, folder)
    config = {"vocab_size": 320, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = hf.load_tokenizer(folder)
    rule = pretokenizers.rule_named(split)
    assert rule is not None
    with vocabkit.opened(vocabkit.written(folder, tmp_path / "vocabulary.gguf")) as vocabulary:
        for text in [*PROBES, *some_texts(60)]:
            if rule.agrees_on(text):
                assert vocabulary.ids(text) == tokenizer(text, add_special_tokens=False)["input_ids"], text
        for text in ("a", "a<|tool|>b<|im_end|>\n"):
            assert vocabulary.ids(text, add=True, special=True) == tokenizer(text)["input_ids"]
    assert tokenizer("a<|tool|>")["input_ids"][-1] == 4


def test_a_text_that_does_not_come_back_fails_the_build(learned: tuple[Path, Any]) -> None:
    tokenizer = hf.load_lone_tokenizer(learned[0])
    assert learn_tokenizer.read_back(tokenizer, ["Tom É"]).bytes == 6
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(StageFailed, match="does not come back") as caught:
        learn_tokenizer.read_back(tokenizer, ["so Tom"])
    assert (caught.value.code, caught.value.facts) == ("E-TOKENIZER-LOSSY", ("'Tom' came back as 'tom'",))


def test_texts_need_no_chat_template_and_chats_do(data: Path, tmp_path: Path) -> None:
    texts = rows(tmp_path / "texts", [{"text": "to be or not to be"}])
    params = {"vocab_size": 270, "chat_template": "none"}
    out, metrics = run_stage("tokenizer", params, {"data": texts}, tmp_path)
    assert not (out / "chat_template.jinja").exists()
    assert set(metrics) == {"vocabulary", "merges"}
    tokenizer = hf.load_lone_tokenizer(out)
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer("to be")["input_ids"][0] == tokenizer.bos_token_id
    with pytest.raises(RefusedInput) as caught:
        run_stage("tokenizer", params, {"data": data}, tmp_path, name="chats")
    assert caught.value.code == "E-CHAT-TEMPLATE"


def test_a_small_text_gives_fewer_tokens_than_asked(tmp_path: Path) -> None:
    _, metrics = run_stage("tokenizer", {}, {"data": rows(tmp_path / "data", [{"text": "abab"}])}, tmp_path)
    assert metrics["vocabulary"].value == 256 + 4 + metrics["merges"].value < 8192


def test_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    for number, found in enumerate(([], [{"text": ""}])):
        with pytest.raises(RefusedInput) as caught:
            run_stage("tokenizer", {}, {"data": rows(tmp_path / f"data{number}", found)}, tmp_path, name=f"out{number}")
        assert caught.value.code == "E-DATASET-EMPTY"
        assert list((tmp_path / f"out{number}").iterdir()) == []


@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({"vocab_size": 200}, "vocab_size"),
        ({"vocab_size": 259}, "256 bytes and 4 special tokens"),
        ({"special_tokens": ["<|im_end|>"]}, "named twice"),
        ({"special_tokens": [" "]}, "is empty"),
        ({"split": "words"}, "split"),
        ({"min_frequency": 0}, "min_frequency"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_the_spec(params: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        stage_of("tokenizer", params)
