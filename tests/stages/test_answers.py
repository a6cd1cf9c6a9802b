"""Answers of ``evaluate``: right ones count, and nothing else does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ingot.core.rederive import derive
from ingot.errors import RefusedInput
from ingot.kit import answers
from ingot.kit.backends import Next
from ingot.kit.bootstrap import share_interval
from ingot.kit.chat import Example, Row, Template
from ingot.kit.generate import Decoding, Generation, generate
from ingot.kit.patterns import Matcher
from ingot.stages.evaluate import Evaluate
from stagekit import digest_of, run_stage, stage_of
from tinymodels import chat_model, lettered

FAST = {"repeats": 1, "generation_tokens": 2, "prompt_tokens": 16, "resamples": 1000, "documents": 2}
PROMPTS = ("Once upon a", "The little dog was very", "One day, Lily went to the", "Tom and Mia like to")
END = 0


@dataclass
class Scripted:
    """A backend that says what it is told: letters of a text, a NUL for the token that ends."""

    says: Mapping[str, str]
    context: int = 64
    container: str = "hf"
    precision: str = ""
    parameters: int = 1
    bytes: int = 1
    template: Template = field(default_factory=lambda: Template(None))
    runtime: str = ""
    left: list[int] = field(default_factory=list)
    steps: int = 0

    def encode(self, row: Row, max_length: int) -> Example:
        return Example(self.question(row)[:max_length], 1)

    def logits(self, ids: Sequence[int], first: int) -> Iterator[torch.Tensor]:
        raise NotImplementedError

    def question(self, row: Row) -> list[int]:
        return [ord(char) for char in row["prompt"]]

    def ends(self, token: int) -> bool:
        return token == END

    def text(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def prefill(self, ids: Sequence[int]) -> Next:
        self.left = [ord(char) for char in self.says[self.text(ids)]]
        return self.step(0)

    def step(self, token: int) -> Next:
        del token
        self.steps += 1
        row = np.zeros(ord("…") + 1, np.float32)
        row[self.left.pop(0) if self.left else ord("…")] = 1
        return row


@pytest.fixture(scope="module")
def matcher() -> Iterator[Matcher]:
    made = Matcher(cpu_seconds=1)
    yield made
    made.close()


class Silent:
    """A Progress that nobody watches."""

    def __call__(self, done: float, total: float | None, unit: str, **live: float | str) -> None:
        pass

    def phase(self, name: str) -> None:
        pass


def asked(says: Mapping[str, tuple[str, str | None, str]], matcher: Matcher, most: int = 8) -> list[answers.Answer]:
    """The answers to prompts, each with what is right, its pattern and what the model says."""
    rows: list[dict[str, Any]] = [
        {"id": prompt, "prompt": prompt, "completion": right} | ({"pattern": pattern} if pattern else {})
        for prompt, (right, pattern, _) in says.items()
    ]
    backend = Scripted({prompt: text for prompt, (_, _, text) in says.items()})
    found = answers.questions(rows, None, matcher)
    return answers.ask(backend, found, answers.Limits(most, 64), matcher, Silent())


def test_what_counts_as_right(matcher: Matcher) -> None:
    found = asked(
        {
            "exact": ("yes", None, "yes\0"),
            "space": ("yes", "yes|sure", " yes\n\0"),
            "pattern": ("yes", "yes|sure", "sure\0"),
            "more": ("yes", "yes|sure", "yes, no\0"),
            "wrong": ("yes", "yes|sure", "no\0"),
            "other": ("yes", None, "sure\0"),
            "empty": ("yes", ".*", "\0"),
            "blank": ("yes", ".*", " \n\0"),
        },
        matcher,
    )
    assert [(answer.exact, answer.pattern) for answer in found] == [
        (True, None), (True, True), (False, True), (False, False),
        (False, False), (False, None), (False, False), (False, False),
    ]  # fmt: skip
    assert all(answer.ended for answer in found)
    measured = answers.metrics(found, 8)
    assert measured["exact_match"].value == 2 / 8
    assert measured["pattern_accuracy"].value == 3 / 8, "a row without a pattern is right when it is exact"
    assert measured["answers_ended"].value == 1
    assert (measured["exact_match"].n, measured["exact_match"].unit) == (8, "1")
    assert measured["exact_match"].interval == share_interval(2, 8)


def test_an_answer_stops_at_its_end_and_at_the_most_tokens(matcher: Matcher) -> None:
    ended, cut = asked({"a": ("yes", None, "yes\0and more"), "b": ("yes", "yes", "yes, and")}, matcher, 5)
    assert (ended.answer, ended.tokens, ended.ended, ended.exact) == ("yes", 3, True, True)
    assert (cut.answer, cut.tokens, cut.ended, cut.pattern) == ("yes, ", 5, False, False)
    backend = Scripted({"q": "yes\0"})
    assert generate(backend, [ord("q")], Decoding(3)) == Generation((121, 101, 115), "yes", "limit")
    assert backend.steps == 3, "nothing is computed that cannot become a part of the answer"


def test_without_any_pattern_there_is_no_accuracy_of_patterns(matcher: Matcher) -> None:
    measured = answers.metrics(asked({"a": ("yes", None, "yes\0")}, matcher), 8)
    assert set(measured) == {"exact_match", "answers_ended"}


def test_a_pattern_that_never_ends_gives_an_error_and_no_figure(matcher: Matcher) -> None:
    with pytest.raises(RefusedInput) as refused:
        asked({"a": ("b", r"(a+)+b|b", "a" * 40)}, matcher, 40)
    assert refused.value.code == "E-PATTERN-LIMIT"


def test_the_answer_to_a_preference_is_the_one_that_was_chosen(matcher: Matcher) -> None:
    chat = [{"role": "user", "content": "a?"}]
    for row in ({"prompt": "a?"}, {"messages": chat}):
        asked_for = [{"id": "1", **row, "chosen": "this", "rejected": "that"}]
        assert [question.wanted for question in answers.questions(asked_for, None, matcher)] == ["this"]


def test_what_cannot_be_asked_is_refused(matcher: Matcher) -> None:
    for row, code in (
        ({"id": "1", "text": "a"}, "E-EVAL-ANSWERS"),
        ({"id": "1", "prompt": "a", "completion": "b", "pattern": "c"}, "E-EVAL-PATTERN"),
        ({"id": "1", "prompt": "a", "completion": "b", "pattern": "("}, "E-PATTERN"),
    ):
        with pytest.raises(RefusedInput) as refused:
            answers.questions([row], None, matcher)
        assert refused.value.code == code
    question = answers.Question({"id": "1", "prompt": "a" * 60}, "b", None)
    for room, fits in ((100, 64), (32, 32)):
        with pytest.raises(RefusedInput, match=f"question 1 of 60 tokens .* do not fit {fits}") as refused:
            answers.ask(Scripted({}), [question], answers.Limits(5, room), matcher, Silent())
        assert refused.value.code == "E-EVAL-CONTEXT"


@pytest.mark.parametrize(
    ("count", "of", "interval"),
    [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (8, 10, (0.4902, 0.9433)), (1, 2, (0.0945, 0.9055))],
)
def test_shares_have_wilsons_interval(count: int, of: int, interval: tuple[float, float]) -> None:
    assert share_interval(count, of) == pytest.approx(interval, abs=1e-4)


def write_rows(folder: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    folder.mkdir()
    lines = [json.dumps({"id": f"{index:016x}", **row}) + "\n" for index, row in enumerate(rows)]
    (folder / "eval.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "train.jsonl").write_text("", encoding="utf-8")
    return folder


def read_answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def greedy(folder: Path, prompt: str, most: int) -> str:
    """What transformers' own ``generate`` says."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False)
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def test_both_runtimes_answer_as_generate_does(stories: Path, stories_gguf: Path, tmp_path: Path) -> None:
    """Rows of which two have the model's own answer, one another, and one a pattern that the answer fits."""
    said = [greedy(stories, prompt, 12) for prompt in PROMPTS]
    rows: list[dict[str, Any]] = [{"prompt": p, "completion": s} for p, s in zip(PROMPTS, said, strict=True)]
    rows[2]["completion"] = "nowhere."
    rows[3] |= {"completion": "x", "pattern": "x|[^0-9]+"}
    data = write_rows(tmp_path / "data", rows)
    (tmp_path / "gguf").mkdir()
    shutil.copyfile(stories_gguf, tmp_path / "gguf" / "model.gguf")
    params = {**FAST, "answers": {"max_tokens": 12}}
    for number, candidate in enumerate((stories, tmp_path / "gguf")):
        out, metrics = run_stage(
            "evaluate", params, {"candidate": candidate, "data": data}, tmp_path, name=f"out{number}"
        )
        found = read_answers(out)
        assert [answer["answer"].strip() for answer in found] == [text.strip() for text in said]
        assert metrics["exact_match"].value == 2 / 4
        assert metrics["pattern_accuracy"].value == 3 / 4
        evaluation = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
        assert evaluation["settings"]["answers"] == {"documents": 100, "max_tokens": 12, "pattern": None}
        assert evaluation["metrics"]["pattern_accuracy"]["n"] == 4
        receipt = {"kind": "evaluate", "digest": digest_of(out), "inputs": {}, "metrics": {}}
        folders = {digest_of(out): out}
        again = derive(receipt, folders.get)
        assert again == {name: metrics[name].value for name in ("exact_match", "pattern_accuracy", "answers_ended")}


def test_chats_end_with_their_token_and_the_spec_may_tell_the_pattern(stories: Path, tmp_path: Path) -> None:
    """The model tells stories; with a norm of zeros token 0 is the likeliest, and that is made to end its turn."""
    from ingot.kit import hf

    model = chat_model(stories, tmp_path / "model")
    rows = [{"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": "a."}]} for p in PROMPTS]
    data = write_rows(tmp_path / "data", rows)
    params = {**FAST, "answers": {"documents": 2, "max_tokens": 4, "pattern": "(?s).*"}}
    out, metrics = run_stage("evaluate", params, {"candidate": model, "data": data}, tmp_path, name="talks")
    assert metrics["pattern_accuracy"].value == 1
    assert (metrics["pattern_accuracy"].n, metrics["answers_ended"].value) == (2, 0)
    assert [answer["id"] for answer in read_answers(out)] == ["0" * 16, f"{1:016x}"]
    tensors = dict(hf.iter_tensors(model))
    (model / "model.safetensors").unlink()
    flat = torch.zeros_like(tensors["model.norm.weight"])
    hf.write_safetensors(model / "model.safetensors", {**tensors, "model.norm.weight": flat})
    (model / "generation_config.json").chmod(0o644)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 0]}))
    out, metrics = run_stage("evaluate", params, {"candidate": model, "data": data}, tmp_path, name="silent")
    assert [answer["answer"] for answer in read_answers(out)] == ["", ""]
    assert (metrics["answers_ended"].value, metrics["pattern_accuracy"].value) == (1, 0)


def test_whatever_the_tokenizer_the_same_questions_are_asked(stories: Path, tmp_path: Path) -> None:
    """Scores of other questions do not compare: what does not fit is refused, and no other question takes its place."""
    other = lettered(stories, tmp_path / "other")
    long = "Once upon a time there was a little dog who liked to play in the park with a big red ball"
    prompts = [long, *PROMPTS]
    data = write_rows(
        tmp_path / "data", [{"id": str(at), "prompt": text, "completion": "."} for at, text in enumerate(prompts)]
    )
    params = {**FAST, "max_length": 48, "answers": {"documents": 3, "max_tokens": 4}}
    asked_of: dict[str, list[str]] = {}
    for name, candidate in (("plain", stories), ("lettered", other)):
        room = {"other_tokenizer": "bits_per_byte"}
        out, _ = run_stage("evaluate", params | room, {"candidate": candidate, "data": data}, tmp_path, name=name)
        asked_of[name] = [line["id"] for line in read_answers(out)]
    assert asked_of["plain"] == asked_of["lettered"] == ["0", "1", "2"]
    with pytest.raises(RefusedInput, match="question 0 of ") as refused:
        run_stage("evaluate", params, {"candidate": other, "data": data}, tmp_path, name="refused")
    assert refused.value.code == "E-EVAL-CONTEXT"
    assert "max_length" in (refused.value.hint or "")


def test_what_asks_nothing_measures_nothing(stories: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data", [{"prompt": "Once", "completion": " upon"}] * 2)
    out, metrics = run_stage("evaluate", FAST, {"candidate": stories, "data": data}, tmp_path)
    assert not {"exact_match", "pattern_accuracy"} & set(metrics)
    assert not (out / "answers.jsonl").exists()
    assert "answers" not in stage_of("evaluate", FAST).model_dump(mode="json"), "no key changed with this parameter"
    assert "answers" not in Evaluate().settings()
