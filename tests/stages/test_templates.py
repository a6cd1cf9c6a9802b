"""Templates as a source of ``dataset``: what is drawn, that everybody draws it, and what is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ingot.core.stage import load_kind
from ingot.errors import RefusedInput
from ingot.stages._templates import Templates
from projectkit import Sandbox
from stagekit import digest_of, run_stage

CASES: dict[str, Any] = {
    "good": {
        "slots": {"when": ["today", "soon", "this week"]},
        "prompts": ["{ask} {deed} {when}?\n", "{when}: {deed}?\n"],
        "completions": ["Yes.", "Surely (all of it)."],
    },
    "bad": {"slots": {"when": ["never", "for free"]}, "prompts": ["{ask} {deed} {when}?\n"], "completions": ["No."]},
}
SOURCE: dict[str, Any] = {
    "count": 40,
    "seed": 3,
    "apart": ["deed", "when"],
    "slots": {"ask": ["Will I", "Shall I", "Can I"], "deed": ["win", "sing", "swim", "run", "fly", "rest", "eat"]},
    "cases": CASES,
}
CAPITALS: dict[str, Any] = {
    "count": 4,
    "slots": {"land": [{"name": "Italy", "seat": "Rome"}, {"name": "Chad", "seat": "N'Djamena"}], "say": ["Is", "Say"]},
    "cases": {"seat": {"prompts": ["{say} the {{seat}} of {land.name}: "], "completions": ["{land.seat}"]}},
}


def templates(source: dict[str, Any]) -> Templates:
    return Templates.model_validate_json(json.dumps(source), strict=True)


def changed(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(SOURCE), **changes}


def build(tmp_path: Path, name: str = "out", source: dict[str, Any] = SOURCE, **params: Any) -> Path:
    given = {"sources": [{"templates": source}], "dedup": None, "split": {"eval": 0.3}, **params}
    return run_stage("dataset", given, {}, tmp_path, name=name)[0]


def rows(folder: Path, *splits: str) -> list[dict[str, Any]]:
    lines = [line for split in splits for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in lines]


def fillers(prompt: str) -> tuple[str, str]:
    (deed,) = [deed for deed in SOURCE["slots"]["deed"] if deed in prompt]
    (when,) = [when for case in CASES.values() for when in case["slots"]["when"] if when in prompt]
    return deed, when


def test_cases_share_the_rows_and_ask_nothing_twice(tmp_path: Path) -> None:
    found = rows(build(tmp_path), "train", "eval")
    assert len({row["prompt"] for row in found}) == 40
    by_case = Counter(row["completion"] == "No." for row in found)
    assert by_case == {True: 20, False: 20}
    for row in found:
        assert (fillers(row["prompt"])[1] in CASES["bad"]["slots"]["when"]) == (row["completion"] == "No.")
    assert {row["completion"] for row in found} == {"Yes.", "Surely (all of it).", "No."}


def test_several_answers_give_a_pattern_and_one_alone_gives_none(tmp_path: Path) -> None:
    for row in rows(build(tmp_path), "train", "eval"):
        if row["completion"] == "No.":
            assert "pattern" not in row
        else:
            assert all(re.fullmatch(row["pattern"], answer) for answer in CASES["good"]["completions"])
            assert not re.fullmatch(row["pattern"], "Surely all of it.")


def test_held_out_combinations_are_never_trained_on(tmp_path: Path) -> None:
    """By whole questions alone, a wish at a time would be on both sides, in other words."""
    apart, loose = build(tmp_path), build(tmp_path, "loose", changed(apart=[]))
    shared = []
    for folder in (apart, loose):
        train, held_out = ({fillers(row["prompt"]) for row in rows(folder, split)} for split in ("train", "eval"))
        assert held_out
        shared.append(len(train & held_out))
    assert shared[0] == 0 < shared[1]


def test_everybody_draws_the_same_rows(tmp_path: Path) -> None:
    """Golden: SHA-256 decides and nothing else, so another machine or Python gives these very bytes."""
    assert digest_of(build(tmp_path)) == "7af23a879de9cac696d6db5d01f1d16007a714fcac0d898baccb807dd27fe0f4"
    assert digest_of(build(tmp_path, "other", changed(seed=4))) != digest_of(tmp_path / "out")


def test_the_draw_is_what_the_docstring_says() -> None:
    """The first question of a case, by hand: 42 ways in mixed radix, the last slot fastest."""
    number = int(hashlib.sha256(b"ingot-templates-1\n3\nbad\n0").hexdigest(), 16) % 42
    ask, deed, when = number // 14, number // 2 % 7, number % 2
    slots = {**SOURCE["slots"], **CASES["bad"]["slots"]}
    first = next(templates(SOURCE).pairs())
    assert first.prompt == f"{slots['ask'][ask]} {slots['deed'][deed]} {slots['when'][when]}?\n"


def test_the_order_of_mappings_means_nothing(tmp_path: Path) -> None:
    """They are equal in the key, so their bytes must be equal too."""
    turned = changed(count=39, cases=dict(reversed(CASES.items())), slots=dict(reversed(SOURCE["slots"].items())))
    assert digest_of(build(tmp_path, "turned", turned)) == digest_of(build(tmp_path, source=changed(count=39)))
    land = [dict(reversed(filler.items())) for filler in CAPITALS["slots"]["land"]]
    capitals = {**CAPITALS, "apart": ["land"]}
    other = {**capitals, "slots": {**CAPITALS["slots"], "land": land}}
    assert digest_of(build(tmp_path, "a", capitals)) == digest_of(build(tmp_path, "b", other))


def test_more_rows_keep_those_that_were_there() -> None:
    few, many = (set(templates(changed(count=count)).pairs()) for count in (20, 60))
    assert len(few) == 20
    assert few < many


def test_answers_by_rule_and_braces() -> None:
    pairs = {pair.prompt: (pair.completion, pair.pattern) for pair in templates(CAPITALS).pairs()}
    assert pairs["Is the {seat} of Chad: "] == ("N'Djamena", None)
    assert len(pairs) == 4


def test_chats_and_a_system_message(tmp_path: Path) -> None:
    for row in rows(build(tmp_path, form="chat", system="Be brief."), "train"):
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
        assert ("pattern" in row) == (row["messages"][-1]["content"] != "No.")
    assert all(set(row) == {"id", "text"} for row in rows(build(tmp_path, "text", form="text"), "train"))


def test_a_pattern_of_the_user_replaces_that_of_the_answers(tmp_path: Path) -> None:
    good = {**CASES["good"], "pattern": "(Yes|Surely).*"}
    found = rows(build(tmp_path, source=changed(cases={**CASES, "good": good})), "train")
    assert {row.get("pattern") for row in found} == {None, "(Yes|Surely).*"}
    ids = {row["id"] for row in rows(build(tmp_path, "before"), "train")}
    assert {row["id"] for row in found} == ids, "a pattern says nothing of what is learned: no row moves"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cases": {}}, "at least 1"),
        ({"count": 0}, "greater than or equal to 1"),
        ({"count": 200}, "the case 'bad' has 42 different questions, fewer than its 100 rows"),
        ({"slots": {"ask": ["Will I"]}}, "there is no slot 'deed'"),
        ({"slots": {**SOURCE["slots"], "deed": ["win", "win"]}}, "the same filler twice"),
        ({"slots": {**SOURCE["slots"], "deed": ["win", {"x": "y"}]}}, "can stand for {deed} in"),
        ({"slots": {**SOURCE["slots"], "Deed": ["x"]}}, "pattern"),
        ({"apart": ["mood"]}, "'apart' names 'mood'"),
        ({"cases": {"x": {"prompts": ["{deed}"], "completions": ["{ask}"]}}, "apart": []}, "and '{deed}' does"),
        ({"cases": {"x": {"prompts": ["{deed} {"], "completions": ["y"]}}, "apart": []}, "a brace stands alone"),
        ({"cases": {"x": {"prompts": ["{deed.old}"], "completions": ["y"]}}, "apart": []}, "{deed.old}"),
        ({"cases": {"x": {"prompts": ["a"], "completions": ["y"], "pattern": "(y"}}, "apart": [], "count": 1}, "(y"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_when_the_spec_is_read(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(says)):
        templates(changed(**changes))


@pytest.mark.parametrize("entry", [{"path": "x.jsonl"}, {"python_stdlib": "topics"}, {"format": "json"}])
def test_templates_stand_alone(entry: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="templates"):
        load_kind("dataset").model_validate_json(json.dumps({"sources": [{"templates": SOURCE, **entry}]}))


def test_two_cases_with_one_question_are_refused(tmp_path: Path) -> None:
    cases = {"a": {"prompts": ["{deed}?"], "completions": ["y"]}, "b": {"prompts": ["{deed}?"], "completions": ["n"]}}
    with pytest.raises(RefusedInput, match="'a' and 'b' both ask") as refused:
        build(tmp_path, source=changed(cases=cases, apart=[], count=14))
    assert refused.value.code == "E-DATASET-TEMPLATES"


def test_questions_that_read_alike_end_the_drawing(tmp_path: Path) -> None:
    """Two templates of one text: the arithmetic counts each, and there is one."""
    case = {"prompts": ["{deed}?", "{deed}?"], "completions": ["y"]}
    assert len(list(templates(changed(cases={"x": case}, apart=[], count=7)).pairs())) == 7
    with pytest.raises(RefusedInput, match="has 7 different questions, fewer than its 9 rows"):
        list(templates(changed(cases={"x": case}, apart=[], count=9)).pairs())


def test_an_answer_that_its_pattern_refuses_is_refused(tmp_path: Path) -> None:
    bad = {**CASES["bad"], "pattern": "Never"}
    with pytest.raises(RefusedInput, match=r"'No\.' does not match the pattern") as refused:
        build(tmp_path, source=changed(cases={**CASES, "bad": bad}))
    assert refused.value.code == "E-DATASET-PATTERN"


def test_files_bring_patterns_where_a_field_is_named(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    lines = [{"q": f"q{i}", "a": f"a{i}", "p": f"a{i}|b"} if i else {"q": "q", "a": "a"} for i in range(5)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = {"prompt": "q", "completion": "a", "pattern": "p"}
    params = {"sources": [{"path": "rows.jsonl", "fields": fields}], "dedup": None}
    out, _ = run_stage("dataset", params, {}, tmp_path, sources=[source])
    patterns = {row["prompt"]: row.get("pattern") for row in rows(out, "train", "eval")}
    assert patterns == {"q": None, **{f"q{i}": f"a{i}|b" for i in range(1, 5)}}
    for pattern, says in (("(", "E-PATTERN"), (" ", "E-DATASET-ROW")):
        source.write_text("".join(json.dumps({"q": q, "a": "a", "p": pattern}) + "\n" for q in "ab"))
        with pytest.raises(RefusedInput) as refused:
            run_stage("dataset", params, {}, tmp_path, sources=[source], name=says)
        assert refused.value.code == says


def test_parameters_that_came_later_are_in_no_earlier_key() -> None:
    params = {"sources": [{"path": "x.jsonl", "fields": {"text": "t"}}]}
    dumped = load_kind("dataset").model_validate_json(json.dumps(params)).model_dump(mode="json")
    assert "templates" not in dumped["sources"][0]
    assert "pattern" not in dumped["sources"][0]["fields"]


def test_the_place_in_the_spec_is_told(sandbox: Sandbox) -> None:
    source = json.dumps(changed(slots={"ask": ["Will I", 3], "deed": ["x"]}))
    sandbox.spec(f"targets:\n  d: {{kind: dataset, sources: [{{templates: {source}}}]}}\n")
    said = sandbox.doit("plan")
    assert said.returncode == 2
    assert "E-SPEC" in said.stderr
    assert "targets.d.sources[0].templates.slots.ask[1]" in said.stderr + said.stdout
