"""The bounded YAML reader: what it accepts, where it says things are, and everything that it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingot.core.yaml_reader import MAX_BYTES, MAX_EVENTS, MAX_SCALAR, Place, field_name, read_yaml
from ingot.errors import Problem, SpecError


def problems(text: str | bytes) -> list[Problem]:
    """All problems of a text, fatal or not."""
    try:
        return read_yaml(text if isinstance(text, bytes) else text.encode(), "a.yaml")[1]
    except SpecError as error:
        return list(error.problems)


def found(text: str | bytes) -> list[tuple[str, int, int, str]]:
    return [(p.code, p.line, p.column, p.field) for p in problems(text)]


def test_values_and_places() -> None:
    text = "a: 1\nb:\n  c: [x, {d: 1e-4}]\n  e: 'no'\n  f: ~\n  g: -0.5\n  h: true\n  i: .5\n"
    document, none = read_yaml(text.encode(), "a.yaml")
    assert none == []
    assert document.value == {
        "a": 1,
        "b": {"c": ["x", {"d": 0.0001}], "e": "no", "f": None, "g": -0.5, "h": True, "i": 0.5},
    }
    assert document.places["b", "c", 1, "d"] == Place("a.yaml", 3, 14)
    assert document.keys["b", "c", 1, "d"] == Place("a.yaml", 3, 11)
    assert document.places["b", "e"] == Place("a.yaml", 4, 6)
    assert document.raw["b", "c", 1, "d"] == "1e-4"
    assert field_name(("b", "c", 1, "d")) == "b.c[1].d"


def test_byte_order_mark_and_yaml_1_2_line_are_accepted() -> None:
    assert read_yaml(b"\xef\xbb\xbfa: 1\n", "a.yaml")[0].value == {"a": 1}
    assert read_yaml(b"%YAML 1.2\n---\na: 1\n", "a.yaml")[0].value == {"a": 1}


@pytest.mark.fault("Y", "values that two readers of YAML read differently, and numbers that JSON cannot hold")
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("012", "AMBIGUOUS"), ("0o12", "AMBIGUOUS"), ("0x1F", "AMBIGUOUS"), ("0b11", "AMBIGUOUS"),
        ("2024-01-31", "AMBIGUOUS"), ("2024-01-31T10:00:00Z", "AMBIGUOUS"), ("1:20", "AMBIGUOUS"),
        ("1:20:30.5", "AMBIGUOUS"), ("yes", "AMBIGUOUS"), ("No", "AMBIGUOUS"), ("ON", "AMBIGUOUS"),
        ("off", "AMBIGUOUS"), ("1_000", "AMBIGUOUS"), ("-017", "AMBIGUOUS"),
        (".nan", "NUMBER"), (".inf", "NUMBER"), ("-.INF", "NUMBER"), ("1e400", "NUMBER"),
        ("9007199254740992", "NUMBER"), ("-9007199254740992", "NUMBER"), ("9" * 5000, "NUMBER"),
    ],
)  # fmt: skip
def test_ambiguous_scalars_are_refused_unless_quoted(text: str, code: str) -> None:
    assert found(f"a:\n  - x\n  - {text}\n") == [(f"E-SPEC-{code}", 3, 5, "a[1]")]
    assert read_yaml(f"a: '{text}'\n".encode(), "a.yaml")[0].value == {"a": text}
    (problem,) = problems(f"a: {text}")
    assert "quote it" in str(problem.hint)
    assert len(problem.what) < 200


@pytest.mark.parametrize(
    "text", ["v1.2", "1.2.3", "2024-1", "nan", "inf", "y", "n", "1e", "0.1a", "-x", "a:b", "12:99"]
)
def test_text_that_only_looks_like_more(text: str) -> None:
    assert read_yaml(f"a: {text}\n".encode(), "a.yaml")[0].value == {"a": text}


def test_largest_integer_is_accepted() -> None:
    assert read_yaml(b"a: 9007199254740991", "a.yaml")[0].value == {"a": 2**53 - 1}


@pytest.mark.fault("Y", "anchors, tags, merge keys, duplicates, other encodings and what passes the limits of a spec")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &x 1\nb: *x\n", [("E-YAML-ALIAS", 1, 4, "a"), ("E-YAML-ALIAS", 2, 4, "b")]),
        ("a: 1\n<<: {b: 2}\n", [("E-YAML-MERGE", 2, 1, "<<")]),
        ("a: !!str 1\n", [("E-YAML-TAG", 1, 4, "a")]),
        ("a: ! 1\n", [("E-YAML-TAG", 1, 4, "a")]),
        ("a: !!python/object/apply:os.system [ls]\n", [("E-YAML-TAG", 1, 4, "a")]),
        ("a: 1\nb: 2\na: 3\n", [("E-YAML-DUPKEY", 3, 1, "a")]),
        ("a: 1\n---\nb: 2\n", [("E-YAML-MULTIDOC", 2, 1, "")]),
        ("[1, 2]: 3\n", [("E-YAML-KEY", 1, 1, "")]),
        ("? {a: 1}\n: 3\n", [("E-YAML-KEY", 1, 3, "")]),
        (": 3\n", [("E-YAML-KEY", 1, 1, "")]),
        ("a: [1, 2\nb: 3\n", [("E-YAML-SYNTAX", 2, 2, "")]),
        ("a:\n\tb: 1\n", [("E-YAML-SYNTAX", 2, 1, "")]),
        ("a: 'x\n", [("E-YAML-SYNTAX", 2, 1, "")]),
        ("a: b\x00c\n", [("E-YAML-SYNTAX", 1, 5, "")]),
        ("%YAML 1.1\n---\na: 1\n", [("E-YAML-SYNTAX", 2, 1, "")]),
        ('a: "\\UFFFFFFFF"\n', [("E-YAML-SYNTAX", 1, 1, "")]),
        ('a: "\\uD800"\n', [("E-YAML-UTF8", 1, 4, "")]),
        (b"a: \xff\n", [("E-YAML-UTF8", 1, 4, "")]),
        ("a: 1\n".encode("utf-16"), [("E-YAML-UTF8", 1, 1, "")]),
        ("", [("E-SPEC-EMPTY", 1, 1, "")]),
        (" \n# nothing\n", [("E-SPEC-EMPTY", 1, 1, "")]),
        ("~\n", [("E-SPEC-EMPTY", 1, 1, "")]),
        ("- a\n", [("E-SPEC-TYPE", 1, 1, "")]),
        ("a: " + "x" * (MAX_SCALAR + 1), [("E-YAML-SCALAR", 1, 4, "")]),
        ("a: 1 #" + "x" * MAX_BYTES, [("E-YAML-SIZE", 1, 1, "")]),
        ("a: [" + "1," * MAX_EVENTS + "]", [("E-YAML-NODES", 1, 39995, "")]),
        ("a: " + "[" * 32 + "]" * 32, [("E-YAML-DEPTH", 1, 35, "")]),
    ],
)
def test_refused(text: str | bytes, expected: list[tuple[str, int, int, str]]) -> None:
    assert found(text) == expected


def test_limits_are_inclusive() -> None:
    assert problems("a: " + "[" * 31 + "]" * 31) == []
    assert problems("a: " + "x" * MAX_SCALAR) == []


def test_a_duplicate_key_names_both_lines() -> None:
    (problem,) = problems("a: {x: 1}\nb: 2\na: {y: 1}\n")
    assert (problem.line, problem.column) == (3, 1)
    assert "line 1, column 1" in problem.what


def test_problems_before_a_fatal_one_are_kept() -> None:
    assert [code for code, *_ in found("a: 012\nb: [1\nc: 2\n")] == ["E-SPEC-AMBIGUOUS", "E-YAML-SYNTAX"]


@pytest.mark.fault("S1", "a literal key in a spec, of each form and in each place")
@pytest.mark.parametrize(
    "secret",
    ["sk-" + "a1" * 12, "hf_" + "Ab" * 15, "AKIA" + "A1" * 8, "ghp_" + "a" * 36, "-----BEGIN RSA PRIVATE KEY-----"],
)
@pytest.mark.parametrize("text", ["token: {}\n", "a: [x, 'prefix {}']\n", "'{}': 1\n"])
def test_a_literal_key_is_refused_and_never_shown(secret: str, text: str) -> None:
    (problem,) = problems(text.format(secret))
    assert problem.code == "E-SECRET-LITERAL"
    assert secret not in str(problem)


@pytest.mark.fault("Y", "YAML bombs")
@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x,x]\n" + "".join(f"b{i}: &b{i} [*a,*a]\n" for i in range(30)),
        "[" * 100_000,
        "{a: " * 10_000,
        "- " * 50_000,
        "? " * 50_000,
        "a: " + "'" * 200_000,
        "#" * 1_000_000,
        "a: |\n" + " x\n" * 40_000,
        "!" * 100_000,
        "a: " + "\\" * 300_000,
        "- a\n" * 30_000,
    ],
)
def test_bombs_end_soon(text: str) -> None:
    assert problems(text)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_give_a_document_or_problems(data: bytes) -> None:
    try:
        document, _ = read_yaml(data, "a.yaml")
    except SpecError:
        return
    assert isinstance(document.value, dict)


@given(st.text("ab:-[]{}&*!|>'\"%@`#,? \n\t0123.~\\xuU\u2028\x85", max_size=60))
def test_any_yaml_like_text_gives_a_document_or_problems(text: str) -> None:
    test_any_bytes_give_a_document_or_problems.hypothesis.inner_test(text.encode())  # type: ignore[attr-defined]
