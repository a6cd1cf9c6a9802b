"""Answers that are kept: which prompts, what is counted in them, and what no reader is handed."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bytekit import Bytes
from ingot.core.digest import sha256_bytes
from ingot.errors import RefusedInput
from ingot.kit import samples
from ingot.kit.bootstrap import RESAMPLES, ratio_interval, share_interval
from ingot.kit.chat import wanted_text
from ingot.kit.generate import Decoding
from ingot.kit.samples import Prompt, Sample
from stagekit import Recorder


def rows(folder: Path, held_out: Sequence[dict[str, Any]]) -> Path:
    folder.mkdir()
    lines = [json.dumps({"id": f"{index:016x}", **row}) + "\n" for index, row in enumerate(held_out)]
    (folder / "eval.jsonl").write_text("".join(reversed(lines)), encoding="utf-8")
    return folder


def said(*answers: str, ended: str = "end") -> list[Sample]:
    return [Sample(f"{index}", "?", text, len(text.split()), ended) for index, text in enumerate(answers)]


def test_the_first_held_out_prompts_by_content_are_asked(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    folder = rows(
        tmp_path / "data",
        [
            {"prompt": "One", "completion": " two"},
            {"messages": chat},
            {"messages": [{"role": "system", "content": "Be kind."}, *chat]},
            {"prompt": "Which?", "chosen": "this", "rejected": "that"},
            {"messages": chat[:1], "chosen": "Good day.", "rejected": "What?"},
            {"prompt": "not asked", "completion": "x"},
        ],
    )
    found = samples.held_out(folder, 5)
    assert [item.text for item in found] == ["One", "Hi.", "system: Be kind.\nuser: Hi.", "Which?", "Hi."]
    assert [item.id for item in found] == [f"{index:016x}" for index in range(5)]
    assert [wanted_text(item.row or {}) for item in found] == [" two", "Hello.", "Hello.", "this", "Good day."]


@pytest.mark.parametrize("held_out", [[{"text": "a story"}], []])
def test_what_asks_nothing_is_refused(held_out: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(RefusedInput) as caught:
        samples.held_out(rows(tmp_path / "data", held_out), 3)
    assert caught.value.code == "E-SAMPLES-PROMPTS"


def test_prompts_of_a_spec_are_asked_as_the_model_is_made_for() -> None:
    (prompt,) = samples.written(["Say it."])
    assert prompt.id == sha256_bytes(b"Say it.")[:16]
    assert prompt.asked_of(Bytes()) == {"prompt": "Say it.", "completion": ""}
    chat = Bytes()
    chat.template = replace(chat.template, source="a template")
    assert prompt.asked_of(chat)["messages"][0] == {"role": "user", "content": "Say it."}


def test_each_prompt_has_draws_of_its_own_whichever_others_are_asked() -> None:
    backend = Bytes(chances=dict.fromkeys(range(65, 91), 1 / 26))
    prompts = [Prompt(name, name, {"prompt": name}) for name in ("a", "b", "c")]
    decoding = Decoding(20, temperature=1.0, seed=5)
    every = samples.answer(backend, prompts, samples.How(decoding, 100), Recorder())
    assert len({item.answer for item in every}) == 3
    assert samples.answer(backend, prompts[1:2], samples.How(decoding, 100), Recorder()) == every[1:2]
    other = samples.answer(backend, prompts, samples.How(replace(decoding, seed=6), 100), Recorder())
    assert all(one.answer != two.answer for one, two in zip(every, other, strict=True))


def test_a_prompt_that_leaves_no_room_for_its_answer_is_named() -> None:
    prompts = [Prompt("short", "a", {"prompt": "a"}), Prompt("long", "b", {"prompt": "b" * 31})]
    for context, backend in ((40, Bytes("x")), (100, Bytes("x", context=40))):
        with pytest.raises(RefusedInput, match="prompt long of 31 tokens and an answer of 10") as caught:
            samples.answer(backend, prompts, samples.How(Decoding(10), context), Recorder())
        assert caught.value.code == "E-SAMPLES-CONTEXT"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    found = [*said("An ünlikely\n\u2028 answer.", ""), Sample("x", "?", "no", 7, "limit")]
    samples.write(tmp_path / "samples.jsonl", found)
    assert samples.read(tmp_path) == found


@pytest.mark.parametrize(
    "content",
    [
        "", "no json\n", "[]\n", '{"id": "1"}\n', '{"id":"1","prompt":"?","answer":3,"tokens":1,"ended":"end"}\n',
        '{"id":"1","prompt":"?","answer":"a","tokens":1,"ended":"end"}\n' * 2,
    ],
)  # fmt: skip
def test_what_are_no_samples_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text(content)
    with pytest.raises(RefusedInput) as caught:
        samples.read(tmp_path)
    assert caught.value.code == "E-SAMPLES-FILE"


def test_repetition_is_counted_in_runs_of_four_words() -> None:
    assert samples.repetition(["a", "b", "c", "d", "e", "f"]) == 0
    # of abab, baba, abab, baba, abab three are repeated
    assert samples.repetition(["a", "b", "a", "b", "a", "b", "a", "b"]) == 3 / 5
    assert samples.repetition(["a", "b", "c"]) is None


def test_distinct_words_do_not_depend_on_the_length_of_an_answer() -> None:
    draw = random.Random(0)
    vocabulary = [f"w{index}" for index in range(200)]
    short, long = (draw.choices(vocabulary, k=count) for count in (200, 20_000))
    one, two = samples.distinct_words(short), samples.distinct_words(long)
    assert one is not None
    assert two is not None
    assert abs(one - two) < 0.02
    assert len(set(long)) / len(long) < 0.1 * len(set(short)) / len(short), "what is not measured: types by tokens"
    assert samples.distinct_words(["a", *"b" * 25]) == (2 / 25 + 1 / 25) / 2
    assert samples.distinct_words(["a"] * 24) is None


def test_words_are_compared_in_small_letters_without_punctuation() -> None:
    assert samples.words("The CAT, the cat's Straße—5.") == ["the", "cat", "the", "cat", "s", "strasse", "5"]


def test_metrics_of_answers() -> None:
    found = [*said("a b a b a b a b", "one two three four", "no  more", "no more"), Sample("x", "?", "?", 9, "limit")]
    measured, missing = samples.metrics(found, 9)
    values = {name: metric.value for name, metric in measured.items()}
    assert values == {
        "samples": 5, "tokens": 8 + 4 + 2 + 2 + 9, "ended": 4 / 5, "distinct_answers": 4 / 5,
        "repetition": (3 / 5 + 0) / 2,
    }  # fmt: skip
    assert measured["ended"].interval == share_interval(4, 5)
    assert measured["repetition"].n == 2
    assert measured["repetition"].interval == ratio_interval([3 / 5, 0], [1, 1], RESAMPLES)
    assert missing == {"distinct_words": "no answer has 25 words"}


def test_a_sample_of_no_row_held_out_is_refused() -> None:
    asked = [{"id": "0", "prompt": "?", "completion": "!"}]
    assert samples.matched(said("a"), asked) == [(said("a")[0], "!")]
    for row in ({"id": "1"}, {"prompt": "other?"}):
        with pytest.raises(RefusedInput) as caught:
            samples.matched(said("a"), [asked[0] | row])
        assert caught.value.code == "E-SAMPLES-ROWS"
