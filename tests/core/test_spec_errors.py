"""Every mistake in a spec with its code, its place and its field; the nearest valid name; all mistakes at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from speckit import Folder, head, kinds_in_use


@pytest.fixture(autouse=True, scope="module")
def _kinds() -> Iterator[None]:
    with kinds_in_use():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


W = "w: {kind: fetch}"
THIRTY = list(range(30))
BASE = "base: {kind: convert, from: {model: w}}"
DATA = "data: {kind: dataset, sources: [{python_stdlib: topics}]}"


ERRORS: list[tuple[str, str, list[tuple[str, str, str]]]] = [
    ("top field", "format: 1\nname: s\nsede: 1\ntargets:\n  w: {kind: fetch}\n", [("E-SPEC-FIELD", "3:1", "sede")]),
    ("a task of lm-eval", "task: a\noutput_type: b\nmetric_list: []\n", [("E-SPEC-TASK", "1:1", "task")]),
    (
        "task as a field",
        "format: 1\nname: s\ntask: a\ntargets: {w: {kind: fetch}}\n",
        [("E-SPEC-FIELD", "3:1", "task")],
    ),
    ("format missing", "name: s\ntargets: {w: {kind: fetch}}\n", [("E-SPEC-MISSING", "1:1", "format")]),
    ("format 2", "format: 2\nname: s\ntargets: {w: {kind: fetch}}\n", [("E-SPEC-FORMAT", "1:9", "format")]),
    ("format true", "format: true\nname: s\ntargets: {w: {kind: fetch}}\n", [("E-SPEC-FORMAT", "1:9", "format")]),
    ("name missing", "format: 1\ntargets: {w: {kind: fetch}}\n", [("E-SPEC-MISSING", "1:1", "name")]),
    ("name", "format: 1\nname: A b\ntargets: {w: {kind: fetch}}\n", [("E-SPEC-NAME", "2:7", "name")]),
    ("name is a command", "format: 1\nname: list\ntargets: {w: {kind: fetch}}\n", [("E-SPEC-NAME", "2:7", "name")]),
    ("name type", "format: 1\nname: 5\ntargets: {w: {kind: fetch}}\n", [("E-SPEC-TYPE", "2:7", "name")]),
    ("seed type", "format: 1\nname: s\nseed: 1.5\ntargets: {w: {kind: fetch}}\n", [("E-SPEC-TYPE", "3:7", "seed")]),
    ("seed sign", "format: 1\nname: s\nseed: -1\ntargets: {w: {kind: fetch}}\n", [("E-SPEC-VALUE", "3:7", "seed")]),
    (
        "description",
        "format: 1\nname: s\ndescription: [x]\ntargets: {w: {kind: fetch}}\n",
        [("E-SPEC-TYPE", "3:14", "description")],
    ),
    ("no targets", "format: 1\nname: s\n", [("E-SPEC-MISSING", "1:1", "targets")]),
    ("empty targets", "format: 1\nname: s\ntargets: {}\n", [("E-SPEC-MISSING", "3:10", "targets")]),
    ("targets a list", "format: 1\nname: s\ntargets: [a]\n", [("E-SPEC-TYPE", "3:10", "targets")]),
    ("target a text", head("w: fetch"), [("E-SPEC-TYPE", "4:6", "targets.w")]),
    ("target name", head("w.x: {kind: fetch}"), [("E-SPEC-NAME", "4:3", "targets.w.x")]),
    ("target case", head("w: {kind: fetch}", "W: {kind: fetch}"), [("E-SPEC-NAME", "5:3", "targets.W")]),
    ("target twice", head("w: {kind: fetch}", "w: {kind: fetch}"), [("E-YAML-DUPKEY", "5:3", "targets.w")]),
    ("kind missing", head("w: {sha256: x}"), [("E-SPEC-MISSING", "4:3", "targets.w.kind")]),
    ("kind unknown", head("w: {kind: fetsch}"), [("E-SPEC-KIND", "4:13", "targets.w.kind")]),
    ("kind type", head("w: {kind: 1}"), [("E-SPEC-TYPE", "4:13", "targets.w.kind")]),
    ("virtual type", head("w: {kind: fetch, virtual: 1}"), [("E-SPEC-TYPE", "4:29", "targets.w.virtual")]),
    (
        "virtual, of a kind that is written whole",
        head("c: {kind: command, command: [a], virtual: true}"),
        [("E-SPEC-VALUE", "4:45", "targets.c.virtual")],
    ),
    ("field", head("w: {kind: fetch, sha265: x}"), [("E-SPEC-FIELD", "4:20", "targets.w.sha265")]),
    (
        "nested field",
        head("d: {kind: dataset, sources: [{python_stdlib: topics}], dedup: {treshold: 0.5}}"),
        [("E-SPEC-FIELD", "4:66", "targets.d.dedup.treshold")],
    ),
    ("type", head("w: {kind: fetch, sha256: [x]}"), [("E-SPEC-TYPE", "4:28", "targets.w.sha256")]),
    ("number as text", head("w: {kind: fetch, note: 5}"), [("E-SPEC-TYPE", "4:26", "targets.w.note")]),
    ("3.10 as text", head("w: {kind: fetch, note: 3.10}"), [("E-SPEC-AMBIGUOUS", "4:26", "targets.w.note")]),
    ("1e3 as text", head("w: {kind: fetch, note: 1e3}"), [("E-SPEC-AMBIGUOUS", "4:26", "targets.w.note")]),
    ("octal", head("w: {kind: fetch, note: 010}"), [("E-SPEC-AMBIGUOUS", "4:26", "targets.w.note")]),
    ("date", head("w: {kind: fetch, note: 2024-01-31}"), [("E-SPEC-AMBIGUOUS", "4:26", "targets.w.note")]),
    (
        "nan",
        head(W, BASE, "p: {kind: prune, from: {model: base}, sparsity: .nan}"),
        [("E-SPEC-NUMBER", "6:51", "targets.p.sparsity")],
    ),
    (
        "required",
        head(W, BASE, "p: {kind: prune, from: {model: base}}"),
        [("E-SPEC-MISSING", "6:3", "targets.p.sparsity")],
    ),
    (
        "range",
        head(W, BASE, "p: {kind: prune, from: {model: base}, sparsity: 1}"),
        [("E-SPEC-VALUE", "6:51", "targets.p.sparsity")],
    ),
    (
        "choice",
        head(W, "b: {kind: convert, from: {model: w}, dtype: bfloat61}"),
        [("E-SPEC-VALUE", "5:47", "targets.b.dtype")],
    ),
    (
        "union",
        head("d: {kind: dataset, sources: [{python_stdlib: topics}], limit: [1]}"),
        [("E-SPEC-TYPE", "4:65", "targets.d.limit")],
    ),
    ("item", head("c: {kind: command, command: [a, 5]}"), [("E-SPEC-TYPE", "4:35", "targets.c.command[1]")]),
    ("too short", head("c: {kind: command, command: []}"), [("E-SPEC-VALUE", "4:31", "targets.c.command")]),
    (
        "a source is one thing",
        head("d: {kind: dataset, sources: [{python_stdlib: topics, path: x}]}"),
        [("E-SPEC-VALUE", "4:32", "targets.d.sources[0]")],
    ),
    (
        "two parameters together",
        head(W, BASE, DATA, "a: {kind: adapter, from: {model: base, data: data}, steps: 1, epochs: 2}"),
        [("E-SPEC-VALUE", "7:6", "targets.a")],
    ),
    ("from missing", head("b: {kind: convert}"), [("E-SPEC-ROLE", "4:3", "targets.b.from.model")]),
    (
        "from a text",
        head(W, "b: {kind: convert, from: w}"),
        [
            ("E-SPEC-TYPE", "5:28", "targets.b.from"),
        ],
    ),
    (
        "role",
        head(W, "b: {kind: convert, from: {modle: w, model: w}}"),
        [("E-SPEC-ROLE", "5:29", "targets.b.from.modle")],
    ),
    ("no roles", head(W, "v: {kind: fetch, from: {model: w}}"), [("E-SPEC-ROLE", "5:27", "targets.v.from.model")]),
    (
        "list for one",
        head(W, "b: {kind: convert, from: {model: [w]}}"),
        [("E-SPEC-ROLE", "5:36", "targets.b.from.model")],
    ),
    (
        "one for a list",
        head(DATA, "r: {kind: report, from: {data: data, candidates: data}}"),
        [("E-SPEC-ROLE", "5:52", "targets.r.from.candidates")],
    ),
    (
        "empty list",
        head(DATA, "r: {kind: report, from: {data: data, candidates: []}}"),
        [("E-SPEC-ROLE", "5:52", "targets.r.from.candidates")],
    ),
    (
        "named twice",
        head(W, BASE, DATA, "r: {kind: report, from: {data: data, candidates: [base, base]}}"),
        [("E-SPEC-ROLE", "7:59", "targets.r.from.candidates[1]")],
    ),
    (
        "filled by ingot",
        head(W, BASE, DATA, "r: {kind: report, from: {data: data, candidates: [w], evaluations: [w]}}"),
        [("E-SPEC-ROLE", "7:57", "targets.r.from.evaluations")],
    ),
    (
        "name type in from",
        head("b: {kind: convert, from: {model: 5}}"),
        [("E-SPEC-TYPE", "4:36", "targets.b.from.model")],
    ),
    (
        "format of an input",
        head(DATA, "b: {kind: prune, sparsity: 0.1, from: {model: data}}"),
        [("E-SPEC-ROLE", "5:49", "targets.b.from.model")],
    ),
    ("input", head(W, "b: {kind: convert, from: {model: v}}"), [("E-SPEC-INPUT", "5:36", "targets.b.from.model")]),
    ("instance", head(W, "b: {kind: convert, from: {model: w@x}}"), [("E-SPEC-INPUT", "5:36", "targets.b.from.model")]),
    ("itself", head("n: {kind: node, from: {a: n}}"), [("E-SPEC-CYCLE", "4:29", "targets.n.from.a")]),
    (
        "two cycles",
        head("n: {kind: node, from: {a: m}}", "m: {kind: node, from: {many: [n]}}", "k: {kind: node, from: {b: k}}"),
        [("E-SPEC-CYCLE", "4:29", "targets.n.from.a"), ("E-SPEC-CYCLE", "6:29", "targets.k.from.b")],
    ),
    ("matrix form", head("n: {kind: node, matrix: [x]}"), [("E-SPEC-MATRIX", "4:27", "targets.n.matrix")]),
    ("matrix empty", head("n: {kind: node, matrix: {}}"), [("E-SPEC-MATRIX", "4:27", "targets.n.matrix")]),
    ("axis empty", head("n: {kind: node, matrix: {x: []}}"), [("E-SPEC-MATRIX", "4:31", "targets.n.matrix.x")]),
    ("axis form", head("n: {kind: node, matrix: {x: 5}}"), [("E-SPEC-MATRIX", "4:31", "targets.n.matrix.x")]),
    ("axis unknown", head("n: {kind: node, matrix: {w: [1]}}"), [("E-SPEC-MATRIX", "4:28", "targets.n.matrix.w")]),
    (
        "axis reserved",
        head("n: {kind: node, matrix: {virtual: [true]}}"),
        [("E-SPEC-MATRIX", "4:28", "targets.n.matrix.virtual")],
    ),
    (
        "axis set too",
        head("n: {kind: node, x: 1, matrix: {x: [2]}}"),
        [("E-SPEC-MATRIX", "4:34", "targets.n.matrix.x")],
    ),
    (
        "label twice",
        head("n: {kind: node, matrix: {x: [1, 2, 1]}}"),
        [("E-SPEC-MATRIX", "4:38", "targets.n.matrix.x[2]")],
    ),
    ("label", head("w: {kind: fetch, matrix: {note: [a b]}}"), [("E-SPEC-MATRIX", "4:36", "targets.w.matrix.note[0]")]),
    (
        "label of 1e21",
        head("n: {kind: node, matrix: {z: [1e21]}}"),
        [("E-SPEC-MATRIX", "4:32", "targets.n.matrix.z[0]")],
    ),
    (
        "label form",
        head("w: {kind: fetch, matrix: {note: [{a: b, c: d}]}}"),
        [("E-SPEC-MATRIX", "4:36", "targets.w.matrix.note[0]")],
    ),
    (
        "matrix value",
        head("n: {kind: node, matrix: {x: [1, no-number]}}"),
        [("E-SPEC-TYPE", "4:35", "targets.n.matrix.x[1]")],
    ),
    (
        "labelled matrix value",
        head("n: {kind: node, matrix: {y: [1], x: [{a: b}]}}"),
        [("E-SPEC-TYPE", "4:44", "targets.n.matrix.x[0].a")],
    ),
    (
        "too many",
        head(f"n: {{kind: node, matrix: {{x: {THIRTY}, y: {THIRTY}}}}}"),
        [("E-SPEC-MATRIX", "4:27", "targets.n.matrix")],
    ),
    (
        "too many inherited",
        head(
            f"n: {{kind: node, matrix: {{x: {THIRTY}}}}}", f"m: {{kind: node, from: {{a: n}}, matrix: {{y: {THIRTY}}}}}"
        ),
        [("E-SPEC-MATRIX", "5:3", "targets.m")],
    ),
    ("gates form", head(W, gates="gates: [x]\n"), [("E-SPEC-TYPE", "5:8", "gates")]),
    ("gate name", head(W, gates="gates:\n  w: {max: 1}\n"), [("E-SPEC-GATE", "6:3", "gates.w")]),
    ("gate metric", head(W, gates="gates:\n  w.A-b: {max: 1}\n"), [("E-SPEC-GATE", "6:3", "gates.w.A-b")]),
    ("gate target", head(W, gates="gates:\n  v.bytes: {max: 1}\n"), [("E-SPEC-GATE", "6:3", "gates.v.bytes")]),
    (
        "gate group",
        head("n: {kind: node, matrix: {x: [1, 2]}}", gates="gates:\n  n.bytes: {max: 1}\n"),
        [("E-SPEC-GATE", "6:3", "gates.n.bytes")],
    ),
    ("gate empty", head(W, gates="gates:\n  w.bytes: {}\n"), [("E-SPEC-GATE", "6:3", "gates.w.bytes")]),
    (
        "gate side",
        head(W, gates="gates:\n  w.bytes: {maxx: 1, min: 1}\n"),
        [("E-SPEC-FIELD", "6:13", "gates.w.bytes.maxx")],
    ),
    ("gate number", head(W, gates="gates:\n  w.bytes: {max: big}\n"), [("E-SPEC-GATE", "6:18", "gates.w.bytes.max")]),
    ("gate true", head(W, gates="gates:\n  w.bytes: {max: true}\n"), [("E-SPEC-GATE", "6:18", "gates.w.bytes.max")]),
    ("gate bare", head(W, gates="gates:\n  w.bytes: 5\n"), [("E-SPEC-GATE", "6:12", "gates.w.bytes")]),
    (
        "gate bound",
        head(W, gates="gates:\n  w.bytes: {max: 1, bound: up}\n"),
        [("E-SPEC-GATE", "6:28", "gates.w.bytes.bound")],
    ),
    (
        "gate contradiction",
        head(W, gates="gates:\n  w.bytes: {max: 1, min: 2}\n"),
        [("E-SPEC-GATE", "6:3", "gates.w.bytes")],
    ),
    (
        "path out",
        head("d: {kind: dataset, sources: [{path: ../../x}]}"),
        [("E-PATH", "4:39", "targets.d.sources[0].path")],
    ),
    (
        "path absolute",
        head("d: {kind: dataset, sources: [{path: /etc/passwd}]}"),
        [("E-PATH", "4:39", "targets.d.sources[0].path")],
    ),
    (
        "path home",
        head("d: {kind: dataset, sources: [{path: ~/x}]}"),
        [("E-PATH", "4:39", "targets.d.sources[0].path")],
    ),
    (
        "path NUL",
        head('d: {kind: dataset, sources: [{path: "a\\0b"}]}'),
        [("E-PATH", "4:39", "targets.d.sources[0].path")],
    ),
    (
        "path after a wildcard",
        head("d: {kind: dataset, sources: [{path: '*/../../../x'}]}"),
        [("E-PATH", "4:39", "targets.d.sources[0].path")],
    ),
    (
        "the project itself",
        head("d: {kind: dataset, sources: [{path: ..}]}"),
        [("E-PATH", "4:39", "targets.d.sources[0].path")],
    ),
    (
        "files",
        head("c: {kind: command, command: [a], files: [ok.py, ../../x]}"),
        [("E-PATH", "4:51", "targets.c.files[1]")],
    ),
    ("path alone", head("w: {kind: fetch, path: ../../x}"), [("E-PATH", "4:26", "targets.w.path")]),
    (
        "list in an axis",
        head("w: {kind: fetch, matrix: {note: [[a]]}}"),
        [("E-SPEC-MATRIX", "4:36", "targets.w.matrix.note[0]")],
    ),
    ("implied kind", head("o: {kind: orphan, name: x}"), [("E-SPEC-KIND", "4:13", "targets.o.kind")]),
    ("secret", head("w: {kind: fetch, note: hf_" + "a1" * 15 + "}"), [("E-SECRET-LITERAL", "4:26", "targets.w.note")]),
]


@pytest.mark.fault("Y", "one mistake in a spec: fields, types, names, roles, cycles, matrices, gates, paths")
@pytest.mark.parametrize(("text", "expected"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS])
def test_each_mistake_has_its_code_place_and_field(
    folder: Folder, text: str, expected: list[tuple[str, str, str]]
) -> None:
    assert folder.problems(text) == [(code, f"specs/a.yaml:{place}", field) for code, place, field in expected]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (head("w: {kind: fetch, sha265: x}"), "did you mean 'sha256'?"),
        (head("w: {kind: fetsch}"), "did you mean 'fetch'?"),
        (head(W, "b: {kind: convert, from: {modle: w, model: w}}"), "did you mean 'model'?"),
        (head(W, BASE, "c: {kind: convert, from: {model: bass}}"), "did you mean 'base'?"),
        (
            head("d: {kind: dataset, sources: [{python_stdlib: topics}], dedup: {treshold: 1}}"),
            "did you mean 'threshold'?",
        ),
        (head("w: {kind: fetch, form: {model: w}}"), "did you mean 'from'?"),
        (head(W, "b: {kind: convert, from: {model: w}, dtype: float61}"), "did you mean 'float16'?"),
        (head(W, gates="gates:\n  v.bytes: {maxi: 1}\n"), "did you mean 'max'?"),
        (head("n: {kind: node, matrix: {x: [1, 2]}}", "m: {kind: node, from: {a: n@3}}"), "did you mean 'n@2'?"),
        (head("n: {kind: node, matrix: {x: [1, 2]}}", gates="gates:\n  n.bytes: {max: 1}\n"), "one of n@1, n@2"),
        (head("w: {kind: fetch, note: 3.10}"), 'quote it: "3.10"'),
    ],
)
def test_the_nearest_valid_name_is_offered(folder: Folder, text: str, hint: str) -> None:
    assert hint in [problem.hint for problem in folder.error(text).problems]


def test_sentences_are_for_people(folder: Folder) -> None:
    lines = str(folder.error(head(W, BASE, "p: {kind: prune, from: {model: base}, sparsity: [1], mask: {grams: x}}")))
    assert "specs/a.yaml:6:51: E-SPEC-TYPE: targets.p.sparsity: must be a number, not a list" in lines
    assert "targets.p.mask.grams: must be a whole number, not 'x'" in lines
    union = head("d: {kind: dataset, sources: [{python_stdlib: topics}], limit: [1]}")
    assert "must be a whole number or text, not a list" in str(folder.error(union))
    cycle = head("n: {kind: node, from: {a: m}}", "m: {kind: node, from: {a: n}}")
    assert "a cycle: n -> m -> n" in str(folder.error(cycle))
    both = head(W, BASE, DATA, "a: {kind: adapter, from: {model: base, data: data}, steps: 1, epochs: 2}")
    assert "give 'steps' or 'epochs', not both" in str(folder.error(both))


def test_all_mistakes_at_once(folder: Folder) -> None:
    text = """\
format: 1
name: all
nmae: x
targets:
  w: {kind: fetsch}
  b: {kind: convert, from: {model: v}, dtype: 012}
  n: {kind: node, matrix: {x: [a]}, q: 1}
  m: {kind: node, from: {a: k}}
  k: {kind: node, from: {a: m}}
gates:
  w.bytes: {maxi: 1}
"""
    assert [f"{code} {place.rpartition('a.yaml:')[2]}" for code, place, _ in folder.problems(text)] == [
        "E-SPEC-FIELD 3:1",
        "E-SPEC-KIND 5:13",
        "E-SPEC-INPUT 6:36",
        "E-SPEC-AMBIGUOUS 6:47",
        "E-SPEC-TYPE 7:32",
        "E-SPEC-FIELD 7:37",
        "E-SPEC-CYCLE 8:29",
        "E-SPEC-GATE 11:3",
        "E-SPEC-FIELD 11:13",
    ]


def test_a_cycle_through_a_target_with_other_mistakes(folder: Folder) -> None:
    assert folder.problems(head("n: {kind: node, from: {b: 5, many: [5], a: n}}")) == [
        ("E-SPEC-TYPE", "specs/a.yaml:4:29", "targets.n.from.b"),
        ("E-SPEC-TYPE", "specs/a.yaml:4:39", "targets.n.from.many[0]"),
        ("E-SPEC-CYCLE", "specs/a.yaml:4:46", "targets.n.from.a"),
    ]


def test_too_many_instances_in_a_spec(folder: Folder) -> None:
    lines = [f"n{index}: {{kind: node, matrix: {{x: {list(range(400))}}}}}" for index in range(13)]
    assert folder.problems(head(*lines)) == [("E-SPEC-MATRIX", "specs/a.yaml:16:3", "targets.n12")]


def test_what_hangs_on_an_unknown_instance_is_not_reported_twice(folder: Folder) -> None:
    lines = (
        "n: {kind: node, matrix: {x: [1, 2]}}",
        "m: {kind: node, from: {many: [n@1, n@3]}}",
        "k: {kind: node, from: {a: m@1}}",
    )
    assert folder.problems(head(*lines, gates="gates:\n  k@1.bytes: {max: 1}\n")) == [
        ("E-SPEC-INPUT", "specs/a.yaml:5:38", "targets.m.from.many[1]")
    ]


def test_a_scalar_that_was_refused_is_not_judged_again(folder: Folder) -> None:
    assert folder.problems("format: 1\nname: 012\ntargets:\n  w: {kind: 2024-01-01}\n") == [
        ("E-SPEC-AMBIGUOUS", "specs/a.yaml:2:7", "name"),
        ("E-SPEC-AMBIGUOUS", "specs/a.yaml:4:13", "targets.w.kind"),
    ]
