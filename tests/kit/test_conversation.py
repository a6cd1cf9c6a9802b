"""Conversations over backends: what is picked, what is shown when, what is remembered."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import make_llama

from ingot.errors import MissingTool, RefusedInput, UsageError
from ingot.kit import hf
from ingot.kit.backends import Next
from ingot.kit.chat import Example, Row, Template
from ingot.kit.runtime import opening
from ingot.kit.runtime.conversation import Conversation, Words
from stagekit import run_stage

END = 256


class Bytes:
    """A backend whose tokens are bytes and which says what it is told."""

    container, precision, parameters, bytes, runtime = "bytes", "", 1, 1, "bytes"

    def __init__(self, says: str = "", *, template: str | None = None, context: int = 1000) -> None:
        self.says = [*says.encode(), END]
        self.context = context
        self.template = Template(template)
        self.read: list[bytes] = []

    def question(self, row: Row) -> list[int]:
        return list(
            row["prompt"].encode() if "prompt" in row else str([m["content"] for m in row["messages"]]).encode()
        )

    def encode(self, row: Row, max_length: int) -> Example:
        raise NotImplementedError

    def logits(self, ids: Sequence[int], first: int) -> Iterator[torch.Tensor]:
        raise NotImplementedError

    def ends(self, token: int) -> bool:
        return token == END

    def text(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")

    def prefill(self, ids: Sequence[int]) -> Next:
        self.read.append(bytes(ids))
        self.left = list(self.says)
        return self.step(0)

    def step(self, token: int) -> Next:
        row = np.zeros(END + 1, np.float32)
        row[self.left.pop(0)] = 9
        return row


@given(st.text(max_size=30), st.text(min_size=1, max_size=30).filter(lambda text: "\ufffd" not in text))
def test_pieces_are_whole_characters_and_together_the_answer(prompt: str, answer: str) -> None:
    words = Words(Bytes(), list(prompt.encode()))
    pieces = [words.add(token) for token in answer.encode()] + [words.rest()]
    assert "".join(pieces) == answer
    assert not any("\ufffd" in piece for piece in pieces)


def test_what_ends_within_a_character_is_shown_as_that() -> None:
    words = Words(Bytes(), [])
    assert [words.add(token) for token in "aß".encode()[:2]] == ["a", ""]
    assert words.rest() == "\ufffd"


def test_a_tokenizer_that_drops_the_first_space_is_read_in_context(stories: Path) -> None:
    tokenizer = hf.load_tokenizer(stories)

    class Stories(Bytes):
        def text(self, ids: Sequence[int]) -> str:
            return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    prompt, whole = (tokenizer(text)["input_ids"] for text in ("Once upon", "Once upon a time there was a dög 🐶 ."))
    assert whole[: len(prompt)] == prompt
    words = Words(Stories(), prompt)
    pieces = [words.add(token) for token in whole[len(prompt) :]] + [words.rest()]
    assert "".join(pieces) == " a time there was a dög 🐶 ."
    assert not any("\ufffd" in piece for piece in pieces)


def test_what_was_said_is_asked_again_with_the_next_question() -> None:
    backend = Bytes("Yes.", template="a template")
    talk = Conversation(backend, 1000)
    assert "".join(talk.ask("One?", 50)) == "Yes."
    assert "".join(talk.ask("Two?", 2)) == "Ye"
    assert "".join(talk.ask("Three?", 50)) == "Yes."
    assert backend.read[1:] == [
        b"['One?', 'Yes.', 'Two?', '']",
        b"['One?', 'Yes.', 'Two?', 'Ye', 'Three?', '']",
    ]


def test_without_a_template_each_text_is_continued_anew() -> None:
    backend = Bytes("Yes.")
    talk = Conversation(backend, 1000)
    assert ["".join(talk.ask(text, 50)) for text in ("One", "Two")] == ["Yes."] * 2
    assert backend.read == [b"One", b"Two"]


def test_the_context_ends_answers_and_then_the_conversation() -> None:
    backend = Bytes("Yes, of course.", template="a template", context=40)
    talk = Conversation(backend, 30)
    assert "".join(talk.ask("0123456789", 50)) == "Yes, of course."[: 30 - len("['0123456789', '']")]
    assert talk.cut
    with pytest.raises(UsageError) as caught:
        list(talk.ask("more", 50))
    assert caught.value.code == "E-CONTEXT"
    talk = Conversation(backend, 1000)
    assert talk.context == 40
    assert "".join(talk.ask("0", 3)) == "Yes"
    assert not talk.cut


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("onnx", {}),
        ("coreml", {"sequence_lengths": [64], "weights": "float32", "compute_precision": "float32"}),
    ],
)
def test_exports_answer_as_their_source_does(kind: str, params: Mapping[str, Any], tmp_path: Path) -> None:
    model = make_llama(tmp_path / "hf", dtype="float32")
    run_stage(kind, {**params, "parity": {"texts": 1, "max_length": 8}}, {"model": model}, tmp_path)
    said = []
    for place in (model, tmp_path / "out"):
        container, found = opening.find(place)
        talk = Conversation(opening.load(container, found, dtype="float32", context=64, threads=1), 64)
        said.append(["".join(talk.ask(text, 8)) for text in ("the cat", "and?")])
    assert said[0] == said[1]
    assert all(said[0])


def test_what_lies_somewhere_is_found_or_named(tmp_path: Path) -> None:
    parts = [tmp_path / f"model-0000{number}-of-00002.gguf" for number in (1, 2)]
    for path in parts:
        path.write_bytes(b"GGUF")
    assert opening.find(tmp_path) == ("gguf", parts[0])
    assert opening.find(parts[1]) == ("gguf", parts[1])
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="several models"):
        opening.find(tmp_path)
    package = tmp_path / "coreml" / "model.mlpackage"
    package.mkdir(parents=True)
    assert opening.find(package) == opening.find(package.parent) == ("coreml", package.parent)
    graph = tmp_path / "onnx" / "model.onnx"
    graph.parent.mkdir()
    graph.write_bytes(b"")
    assert opening.find(graph) == opening.find(graph.parent) == ("onnx", graph.parent)
    assert opening.note("coreml") is not None or sys.platform == "darwin"
    assert opening.note("gguf") is None


def test_a_checkpoint_that_its_library_does_not_take_is_one_message(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "hf")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_attention_heads": "four"}))
    with pytest.raises(RefusedInput) as caught:
        opening.load("hf", model, dtype="float32", context=64, threads=1)
    assert caught.value.code == "E-CHAT-MODEL"


def test_a_package_that_is_missing_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ingot.kit.backends.gguf", None)
    with pytest.raises(MissingTool) as caught:
        opening.load("gguf", tmp_path, dtype="float32", context=64, threads=1)
    assert (caught.value.code, caught.value.hint) == ("E-MISSING-TOOL", "pip install 'ingot[gguf]'")
