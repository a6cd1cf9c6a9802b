"""Judges of pairs: an unsound one shows, a verdict counts in both orders only, and judgements are of these answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from bytekit import END, Bytes
from ingot.core.digest import sha256_bytes
from ingot.core.stage import Metric
from ingot.errors import RefusedInput
from ingot.kit.backends import Next
from ingot.kit.bootstrap import ratio_interval, share_interval
from ingot.kit.chat import Example, Row
from ingot.kit.judge import ask, metrics, pairs
from ingot.kit.judge.ask import Questions, Spelled
from ingot.kit.judge.pairs import Judged, Pair
from ingot.kit.samples import Sample
from stagekit import Recorder

WORDS: dict[pairs.Verdict, str] = {"first": "A", "second": "B", "tie": "C"}
QUESTIONS = Questions("{criteria}|{prompt}|{first}|{second}|", "longer", WORDS)
Rule = Callable[[str, str], str]


def sample(name: str, answer: str) -> Sample:
    return Sample(name, f"q{name}", answer, 1, "end")


def pair(name: str, candidate: str, reference: str) -> Pair:
    return Pair(sample(name, candidate), sample(name, reference))


@dataclass
class Judging(Bytes):
    """A judge with a rule: what it wants to say of the answers shown first and second; it babbles when it is let."""

    rule: Rule
    context: int = 1000
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(context=self.context)

    def encode(self, row: Row, max_length: int) -> Example:
        return Example([*row["prompt"].encode(), *row["completion"].encode(), END][:max_length], 1)

    def prefill(self, ids: Sequence[int]) -> Next:
        text = self.text(ids)
        self.asked.append(text)
        _, _, first, second, _ = text.split("|")
        row = np.zeros(END + 1, np.float32)
        row[ord("x")] = 9  # what it would say if everything were allowed
        row[ord(self.rule(first, second))] = 5
        return row

    def step(self, token: int) -> Next:
        raise AssertionError("one token tells the verdict")


PAIRS = [pair("1", "longer", "short"), pair("2", "no", "better"), pair("3", "same", "also"), pair("4", "eq", "eq")]


def judged_by(rule: Rule, found: Sequence[Pair] = PAIRS) -> tuple[list[Judged], dict[str, Metric], dict[str, str]]:
    said = ask.ask(Judging(rule), QUESTIONS, found, 1000, Recorder())
    return said, *metrics.metrics(said, "it", 1000)


def values(measured: dict[str, Metric]) -> dict[str, float]:
    return {name: metric.value for name, metric in measured.items()}


def by_length(first: str, second: str) -> str:
    return "C" if len(first) == len(second) else "A" if len(first) > len(second) else "B"


def test_a_sound_judge_is_heard() -> None:
    said, measured, missing = judged_by(by_length)
    assert [item.outcome for item in said] == ["win", "loss", "tie", "tie"]
    assert values(measured) == {
        "pairs": 4, "win_rate": 1 / 4, "loss_rate": 1 / 4, "tie_rate": 2 / 4,
        "agreement": 1, "position_bias": 0, "agreement_kappa": 1,
    }  # fmt: skip
    assert missing == {}
    assert measured["win_rate"].interval == share_interval(1, 4)
    assert (measured["agreement"].n, measured["agreement"].interval) == (3, share_interval(3, 3))


@pytest.mark.parametrize(("says", "bias"), [("A", 1), ("B", -1)])
def test_a_judge_that_always_names_one_position_shows_and_gives_no_wins(says: str, bias: int) -> None:
    said, measured, _ = judged_by(lambda *_: says)
    assert {item.outcome for item in said} == {"tie"}
    found = values(measured)
    assert (found["position_bias"], found["agreement"], found["agreement_kappa"]) == (bias, 0, 0)
    assert (found["win_rate"], found["loss_rate"], found["tie_rate"]) == (0, 0, 1)


def test_a_judge_that_always_says_tie_says_nothing_of_chance() -> None:
    _, measured, missing = judged_by(lambda *_: "C")
    assert values(measured)["position_bias"] == 0
    assert values(measured)["tie_rate"] == 1
    assert set(missing) == {"agreement_kappa"}


def test_a_win_in_one_order_alone_is_a_tie() -> None:
    for first_shown, second_shown, outcome in (
        ("first", "second", "win"), ("first", "tie", "tie"), ("tie", "second", "tie"), ("first", "first", "tie"),
        ("second", "first", "loss"), ("tie", "first", "tie"), ("tie", "tie", "tie"), (None, None, "tie"),
    ):  # fmt: skip
        item = Judged("1", "a", "b", first_shown, second_shown)  # type: ignore[arg-type]
        assert item.outcome == outcome


def test_equal_answers_are_a_tie_without_being_asked() -> None:
    judge = Judging(by_length)
    said = ask.ask(judge, QUESTIONS, PAIRS, 1000, Recorder())
    assert judge.asked == [
        f"longer|q{name}|{first}|{second}| "
        for name, one, two in (("1", "longer", "short"), ("2", "no", "better"), ("3", "same", "also"))
        for first, second in ((one, two), (two, one))
    ]
    assert said[3].outcomes is None
    _, measured, missing = judged_by(by_length, PAIRS[3:])
    assert values(measured) == {"pairs": 1, "win_rate": 0, "tie_rate": 1, "loss_rate": 0}
    assert set(missing) == {"agreement", "agreement_kappa", "position_bias"}


def test_the_soundness_of_a_judge_has_its_intervals_over_pairs() -> None:
    draw = np.random.default_rng(4)
    said = [
        Judged(str(index), "a", "b", *draw.choice(["first", "second", "tie"], 2, p=[0.5, 0.3, 0.2]))
        for index in range(60)
    ]
    measured, _ = metrics.metrics(said, "it", 1000)
    outcomes = [item.outcomes or ("tie", "tie") for item in said]
    agreed = sum(one == two for one, two in outcomes) / 60
    chance = (
        sum(
            sum(one == name for one, _ in outcomes) * sum(two == name for _, two in outcomes) for name in pairs.OUTCOMES
        )
        / 60**2
    )
    assert measured["agreement"].value == agreed
    assert measured["agreement_kappa"].value == pytest.approx((agreed - chance) / (1 - chance))
    low, high = measured["agreement_kappa"].interval or (1, 0)
    assert low < measured["agreement_kappa"].value < high
    bias = [
        sum({"first": 1, "second": -1}.get(it or "", 0) for it in (item.first_shown, item.second_shown))
        for item in said
    ]
    assert measured["position_bias"].value == sum(bias) / 120
    assert measured["position_bias"].interval == ratio_interval(bias, [2] * 60, 1000)


def test_verdicts_of_several_tokens_are_spelled_and_nothing_else() -> None:
    class Spelling(Judging):
        def prefill(self, ids: Sequence[int]) -> Next:
            super().prefill(ids)
            return self.step(0)

        def step(self, token: int) -> Next:
            row = np.full(END + 1, 1, np.float32)
            row[[ord("x"), ord("l"), ord("o")]] = 9, 5, 7
            return row

    words: dict[pairs.Verdict, str] = {"first": "left", "second": "low", "tie": "equal"}
    questions = Questions("{criteria}|{prompt}|{first}|{second}|", "", words)
    (said,) = ask.ask(Spelling(by_length), questions, PAIRS[:1], 1000, Recorder())
    assert (said.first_shown, said.second_shown) == ("second", "second"), "l, then o where e is allowed, too"


def test_the_mask_ends_once_one_text_is_left() -> None:
    spelled = Spelled([[5, 7, 9], [5, 8], [6]])
    assert [np.flatnonzero(spelled(tokens)).tolist() for tokens in ([], [5], [6], [5, 7], [1])] == [
        [5, 6], [7, 8], [], [], [],
    ]  # fmt: skip


def test_a_verdict_that_begins_another_is_refused() -> None:
    class Endless(Judging):
        def encode(self, row: Row, max_length: int) -> Example:
            return Example(super().encode(row, max_length).ids[:-1], 1)

    questions = Questions("{criteria}|{prompt}|{first}|{second}|", "", {"first": "A", "second": "AB"})
    with pytest.raises(RefusedInput) as caught:
        ask.ask(Endless(by_length), questions, PAIRS[:1], 1000, Recorder())
    assert caught.value.code == "E-JUDGE-WORDS"


def test_a_question_longer_than_the_judge_reads_is_refused() -> None:
    long = [pair("1", "a" * 90, "b")]
    for context, judge in ((60, Judging(by_length)), (1000, Judging(by_length, context=60))):
        with pytest.raises(RefusedInput) as caught:
            ask.ask(judge, QUESTIONS, long, context, Recorder())
        assert caught.value.code == "E-JUDGE-CONTEXT"


def test_answers_are_shown_as_they_are() -> None:
    """What stands in for a placeholder is no template: an answer cannot show the judge another one."""
    assert QUESTIONS.text("{second}", "{first}{criteria}", "{{x}}") == "longer|{second}|{first}{criteria}|{{x}}|"


def test_answers_to_other_prompts_make_no_pairs() -> None:
    one = [sample("1", "a"), sample("2", "b")]
    assert [item.candidate.id for item in pairs.pairs(one, one)] == ["1", "2"]
    for other in (one[:1], [one[0], sample("3", "b")], [one[0], Sample("2", "other?", "b", 1, "end")]):
        with pytest.raises(RefusedInput) as caught:
            pairs.pairs(one, other)
        assert caught.value.code == "E-JUDGE-PAIRS"


def judgement(item: Pair, verdict: str, *, swapped: bool = False) -> dict[str, str]:
    first, second = item.orders()[swapped]
    return {"id": first.id, "first": first.digest, "second": second.digest, "verdict": verdict}


def given(tmp_path: Path, lines: Sequence[object], found: Sequence[Pair]) -> list[Judged]:
    (tmp_path / "judgements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return pairs.given(tmp_path, found)


def test_what_one_judge_wrote_can_be_read_as_judgements_made_elsewhere(tmp_path: Path) -> None:
    said, _, _ = judged_by(by_length)
    pairs.write(tmp_path, said)
    assert pairs.given(tmp_path, PAIRS) == said
    lines = [json.loads(line) for line in (tmp_path / "judgements.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert lines[1] == {
        "id": "1", "first": sha256_bytes(b"short"), "second": sha256_bytes(b"longer"), "verdict": "second",
    }  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [row["outcome"] for row in rows] == ["win", "loss", "tie", "tie"]


def test_judgements_of_other_answers_are_never_used(tmp_path: Path) -> None:
    old, now = pair("1", "what it said then", "short"), PAIRS[0]
    lines = [judgement(old, "first"), judgement(old, "second", swapped=True)]
    assert given(tmp_path, lines, [old])[0].outcome == "win"
    with pytest.raises(RefusedInput) as caught:
        given(tmp_path, lines, [now])
    assert caught.value.code == "E-JUDGEMENTS-OTHER"
    # judgements of several candidates may lie together
    both = [*lines, judgement(now, "second"), judgement(now, "first", swapped=True)]
    assert given(tmp_path, both, [now])[0].outcome == "loss"
    with pytest.raises(RefusedInput) as caught:
        given(tmp_path, both, [pair("2", now.candidate.answer, now.reference.answer)])
    assert caught.value.code == "E-JUDGEMENTS-MISSING", "the same answers to another prompt"


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([judgement(PAIRS[0], "first")], "E-JUDGEMENTS-MISSING"),
        ([], "E-JUDGEMENTS-MISSING"),
        ([judgement(PAIRS[0], "first"), judgement(PAIRS[0], "tie")], "E-JUDGEMENTS-TWICE"),
        ([judgement(PAIRS[0], "win")], "E-JUDGEMENTS-FILE"),
        ([judgement(PAIRS[0], "first") | {"first": "short"}], "E-JUDGEMENTS-FILE"),
        ([["first"]], "E-JUDGEMENTS-FILE"),
        ([{"id": "1", "verdict": "first"}], "E-JUDGEMENTS-FILE"),
    ],
)
def test_judgements_that_say_less_than_is_needed_are_refused(lines: list[object], code: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedInput) as caught:
        given(tmp_path, lines, PAIRS[:1])
    assert caught.value.code == code


def test_no_file_of_judgements_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedInput) as caught:
        pairs.given(tmp_path, PAIRS)
    assert caught.value.code == "E-JUDGEMENTS-FILE"
