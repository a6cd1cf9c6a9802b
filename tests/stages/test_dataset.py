"""``dataset``: what is read, what falls out, and that the split is honest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ingot.core import stdlib_text
from ingot.core.stage import load_kind
from ingot.errors import RefusedInput
from stagekit import digest_of, run_stage

Rows = list[dict[str, Any]]


def read(folder: Path, split: str) -> Rows:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(count: int) -> Rows:
    """Rows that share few 3-grams."""
    words = [f"{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i * 7 % 26)}" for i in range(count)]
    return [{"prompt": f"{word * 3}?", "completion": f"{word[::-1] * 9} {i}"} for i, word in enumerate(words)]


def turn(name: str, who: str, what: str) -> dict[str, str]:
    return {name: who, ("content" if name == "role" else "value"): what}


def build(tmp_path: Path, source: Path, name: str = "out", **params: Any) -> tuple[Path, dict[str, Any]]:
    entry = {"path": f"data/{source.name}", **params.pop("entry", {})}
    out, metrics = run_stage("dataset", {"sources": [entry], **params}, {}, tmp_path, sources=[source], name=name)
    return out, {name: metric.value for name, metric in metrics.items()}


def test_rows_of_each_shape_become_rows_of_its_form(tmp_path: Path) -> None:
    def both(make: Callable[[str, str], dict[str, Any]]) -> Rows:
        return [make("q1", "a1"), make("q2", "a2")]

    shapes: list[tuple[Rows, str]] = [
        (both(lambda q, a: {"messages": [turn("role", "user", q), turn("role", "assistant", a)]}), "chat"),
        (both(lambda q, a: {"conversations": [turn("from", "human", q), turn("from", "gpt", a)]}), "chat"),
        (both(lambda q, a: {"instruction": q, "input": "", "output": a}), "chat"),
        (both(lambda q, a: {"question": q, "answer": a}), "completion"),
        (both(lambda q, a: {"text": f"{q} {a}"}), "text"),
    ]
    for number, (rows, form) in enumerate(shapes):
        out, _ = build(tmp_path, jsonl(tmp_path / f"{number}.jsonl", rows), f"out{number}", dedup=None)
        assert json.loads((out / "dataset.json").read_text())["form"] == form
        found = sorted(read(out, "train") + read(out, "eval"), key=json.dumps)
        assert len(found) == 2
        if form == "chat":
            assert {tuple(m["content"] for m in row["messages"]) for row in found} == {("q1", "a1"), ("q2", "a2")}


def test_fields_are_mapped_and_a_system_message_is_added(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "x.jsonl", [{"frage": f"q{i}", "antwort": f"a{i}"} for i in range(4)])
    entry = {"fields": {"instruction": "frage", "output": "antwort"}}
    out, _ = build(tmp_path, source, entry=entry, system="Be brief.", dedup=None)
    for row in read(out, "train"):
        assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]
        assert row["messages"][0]["content"] == "Be brief."


def test_near_duplicates_never_straddle_the_split(tmp_path: Path, shared_data: Path) -> None:
    lines = (shared_data / "sets/tinystories/stories.clean.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    rows = [json.loads(line) for line in lines]
    edited = [{"text": row["text"].replace("Once", "Twice", 1) + " The end."} for row in rows[:150]]
    out, metrics = build(tmp_path, jsonl(tmp_path / "x.jsonl", rows + edited + rows[:20]), split={"eval": 0.3})
    assert metrics["documents_exact_duplicates"] == 20
    assert metrics["documents_near_duplicates"] >= 150
    train, held_out = read(out, "train"), read(out, "eval")
    grams = [{row["text"][i : i + 3] for i in range(len(row["text"]) - 2)} for row in train]
    for row in held_out:
        mine = {row["text"][i : i + 3] for i in range(len(row["text"]) - 2)}
        assert max(len(mine & other) / len(mine | other) for other in grams) < 0.85
    kept = build(tmp_path, jsonl(tmp_path / "y.jsonl", rows + edited), "without", dedup=None)[1]
    assert kept["documents_train"] + kept["documents_eval"] == 450


def test_a_prompt_never_straddles_the_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"prompt {i % 20}", "completion": f"answer {i}"} for i in range(200)]
    out, _ = build(tmp_path, jsonl(tmp_path / "x.jsonl", rows), dedup=None, split={"eval": 0.4})
    train, held_out = ({row["prompt"] for row in read(out, split)} for split in ("train", "eval"))
    assert train
    assert held_out
    assert not train & held_out


def test_a_row_stays_on_its_side_when_others_go(tmp_path: Path) -> None:
    rows = pairs(120)
    everything, _ = build(tmp_path, jsonl(tmp_path / "x.jsonl", rows), "all", dedup=None)
    fewer, _ = build(tmp_path, jsonl(tmp_path / "y.jsonl", rows[::2]), "half", dedup=None)
    held_out = {row["id"] for row in read(everything, "eval")}
    assert {row["id"] for row in read(fewer, "eval")} == held_out & {
        row["id"] for split in ("train", "eval") for row in read(fewer, split)
    }


def test_equal_content_gives_equal_bytes_in_any_order(tmp_path: Path) -> None:
    rows = pairs(60)
    first, _ = build(tmp_path, jsonl(tmp_path / "x.jsonl", rows), "first")
    second, _ = build(tmp_path, jsonl(tmp_path / "y.jsonl", rows[::-1]), "second")
    assert digest_of(first) == digest_of(second)


def test_the_funnel_adds_up(tmp_path: Path) -> None:
    rows = [*pairs(50), {"prompt": "p", "completion": "x"}, {"prompt": "q", "completion": "y" * 500}, pairs(1)[0]]
    out, metrics = build(tmp_path, jsonl(tmp_path / "x.jsonl", rows), min_chars=5, max_chars=400, limit=30)
    counts = json.loads((out / "dataset.json").read_text())["counts"]
    assert (counts["too_short"], counts["too_long"], counts["exact_duplicates"]) == (1, 1, 1)
    assert counts["read"] == 53 == sum(counts.values()) - counts["read"]
    assert counts["train"] + counts["eval"] == 30
    assert metrics["documents_over_limit"] == counts["over_limit"]
    assert metrics["characters_train"] == sum(len(r["prompt"] + r["completion"]) for r in read(out, "train"))


def test_text_is_cut_at_paragraphs(tmp_path: Path) -> None:
    source = tmp_path / "x.txt"
    source.write_text("\n\n".join(f"Paragraph {i}. " + "abcdefghij"[i % 10] * 60 for i in range(30)))
    out, _ = build(tmp_path, source, entry={"chunk_chars": 200}, dedup=None)
    texts = [row["text"] for split in ("train", "eval") for row in read(out, split)]
    assert len(texts) == 15
    assert all(len(text) <= 200 and text.startswith("Paragraph") for text in texts)


def test_docstrings_become_chats_about_their_symbol(tmp_path: Path) -> None:
    source = tmp_path / "text.jsonl"
    lines = stdlib_text.extract("docstrings").splitlines(keepends=True)
    source.write_bytes(b"".join(lines[:400]))
    params = {"sources": [{"python_stdlib": "docstrings"}]}
    out, _ = run_stage("dataset", params, {}, tmp_path, sources=[source])
    docs = {json.loads(line)["doc"] for line in lines}
    for row in read(out, "train"):
        ask, answer = (message["content"] for message in row["messages"])
        assert ask.startswith("Write the documentation of `")
        assert answer in docs
        assert 80 <= len(answer) <= 2000


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (
            '{"prompt": "a", "completion": "b"}\n{"prompt": "a"',
            "x.jsonl:2: not JSON (expecting ',' delimiter, column 15)",
        ),
        ('{"prompt": "a", "completion": "b"}\n\n{"prompt": "a", "completion": 3}', "x.jsonl:3: "),
        ('{"prompt": "a", "completion": " "}', "x.jsonl:1: "),
        ('{"unknown": "a"}', "x.jsonl:1: "),
        ('{"messages": [{"role": "user", "content": "a"}]}', "x.jsonl:1: "),
        ('{"messages": [{"role": ["user"], "content": "a"}, {"role": "assistant", "content": "b"}]}', "x.jsonl:1: "),
        ('{"text": "\\ud800"}', "x.jsonl:1: "),
        ("[1]", "x.jsonl:1: "),
        ('{"text": "a", "text": "b"}', "x.jsonl:1: "),
    ],
)
def test_a_malformed_row_is_refused_with_its_number(tmp_path: Path, text: str, where: str) -> None:
    source = tmp_path / "x.jsonl"
    source.write_text(text)
    with pytest.raises(RefusedInput) as error:
        build(tmp_path, source)
    assert error.value.code == "E-DATASET-ROW"
    assert where in error.value.what


def in_source(tmp_path: Path, path: str, snapshot: Path) -> RefusedInput:
    with pytest.raises(RefusedInput) as error:
        run_stage("dataset", {"sources": [{"path": path, "format": "json"}]}, {}, tmp_path, sources=[snapshot])
    return error.value


def test_a_file_is_named_as_in_the_project_not_as_in_the_snapshot(tmp_path: Path) -> None:
    """A build's snapshot of one file is called ``content``; that of a folder or glob keeps what is below."""
    content = tmp_path / "content"
    content.write_text('[\n{"text": "a"},\n{"text": }]')
    wanted = ":3: not JSON (expecting value, column 10)"
    assert in_source(tmp_path / "1", "data/rows.json", content).what == f"data/rows.json{wanted}"
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    content.rename(folder / "sub" / "b.json")
    for number, path in enumerate(("data/all", "data/all/*/*.json", "data/all/s*/b.json"), 2):
        assert in_source(tmp_path / str(number), path, folder).what == f"data/all/sub/b.json{wanted}"
    assert in_source(tmp_path / "5", "*/b.json", folder).what == f"sub/b.json{wanted}"
    (folder / "sub" / "b.json").write_text('[{"text": "a"}, {"text": 1}]')
    assert in_source(tmp_path / "6", "data", folder).what.startswith("data/sub/b.json, row 2: the field 'text'")


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    empty = tmp_path / "content"
    empty.write_text("\n")
    error = in_source(tmp_path / "1", "data/rows.json", empty)
    assert (error.code, error.what) == ("E-DATASET-EMPTY", "data/rows.json is empty")
    assert error.facts == ("data/rows.json: 1 bytes",)


@pytest.mark.parametrize(
    ("rows", "params"),
    [
        ([], {}),
        (pairs(4), {"min_chars": 500}),
        (pairs(1), {}),
        ([{"prompt": "p", "completion": str(i)} for i in (1, 2)], {}),
    ],
)
def test_nothing_left_is_refused(tmp_path: Path, rows: Rows, params: dict[str, Any]) -> None:
    with pytest.raises(RefusedInput) as error:
        build(tmp_path, jsonl(tmp_path / "x.jsonl", rows), dedup=None, **params)
    assert error.value.code == "E-DATASET-EMPTY"


def test_text_cannot_become_chat(tmp_path: Path) -> None:
    with pytest.raises(RefusedInput) as error:
        build(tmp_path, jsonl(tmp_path / "x.jsonl", [{"text": "a"}, {"text": "b"}]), form="chat")
    assert error.value.code == "E-DATASET-FORM"


@pytest.mark.parametrize(
    "params",
    [
        {"sources": []},
        {"sources": [{}]},
        {"sources": [{"path": "x.jsonl", "python_stdlib": "topics"}]},
        {"sources": [{"path": "folder"}]},
        {"sources": [{"python_stdlib": "nonsense"}]},
        {"sources": [{"python_stdlib": "topics", "format": "jsonl"}]},
        {"sources": [{"path": "x.jsonl", "fields": {"prompt": "p"}}]},
        {"sources": [{"path": "x.jsonl"}], "split": {"eval": 1}},
        {"sources": [{"path": "x.jsonl"}], "dedup": {"threshold": 0}},
        {"sources": [{"path": "x.jsonl"}], "min_chars": 9, "max_chars": 8},
        {"sources": [{"path": "x.jsonl"}], "form": "text", "system": "s"},
    ],
)
def test_parameters_that_mean_nothing_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        load_kind("dataset").model_validate_json(json.dumps(params), strict=True)


def test_resolved_parameters_say_everything_and_survive_json() -> None:
    kind = load_kind("dataset")
    params = {"sources": [{"path": "a/x.json", "fields": {"text": "t"}}, {"python_stdlib": "docstrings"}]}
    first = kind.model_validate_json(json.dumps(params), strict=True)
    dumped = first.model_dump(mode="json", by_alias=True)
    assert dumped["sources"][0]["format"] == "json"
    assert (dumped["min_chars"], dumped["max_chars"]) == (80, 2000)
    assert kind.model_validate_json(json.dumps(dumped), strict=True) == first
    assert [pointer for pointer, _ in first.found_sources()] == ["/sources/0/path", "/sources/1/python_stdlib"]


USER, GOOD, BAD = turn("role", "user", "q"), turn("role", "assistant", "good"), turn("role", "assistant", "bad")
SYSTEM = turn("role", "system", "Be brief.")
OF_TEXTS, OF_MESSAGES = (
    {**asked, "chosen": "good", "rejected": "bad"} for asked in ({"prompt": "q"}, {"messages": [USER]})
)
PREFERENCES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "texts": (OF_TEXTS, OF_TEXTS),
    "a question": ({"question": "q", "chosen": "good", "rejected": "bad"}, OF_TEXTS),
    "messages and texts": (OF_MESSAGES, OF_MESSAGES),
    "a prompt of messages": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, OF_MESSAGES),
    "whole conversations": (
        {"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
        {"messages": [SYSTEM, USER], "chosen": "good", "rejected": "bad"},
    ),
    "whole conversations, their prompt, and one of them again": (
        {"prompt": "q", "messages": [USER, GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 8.5},
        OF_MESSAGES,
    ),
    "a prompt as text and answers as messages": ({"prompt": "q", "chosen": [GOOD], "rejected": [BAD]}, OF_MESSAGES),
    "from and value": (
        {
            "chosen": [turn("from", "human", "q"), turn("from", "gpt", "good")],
            "rejected": [turn("from", "human", "q"), turn("from", "gpt", "bad")],
        },
        OF_MESSAGES,
    ),
}


@pytest.mark.parametrize("what", PREFERENCES)
def test_preferences_in_each_usual_spelling(what: str, tmp_path: Path) -> None:
    row, expected = PREFERENCES[what]
    out, _ = build(tmp_path, jsonl(tmp_path / "x.jsonl", [row]), split={"eval": 0})
    assert json.loads((out / "dataset.json").read_text())["form"] == "preference"
    (found,) = read(out, "train")
    assert {name: value for name, value in found.items() if name != "id"} == expected


def preferences(count: int) -> Rows:
    return [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": row["completion"][::-1]}
        for row in pairs(count)
    ]


def test_preferences_are_filtered_counted_and_split_by_their_prompt(tmp_path: Path) -> None:
    same = {"prompt": "p", "chosen": "the same answer", "rejected": "the same answer"}
    short = {"prompt": "p", "chosen": "a long enough answer", "rejected": "no"}
    other = [{**row, "rejected": row["rejected"].upper()} for row in preferences(40)]
    rows = [*preferences(40), *other, same, same, short, preferences(1)[0]]
    out, metrics = build(tmp_path, jsonl(tmp_path / "x.jsonl", rows), min_chars=3, dedup=None, split={"eval": 0.4})
    found = {name: metrics[f"documents_{name}"] for name in ("read", "same_answers", "too_short", "exact_duplicates")}
    assert found == {"read": 84, "same_answers": 2, "too_short": 1, "exact_duplicates": 1}
    train, held_out = ({row["prompt"] for row in read(out, split)} for split in ("train", "eval"))
    assert train
    assert held_out
    assert not train & held_out
    assert metrics["characters_train"] == sum(
        len(row["prompt"] + row["chosen"] + row["rejected"]) for row in read(out, "train")
    )


def test_preferences_can_become_what_was_chosen(tmp_path: Path) -> None:
    chosen = {row["chosen"] for row in preferences(3)}
    source = jsonl(tmp_path / "x.jsonl", [OF_MESSAGES, *preferences(3)])
    chats, _ = build(tmp_path, source, "chats", form="chat", dedup=None, split={"eval": 0})
    assert {row["messages"][-1]["content"] for row in read(chats, "train")} == {"good", *chosen}
    only = jsonl(tmp_path / "y.jsonl", preferences(3))
    completions, _ = build(tmp_path, only, "completions", form="completion", dedup=None, split={"eval": 0})
    assert {row["completion"] for row in read(completions, "train")} == chosen


def test_a_system_message_is_put_before_a_preference_of_messages(tmp_path: Path) -> None:
    out, _ = build(tmp_path, jsonl(tmp_path / "x.jsonl", [OF_MESSAGES]), system="Be brief.", split={"eval": 0})
    assert read(out, "train")[0]["messages"] == [SYSTEM, USER]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": "q", "chosen": "good"}, "no known fields among chosen, prompt"),
        ({"prompt": "q", "chosen": "good", "rejected": None}, "the field 'rejected' is missing"),
        ({"prompt": "q", "chosen": "good", "rejected": " "}, "'rejected' is not a text that says something"),
        ({"prompt": "q", "chosen": [GOOD], "rejected": "bad"}, "'chosen' is not a text"),
        ({"chosen": "good", "rejected": "bad"}, "there is no prompt"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "nothing is asked before the two answers"),
        ({"chosen": [USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, "answer different conversations"),
        ({"chosen": [USER, GOOD], "rejected": [USER, USER]}, "the last message of 'rejected' is not an answer"),
        ({"messages": [USER, GOOD], "chosen": "good", "rejected": "bad"}, "nothing is asked before"),
    ],
)
def test_a_row_that_is_no_preference_is_refused_with_its_number(row: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match=what) as caught:
        build(tmp_path, jsonl(tmp_path / "x.jsonl", [OF_TEXTS, row]), dedup=None)
    assert caught.value.code == "E-DATASET-ROW"
    assert "data/x.jsonl:2: " in caught.value.what


@pytest.mark.parametrize(
    ("rows", "params"),
    [
        ([OF_TEXTS, {"prompt": "q", "completion": "a"}], {}),
        ([{"prompt": "q", "completion": "a"}], {"form": "preference"}),
        ([OF_TEXTS], {"form": "text"}),
    ],
)
def test_preferences_and_other_rows_do_not_mix(rows: Rows, params: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RefusedInput) as caught:
        build(tmp_path, jsonl(tmp_path / "x.jsonl", rows), dedup=None, **params)
    assert caught.value.code == "E-DATASET-FORM"
