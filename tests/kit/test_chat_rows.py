"""Rows as text and ids: what is learned begins where the prompt ends, in every form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ggufkit import TEMPLATE, write_llama
from ingot.errors import RefusedInput
from ingot.kit import chat, hf
from ingot.kit.gguf.reader import read_gguf
from ingot.kit.gguf.tokenizer import write_tokenizer

ROW = {"messages": [{"role": "user", "content": "the 42?"}, {"role": "assistant", "content": " to the\nend"}]}


@pytest.fixture
def tokenizer(tmp_path: Path, stories: Path) -> Any:
    """A byte-level tokenizer with a chat template."""
    metadata = read_gguf(write_llama(tmp_path / "x.gguf")).metadata
    (tmp_path / "t").mkdir()
    write_tokenizer(metadata, tmp_path / "t", max_length=128)
    (tmp_path / "t" / "config.json").write_bytes((stories / "config.json").read_bytes())
    return hf.load_tokenizer(tmp_path / "t")


def test_a_chat_learns_the_last_answer_and_its_end(tokenizer: Any) -> None:
    example = chat.encode(tokenizer, ROW, max_length=1000)
    assert tokenizer.decode(example.ids[example.labels_from :]) == " to the\nend<|im_end|>\n"
    text = tokenizer.apply_chat_template(ROW["messages"], tokenize=False)
    assert example.ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    prompt, full = chat.render(ROW, chat.Template.of(tokenizer))
    assert full == text
    assert prompt == tokenizer.apply_chat_template(ROW["messages"][:-1], tokenize=False, add_generation_prompt=True)


def test_ids_beyond_the_length_are_cut(tokenizer: Any) -> None:
    whole = chat.encode(tokenizer, ROW, max_length=1000)
    cut = chat.encode(tokenizer, ROW, max_length=whole.labels_from + 2)
    assert (cut.ids, cut.scored) == (whole.ids[: whole.labels_from + 2], 2)
    assert chat.encode(tokenizer, ROW, max_length=3).scored == 0


def test_a_completion_ends_with_the_end_token(stories: Path) -> None:
    tokenizer = hf.load_tokenizer(stories)
    example = chat.encode(tokenizer, {"prompt": "Once upon", "completion": " a time"}, max_length=100)
    assert example.ids[0] == tokenizer.bos_token_id
    assert example.ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(example.ids[example.labels_from : -1]).strip() == "a time"


def test_text_is_learned_from_its_second_token(stories: Path) -> None:
    tokenizer = hf.load_tokenizer(stories)
    example = chat.encode(tokenizer, {"text": "Once upon a time"}, max_length=100)
    assert example.ids == tokenizer("Once upon a time")["input_ids"]
    assert example.labels_from == 1


def test_without_a_template_chats_are_refused(stories: Path) -> None:
    with pytest.raises(RefusedInput) as error:
        chat.encode(hf.load_tokenizer(stories), ROW, max_length=100)
    assert error.value.code == "E-CHAT-TEMPLATE"


def test_a_template_that_refuses_says_so() -> None:
    template = chat.Template("{{ raise_exception('no system here') }}")
    with pytest.raises(RefusedInput, match="no system here") as error:
        template.apply(ROW["messages"])
    assert error.value.code == "E-CHAT-RENDER"


@pytest.mark.fault("M10", "a chat template that reaches for Python's internals")
def test_a_template_cannot_reach_out_and_sees_no_clock() -> None:
    with pytest.raises(RefusedInput):
        chat.Template("{{ ''.__class__.__mro__[1].__subclasses__() }}").apply(ROW["messages"])
    assert chat.Template("{{ strftime_now('%Y-%m-%d') }}").apply(ROW["messages"]) == "2024-07-26"
    guarded = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}none{% endif %}"
    assert chat.Template(guarded).apply(ROW["messages"]) == "none"


def test_marks_of_the_assistant_print_nothing() -> None:
    marked = TEMPLATE.replace("{{ m['content'] }}", "{% generation %}{{ m['content'] }}{% endgeneration %}")
    assert chat.Template(marked).apply(ROW["messages"]) == chat.Template(TEMPLATE).apply(ROW["messages"])


def test_rows_are_read_in_order_and_damage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"id": "1", "text": "a\u2028b"}\n{"id": "2", "text": "c"}\n')
    assert [row["id"] for row in chat.read_rows(tmp_path, "train")] == ["1", "2"]
    (tmp_path / "eval.jsonl").write_text('{"id": "1"}\n')
    for split in ("eval", "other"):
        with pytest.raises(RefusedInput) as error:
            list(chat.read_rows(tmp_path, split))
        assert error.value.code == "E-NOT-DATASET"
