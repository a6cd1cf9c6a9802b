"""What differs, in words: the comparison of key parts, inputs, files and metrics, and where a spec writes a field."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingot.core import exports, lookup
from ingot.core.causes import Wanted, causes
from ingot.core.changes import (
    ABSENT,
    Change,
    change_text,
    number,
    pair_text,
    param_changes,
    part_changes,
    same,
    value_text,
)
from ingot.core.compare import Subject, compare
from ingot.core.damage import first_difference
from ingot.core.explain import Explainer
from ingot.core.graph import Node
from ingot.core.input_changes import Given, content_words, input_changes
from ingot.core.lookup import Lookup
from ingot.core.project import Project
from ingot.core.reasons import Reason, source_name
from ingot.core.spec_places import SpecPlaces
from ingot.core.statement import STATEMENT, decision_statement
from ingot.core.subjects import Subjects
from ingot.errors import RefusedInput, RegistryDamaged, UsageError
from projectkit import Sandbox
from recordkit import append, receipts, registry_of, simple, writable
from test_layers import HEAVY

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | st.text("ab{"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", min_size=1), inner, max_size=3),
    max_leaves=12,
)
FILE, TREE = "file:" + "1" * 64, "tree:" + "2" * 64


def parts(**changes: Any) -> dict[str, Any]:
    plain = {"format": 1, "kind": "gguf", "revision": 1, "params": {}, "inputs": {}, "tools": {"torch": "2.6"}}
    return plain | changes


def words(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [change_text(change) for change in part_changes(old, new)]


def node(**changes: Any) -> Node:
    plain: dict[str, Any] = {
        "kind": "gguf",
        "revision": 1,
        "reproducibility": "deterministic",
        "produces": "gguf",
        "params": {},
        "spec": "s",
        "name": "t",
        "target": "t",
    }
    return Node(**plain | changes)


def receipt(**changes: Any) -> dict[str, Any]:
    plain = {
        "target": "s:t", "kind": "gguf", "key": "k", "digest": "d", "key_parts": parts(), "inputs": {}, "files": [],
        "metrics": {}, "environment": {"python": "3.11"}, "git": {}, "timings": {"finished": "2026"},
    }  # fmt: skip
    return plain | changes


# --- values ------------------------------------------------------------------------------------------------------


@given(JSON, JSON)
def test_there_is_a_change_exactly_where_values_differ(one: object, other: object) -> None:
    assert (list(param_changes(one, other)) == []) is same(one, other)


@given(JSON)
def test_a_value_is_the_same_as_itself_and_always_has_words(value: object) -> None:
    assert same(value, value)
    assert list(param_changes(value, value)) == []
    assert "\n" not in value_text(value)
    assert len(value_text(value)) <= 60


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_in_words_is_that_number(value: float) -> None:
    assert float(number(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0002, "2e-4"), (1e-05, "1e-5"), (1.25e-07, "1.25e-7"), (0.001, "0.001"), (0.5, "0.5"), (1.0, "1")),
        *((3, "3"), (1e21, "1e21"), (-0.00025, "-2.5e-4"), (0.0, "0"), (1e14, "100000000000000")),
    ],
)
def test_numbers_as_people_write_them(value: float, text: str) -> None:
    assert number(value) == text


def test_one_and_true_and_null_and_absence_are_four_things() -> None:
    assert same(1, 1.0)
    assert not same(1, True)
    assert words(parts(params={"a": None}), parts(params={})) == ["a removed (was not set)"]
    assert words(parts(params={}), parts(params={"a": True})) == ["a added: true"]
    assert Change("x", "a", None, ABSENT).to_dict() == {"code": "x", "name": "a", "before": None}


def test_long_texts_are_shown_where_they_differ() -> None:
    one, other = pair_text("x" * 100 + "cat a" + "y" * 100, "x" * 100 + "cat b" + "y" * 100)
    assert "cat a" in one
    assert "cat b" in other
    assert max(len(one), len(other)) <= 60
    one, other = pair_text("x" * 100, "x" * 100 + "tail")
    assert other.endswith("tail")
    assert value_text("sha256:" + "a" * 64) == "a" * 12
    assert value_text({"source": FILE}) == "file 111111111111"
    assert value_text(ABSENT) == "–"
    assert value_text("") == '""'


# --- key parts ---------------------------------------------------------------------------------------------------


def test_the_words_of_the_issue() -> None:
    assert words(parts(params={"learning_rate": 2e-4}), parts(params={"learning_rate": 1e-4})) == [
        "learning_rate 2e-4 → 1e-4"
    ]
    assert words(parts(tools={"peft": "0.21.2"}), parts(tools={"peft": "0.22.0"})) == ["tool peft 0.21.2 → 0.22.0"]


def test_every_part_is_compared() -> None:
    old = parts(kind="a", inputs={"data": "sha256:" + "a" * 64}, programs={"sox": "1"}, seed=1)
    new = parts(kind="b", revision=2, params={"x": 1}, seed=2, format=2)
    assert [(change.code, change.name) for change in part_changes(old, new)] == [
        ("kind_changed", "kind"),
        ("kind_changed", "revision"),
        ("params_changed", "x"),
        ("input_changed", "data"),
        ("tool_changed", "sox"),
        ("seed_changed", "seed"),
        ("key_changed", "format"),
    ]
    assert words(old, new)[3] == "input data removed (was aaaaaaaaaaaa)"


def test_lists_show_what_was_put_in_and_taken_out() -> None:
    def told(old: Any, new: Any) -> list[str]:
        return [change_text(change) for change in param_changes({"s": old}, {"s": new})]

    assert told(["sh", "-c", "a"], ["sh", "-x", "-c", "b"]) == ['s ["sh", "-c", "a"] → ["sh", "-x", "-c", "b"]']
    assert told(["sh", "-c", "a"], ["sh", "-c", "b"]) == ["s[2] a → b"]
    assert told([{"a": 1}, {"b": 2}], [{"b": 2}]) == ['s[0] removed (was {"a": 1})']
    assert told([{"a": 1}, {"b": 2}, {"c": 3}], [{"a": 1}, {"b": 5}]) == [
        's[1] removed (was {"b": 2})',
        's[2] removed (was {"c": 3})',
        's[1] added: {"b": 5}',
    ]
    assert told([{"a": 1}, {"b": 2}, {"c": 3}, 4], [{"a": 1}, {"b": 5}, {"c": 3}]) == [
        "s[1].b 2 → 5",
        "s[3] removed (was 4)",
    ]
    assert told([128, 256], [128, 512]) == ["s [128, 256] → [128, 512]"]


def test_a_source_is_no_parameter() -> None:
    found = part_changes(parts(params={"f": {"source": FILE}}), parts(params={"f": {"source": TREE}}))
    assert [change.code for change in found] == ["source_changed"]
    found = part_changes(parts(params={"f": {"source": "a"}}), parts(params={"f": {"source": "b"}}))
    assert [(change.code, change.name) for change in found] == [("params_changed", "f.source")]


def test_what_kind_of_source_it_was() -> None:
    asked = node(sources=(("/f", {"path": "docs"}, "specs"),))
    wanted = Wanted(asked, parts(params={"f": {"source": TREE}}), {})
    (cause,) = causes(receipt(key_parts=parts(params={"f": {"source": FILE}})), wanted, lambda _digest: None)
    assert (cause.words, cause.note) == ("source docs changed", "it was one file and is several files or a folder")
    assert str(cause) == "source docs changed"
    git = {"commit": "c" * 40, "clean": True}
    for paths, expected in (({"path": "a b"}, "-- 'a b' shows it"), ({"paths": ["x", "y"]}, "-- x y shows it")):
        asked = node(sources=(("/f", paths, "specs"),))
        wanted = Wanted(asked, parts(params={"f": {"source": FILE}}), {})
        old = receipt(key_parts=parts(params={"f": {"source": FILE.replace("1", "3")}}), git=git)
        (cause,) = causes(old, wanted, lambda _digest: None)
        assert cause.note is not None
        assert cause.note.endswith(expected)
        for state in (False, None):
            # the commit does not hold what the result was built from: its difference would mislead
            (cause,) = causes(old | {"git": git | {"clean": state}}, wanted, lambda _digest: None)
            assert "git" not in str(cause.note)
    assert source_name({"paths": ["a", "b", "c", "d"]}) == "a, b, c and 1 more"
    assert source_name({}) == ""


# --- inputs ------------------------------------------------------------------------------------------------------


def rows(train: int, held_out: int) -> dict[str, Any]:
    return receipt(kind="dataset", metrics={"documents_train": {"value": train}, "documents_eval": {"value": held_out}})


def test_inputs_of_a_list_role() -> None:
    a, b, c = Given("s:a", "1" * 64), Given("s:b", "2" * 64), Given("s:c", "3" * 64)
    other = Given("s:b", "4" * 64)

    def told(old: list[Given], new: list[Given]) -> list[str]:
        return [change.words for change in input_changes({"many": old}, {"many": new}, lambda _digest: None)]

    assert told([a, b], [a, b]) == []
    assert told([a, b], [a, other]) == ["input b changed: 222222222222 → 444444444444"]
    assert told([a, b], [a, b, c]) == ["input c added to many"]
    assert told([a, b, c], [a, c]) == ["input b removed from many"]
    assert told([a, b], [b, a]) == ["the inputs many come in another order"]
    renamed = Given("s:renamed", a.digest)
    assert told([a], [renamed]) == [], "a name is no content"
    assert told([], [a]) == ["input a added to many"]


def test_how_contents_differ() -> None:
    digests = ("a" * 64, "b" * 64)
    assert content_words(rows(10, 3), rows(8, 2), digests) == "3 rows fewer (train 10 → 8, eval 3 → 2)"
    assert content_words(rows(1000, 3), rows(3000, 3), digests) == "2,000 rows more (train 1000 → 3000)"
    assert content_words(rows(3, 1), rows(3, 1), digests) == "as many rows, other content"
    assert content_words(rows(3, 1), rows(4, 0), digests) == "as many rows, other content (train 3 → 4, eval 1 → 0)"
    shown = "aaaaaaaaaaaa → bbbbbbbbbbbb"
    assert content_words(None, rows(1, 1), digests) == shown
    one, other = ({"path": "x", "size": 3, "sha256": text} for text in "ab")
    assert content_words(receipt(files=[one]), receipt(files=[other]), digests) == f"x differs, as many bytes ({shown})"
    more = {"path": "y", "size": 9, "sha256": "c"}
    found = content_words(receipt(files=[one]), receipt(files=[other, more]), digests)
    assert found == f"9 bytes more, in 2 files ({shown})"
    # what merely has metrics of such names is compared by bytes
    one, other = (rows(count, 1) | {"kind": "command"} for count in (1, 2))
    assert "row" not in content_words(one, other, digests)
    assert "row" not in content_words(rows(1, 1), receipt(), digests)


# --- two sides ---------------------------------------------------------------------------------------------------


def test_units_that_differ_have_no_difference() -> None:
    one, other = (
        receipt(metrics={"m": {"value": value, "unit": unit, "method": ""}}) for value, unit in ((1, "B"), (2, "s"))
    )
    sides = [Subject("", "", side["key_parts"], side) for side in (one, other)]
    (pair,) = compare(sides[0], sides[1], lambda _digest: None).metrics
    assert (pair.difference, pair.equal) == (None, False)


def test_a_side_that_was_never_built_is_different_from_one_that_was() -> None:
    built = Subject("a", "", parts(), receipt(), node())
    bare = Subject("b", "", node=node())
    assert not compare(built, bare, lambda _digest: None).equal
    assert compare(bare, bare, lambda _digest: None).equal
    only_parts = Subject("c", "", parts())
    assert compare(built, only_parts, lambda _digest: None).equal


def test_the_seed_and_the_wiring_are_part_of_what_specs_ask_for() -> None:
    one = Subject("a", "", node=node(seed=1, inputs={"m": ("x",), "n": ("y",)}, single_roles=("m",)))
    other = Subject("b", "", node=node(seed=2, inputs={"m": ("z",), "n": ()}, single_roles=("m",)))
    found = compare(one, other, lambda _digest: None).spec
    assert [(change.name, change.before, change.after) for change in found] == [
        ("from.m", "x", "z"),
        ("from.n", ["y"], ABSENT),
        ("seed", 1, 2),
    ]


# --- files -------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=40), st.binary(max_size=40), st.sampled_from([0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 7]))
def test_the_first_difference_is_where_bytes_first_differ(tail: bytes, other: bytes, before: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in "ab"]
        for path, content in zip(paths, (tail, other), strict=True):
            path.write_bytes(b"x" * before + content)
        common = next(at for at in range(41) if tail[: at + 1] != other[: at + 1] or at >= len(tail))
        expected = None if tail == other else before + common
        assert first_difference(*paths) == expected


# --- a project in this process -----------------------------------------------------------------------------------


@pytest.fixture
def project(chain: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name, value in chain.env.items():
        if name.startswith("XDG_"):
            monkeypatch.setenv(name, value)
    return Project.open(chain.root)


def test_the_lines_of_fields(chain: Sandbox, project: Project) -> None:
    chain.spec(
        "targets:\n"
        "  m:\n"
        "    kind: command\n"
        "    command: [sh]\n"
        "    matrix:\n"
        "      env:\n"
        "        - one: {X: '1'}\n"
        "        - two: {X: '2'}\n"
    )
    places = SpecPlaces(project.root, {"s": "specs/s.yaml", "gone": "specs/gone.yaml"})
    asked = node(name="m@two", target="m")
    assert str(places.param(asked, ("env", "X"))) == "specs/s.yaml:11"
    assert str(places.param(asked, ("command", 0))) == "specs/s.yaml:7"
    assert str(places.param(node(name="m@three", target="m"), ("env",))) == "specs/s.yaml:9"
    assert str(places.seed(asked)) == "specs/s.yaml:3"
    absent = places.param(asked, ("files",))
    assert absent is not None
    assert (str(absent), absent.written) == ("specs/s.yaml:5", False)
    assert str(places.param(node(name="m@x.one", target="m", hidden=True), ("env",))) == "specs/s.yaml:5"
    assert places.param(asked, ()) is None
    for spec in ("gone", "unknown"):
        assert places.param(node(spec=spec), ("x",)) is None
        assert places.seed(node(spec=spec)) is None


def test_labels_of_a_matrix_are_numbers_as_their_names_show_them(chain: Sandbox, project: Project) -> None:
    chain.spec(
        "targets:\n  d:\n    kind: dataset\n    sources: [{python_stdlib: topics}]\n    matrix:\n"
        "      limit:\n        - 10\n        - 20\n      min_chars: [7, many: 8]\n"
    )
    places = SpecPlaces(project.root, {"s": "specs/s.yaml"})
    assert str(places.param(node(name="d@20+7", target="d"), ("limit",))) == "specs/s.yaml:11"
    assert str(places.param(node(name="d@20+7", target="d"), ("min_chars",))) == "specs/s.yaml:12"


def test_entries_are_found_by_what_they_hold(chain: Sandbox, project: Project) -> None:
    found_in = Lookup(project)
    built = receipts(chain)["s:a"]
    (found,) = found_in.builds_of(built["digest"][:10])
    assert found["target"] == "s:a"
    assert found_in.builds_of("f" * 64) == []
    assert [entry.type for entry in found_in.about("s:b")] == ["build"]
    assert found_in.about("s:zz") == []
    assert [item["target"] for item in found_in.builds_with_file(built["files"][0]["sha256"])] == ["s:a"]
    assert found_in.newest("s:zz") is None
    (log_key,) = [entry.statement["subject"][0]["digest"]["sha256"] for entry in found_in.holding(":origin:1")]
    assert list(found_in.builds_with_file(log_key)) == [], "the key of a log is no file of a build"
    assert found_in.result("0" * 64, "0" * 64) is None
    (origin,) = found_in.origins("")
    assert found_in.entry(origin, 99) is None
    start = found_in.entry(origin, 0)
    assert start is not None
    assert found_in.result_of(start) is None


def test_a_lookup_stops_at_the_checkpoint(chain: Sandbox, project: Project) -> None:
    (log,) = chain.root.glob("registry/*/log.jsonl")
    line = log.read_text().splitlines()[-1]
    with writable(log).open("a") as file:
        file.write(line + "\n")
    assert len(Lookup(project).about("s:b")) == 1


def test_two_builds_of_the_same_bytes_keep_their_measurements(chain: Sandbox, project: Project) -> None:
    for name, value in (("s:one", 1), ("s:two", 2)):
        append(chain, "s:b", target=name, metrics={"m": {"value": value, "unit": "1", "method": ""}})
    project.index.sync()
    for name, value in (("s:one", 1), ("s:two", 2)):
        newest = Lookup(project).newest(name)
        assert newest is not None
        assert newest["metrics"]["m"]["value"] == value


def test_an_entry_that_no_kind_of_ours_wrote_is_about_nothing(chain: Sandbox, project: Project) -> None:
    strange = {"_type": STATEMENT, "predicateType": "x", "predicate": {}, "subject": [{"uri": "y"}]}
    registry_of(chain).append([strange])
    assert [entry.type for entry in Lookup(project).about("s:a")] == ["build"]
    (chain.root / "registry" / ("0" * 12)).mkdir()
    assert len(Lookup(project).origins("")) == 1, "a folder without a checkpoint is no log yet"
    with pytest.raises(RegistryDamaged, match="malformed"):
        lookup._entry("o", 1, b"{}")


def test_a_selected_result_whose_build_no_log_holds(chain: Sandbox) -> None:
    fields = {"target": "s:a", "spec": "s", "key": "0" * 64, "digest": "1" * 64}
    registry_of(chain).append([decision_statement("selected", fields)])
    chain.spec("targets:\n" + simple("a", content="other"))
    (item,) = chain.json("why", "s:a")["targets"]
    assert item["result"] is None
    assert item["reasons"][0]["detail"] == "the build of its newest result is in no log"
    assert "doit audit says" in item["reasons"][0]["note"]


def test_a_reason_that_is_not_known_here_is_told_in_the_planner_s_words(project: Project) -> None:
    planned = project.plan(project.nodes.values())
    changed = replace(planned["s:b"], state="stale", reasons=(Reason("new_word", "something new"),))
    found = Explainer(project, {**planned, "s:b": changed}).explain("s:b")
    assert [(cause.code, cause.words) for cause in found.causes] == [("new_word", "something new")]
    # damage that was there when it was planned and is no more
    gone = replace(changed, reasons=(Reason("artifact_damaged", "artifact damaged: x"),))
    found = Explainer(project, {**planned, "s:b": gone}).explain("s:b")
    assert [cause.words for cause in found.causes] == ["artifact damaged: x"]


def test_a_diamond_is_one_root_by_the_shortest_way(chain: Sandbox, project: Project) -> None:
    join = "  %s: {kind: command, command: [sh, -c, 'cat {x}/* > {out}/o'], from: {x: %s, y: %s}}\n"
    chain.spec(
        "targets:\n"
        + simple("new", content="n")
        + simple("c", depends="new")
        + join % ("d", "new", "c")
        + join % ("e", "c", "d")
    )
    opened = Project.open(chain.root)
    found = Explainer(opened, opened.plan(opened.nodes.values())).explain("s:e")
    assert [root.chain for root in found.roots] == [("s:e", "s:c", "s:new")]


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "MAX_BYTES", 10)
    (tmp_path / "x").write_text('{"a": 1234567}')
    with pytest.raises(RefusedInput, match="more than 10 bytes"):
        exports.read_export(tmp_path / "x")


def test_nothing_is_known_outside_a_project() -> None:
    subjects = Subjects(None)
    assert subjects.find("0" * 64) is None
    with pytest.raises(UsageError, match="in no ingot project"):
        subjects.resolve("0" * 64)
    with pytest.raises(UsageError, match="in no ingot project"):
        subjects.resolve("abcd/1")


@pytest.mark.parametrize("command", [["why", "s:a", "s:b"], ["diff", "s:a", "s:b"]], ids=" ".join)
def test_explaining_loads_nothing_heavy(command: list[str], chain: Sandbox) -> None:
    chain.spec("targets:\n" + simple("a", content="y") + simple("b", depends="a"))
    program = (
        "import sys, atexit, os; heavy = " + repr(HEAVY) + "\n"
        "atexit.register(lambda: os.write(2, ('LOADED ' + ' '.join(n for n in heavy if n in sys.modules)).encode()))\n"
        f"from doit.doit_cmd import DoitMain\nsys.exit(DoitMain().run({command!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=chain.root, env=chain.env, capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    assert done.stderr.endswith("LOADED "), done.stderr[-300:]
