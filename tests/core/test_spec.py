"""Specs: what is resolved, and every mistake with its code, its place and its field, all of them at once."""

from __future__ import annotations

import json
import random
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot.errors import SpecError
from speckit import CHAIN, Folder, kinds_in_use


@pytest.fixture(autouse=True, scope="module")
def _kinds() -> Iterator[None]:
    with kinds_in_use():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def head(*lines: str, gates: str = "") -> str:
    """A spec of these target lines; they start in line 4."""
    return "format: 1\nname: s\ntargets:\n" + "".join(f"  {line}\n" for line in lines) + gates


W = "w: {kind: fetch}"
THIRTY = list(range(30))
BASE = "base: {kind: convert, from: {model: w}}"
DATA = "data: {kind: dataset, sources: [{python_stdlib: topics}]}"


def test_defaults_are_filled_in(folder: Folder) -> None:
    spec = folder.load(CHAIN)
    assert spec.targets["adapter"].params == {"rank": 8, "learning_rate": 2e-4, "steps": None, "epochs": None}
    assert spec.targets["adapter"].inputs == {"model": "base", "data": "data"}
    assert spec.targets["gguf"].params == {}
    assert spec.targets["gguf"].matrix == (("type", (("Q8_0", "Q8_0"), ("Q4_0", "Q4_0"))),)
    assert spec.targets["report"].inputs["candidates"] == ("merged", "gguf")
    assert (spec.name, spec.seed, spec.file) == ("chain", 7, "specs/a.yaml")
    assert spec.targets["adapter"].line == 8
    assert spec.gates == {"report.gguf@Q8_0.kl_divergence": {"max": 0.5}}


def test_field_names_may_be_aliases(folder: Folder) -> None:
    spec = folder.load(head("c: {kind: command, command: [a], tools: {sox: [sox, --version]}}"))
    assert spec.targets["c"].variants[()].facts.programs == {"sox": ("sox", "--version")}
    assert spec.targets["c"].params["tools"] == {"sox": ["sox", "--version"]}


ERRORS: list[tuple[str, str, list[tuple[str, str, str]]]] = [
    ("top field", "format: 1\nname: s\nsede: 1\ntargets:\n  w: {kind: fetch}\n", [("E-SPEC-FIELD", "3:1", "sede")]),
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
        "virtual of a kind that is not deterministic",
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
    ("secret", head("w: {kind: fetch, note: hf_" + "a1" * 15 + "}"), [("E-SECRET-LITERAL", "4:26", "targets.w.note")]),
]


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
        (head("n: {kind: node, matrix: {x: [1, 2]}}", gates="gates:\n  n.b: {max: 1}\n"), "one of n@1, n@2"),
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


def test_missing_file_and_file_outside(folder: Folder, tmp_path: Path) -> None:
    from ingot.core.spec import load_spec

    with pytest.raises(SpecError) as missing:
        load_spec(tmp_path / "specs" / "none.yaml", tmp_path)
    assert [(p.code, p.file) for p in missing.value.problems] == [("E-SPEC-FILE", "specs/none.yaml")]
    (tmp_path / "inner").mkdir()
    with pytest.raises(SpecError, match="inside its project"):
        load_spec(folder.write(CHAIN), tmp_path / "inner")


def test_paths_are_relative_to_the_file_that_writes_them(folder: Folder) -> None:
    lines = (
        "d: {kind: dataset, sources: [{path: ../data/x.jsonl}, {path: ./y/../z.txt}, {python_stdlib: topics}]}",
        "c: {kind: command, command: [a], files: [a.py, ../lib/*.py]}",
        "f: {kind: fetch, matrix: {path: [{one: {path: m.gguf}}]}}",
    )
    spec = folder.load(head(*lines))
    data, command, fetch = (next(iter(spec.targets[name].variants.values())).facts for name in "dcf")
    assert [source["path"] for _, source, _ in data.sources] == ["data/x.jsonl", "specs/z.txt", None]
    assert data.params["sources"][0]["path"] == "data/x.jsonl"
    assert command.sources == (("/files", {"paths": ["specs/a.py", "lib/*.py"]}, "specs"),)
    assert fetch.sources == (("/path", {"path": "specs/m.gguf", "python_stdlib": None}, "specs"),)


class TestExtends:
    parent = """\
format: 1
name: parent
seed: 3
targets:
  w: {kind: fetch, note: old, sha256: x}
  d: {kind: dataset, sources: [{path: ../data/p.txt}], dedup: {threshold: 0.5}}
  c: {kind: command, command: [a, b], files: [run.py]}
gates: {w.bytes: {max: 5}}
"""

    def load(self, folder: Folder, child: str, parent: str = parent) -> Any:
        folder.write(parent, "lib/deep/p.yaml")
        return folder.load(f"extends: ../lib/deep/p.yaml\nname: child\n{child}")

    def test_merges(self, folder: Folder) -> None:
        spec = self.load(
            folder,
            "targets:\n  w: {note: new, sha256: null}\n  d: {dedup: {grams: 5}}\n"
            "  c: {command: [z]}\n  e: {kind: fetch, note: null}\ngates: {w.bytes: null}\n",
        )
        assert (spec.name, spec.seed, spec.gates) == ("child", 3, {})
        assert spec.targets["w"].params == {"path": None, "sha256": None, "note": "new"}
        assert spec.targets["d"].params["dedup"] == {"threshold": 0.5, "grams": 5}
        assert spec.targets["d"].params["sources"][0]["path"] == "lib/data/p.txt"
        assert spec.targets["c"].params["command"] == ["z"]
        assert spec.targets["c"].params["files"] == {"paths": ["lib/deep/run.py"]}
        assert spec.targets["c"].variants[()].facts.sources[0][2] == "lib/deep"
        assert spec.targets["e"].params["note"] == ""
        assert [name for name, _ in spec.files] == ["specs/a.yaml", "lib/deep/p.yaml"]

    def test_a_target_is_deleted(self, folder: Folder) -> None:
        assert list(self.load(folder, "targets: {w: null, d: null}\ngates: null\n").targets) == ["c"]

    def test_the_name_is_not_inherited(self, folder: Folder) -> None:
        folder.write(self.parent, "specs/p.yaml")
        assert folder.problems("extends: p.yaml\n") == [("E-SPEC-MISSING", "specs/a.yaml:1:1", "name")]

    def test_places_are_those_of_the_file_that_wrote(self, folder: Folder) -> None:
        with pytest.raises(SpecError) as error:
            self.load(folder, "targets:\n  w: {nte: x}\n", self.parent.replace("threshold: 0.5", "threshold: 5"))
        assert [(p.code, p.file, p.line, p.field) for p in error.value.problems] == [
            ("E-SPEC-VALUE", "lib/deep/p.yaml", 6, "targets.d.dedup.threshold"),
            ("E-SPEC-FIELD", "specs/a.yaml", 4, "targets.w.nte"),
        ]

    def test_problems_of_both_files_come_together(self, folder: Folder) -> None:
        with pytest.raises(SpecError) as error:
            self.load(folder, "seed: 012\n", self.parent + "x: 2024-01-01\n")
        assert [(p.code, p.file) for p in error.value.problems] == [
            ("E-SPEC-AMBIGUOUS", "lib/deep/p.yaml"),
            ("E-SPEC-AMBIGUOUS", "specs/a.yaml"),
        ]

    def test_chains(self, folder: Folder) -> None:
        folder.write(self.parent, "specs/p.yaml")
        folder.write("extends: p.yaml\nname: q\nseed: 4\n", "specs/q.yaml")
        spec = folder.load("extends: q.yaml\nname: r\n")
        assert (spec.name, spec.seed, [name for name, _ in spec.files]) == (
            "r",
            4,
            ["specs/a.yaml", "specs/q.yaml", "specs/p.yaml"],
        )

    def test_a_broken_parent_is_reported_with_the_child(self, folder: Folder) -> None:
        folder.write("a: [", "specs/p.yaml")
        assert [(code, place) for code, place, _ in folder.problems("extends: p.yaml\nseed: 012\n")] == [
            ("E-SPEC-AMBIGUOUS", "specs/a.yaml:2:7"),
            ("E-YAML-SYNTAX", "specs/p.yaml:1:5"),
        ]

    @pytest.mark.parametrize(
        ("written", "code"),
        [
            ("a.yaml", "E-SPEC-EXTENDS"),
            ("b.yaml", "E-SPEC-EXTENDS"),
            ("[b.yaml]", "E-SPEC-EXTENDS"),
            ("none.yaml", "E-SPEC-FILE"),
            ("/etc/passwd", "E-PATH"),
            ("../../x.yaml", "E-PATH"),
            ("link.yaml", "E-PATH"),
        ],
    )
    def test_refused(self, folder: Folder, tmp_path_factory: pytest.TempPathFactory, written: str, code: str) -> None:
        outside = tmp_path_factory.mktemp("outside") / "x.yaml"
        outside.write_text(self.parent)
        folder.write("extends: a.yaml\n", "specs/b.yaml")
        (folder.root / "specs" / "link.yaml").symlink_to(outside)
        place = ("specs/b.yaml:1:10" if written == "b.yaml" else "specs/a.yaml:1:10", "extends")
        assert folder.problems(f"extends: {written}\n") == [(code, *place)]

    def test_long_chains_are_refused(self, folder: Folder) -> None:
        for index in range(20):
            folder.write(f"extends: s{index + 1}.yaml\n", f"specs/s{index}.yaml")
        assert folder.problems("extends: s0.yaml\n")[0][0] == "E-SPEC-EXTENDS"


# --- the digest ------------------------------------------------------------------------------------------------------

DATA_SPEC: dict[str, Any] = {
    "format": 1,
    "name": "s",
    "seed": 1,
    "targets": {
        "w": {"kind": "fetch", "sha256": "ab"},
        "base": {"kind": "convert", "from": {"model": "w"}},
        "data": {"kind": "dataset", "sources": [{"path": "x.txt"}], "dedup": {"threshold": 0.5}},
        "a": {"kind": "adapter", "from": {"model": "base", "data": "data"}, "learning_rate": 1},
        "g": {"kind": "gguf", "from": {"model": "base"}, "matrix": {"type": ["Q8_0", "Q4_0"]}},
    },
    "gates": {"g@Q8_0.bytes": {"max": 5}},
}
#: The same spec with its defaults spelled out, and one number in another spelling.
SPELLED: dict[tuple[str, ...], object] = {
    ("targets", "w", "note"): "",
    ("targets", "w", "virtual"): False,
    ("targets", "base", "dtype"): "bfloat16",
    ("targets", "data", "limit"): None,
    ("targets", "data", "dedup", "grams"): 3,
    ("targets", "a", "rank"): 16,
    ("targets", "a", "learning_rate"): 1.0,
    ("description",): "words",
}


def dump(value: object, pick: random.Random, indent: str = "") -> str:
    """YAML of JSON values, keys in random order, block or flow, with comments."""
    if isinstance(value, dict) and value and pick.random() < 0.7:
        lines = []
        for key in pick.sample(sorted(value), len(value)):
            comment = f"{indent}# {pick.choice(string.ascii_letters)}\n" if pick.random() < 0.3 else ""
            below = dump(value[key], pick, indent + "  ")
            lines.append(f"{comment}{indent}{json.dumps(key)}:{below}")
        return "\n" + "\n".join(lines)
    if isinstance(value, dict):
        keys = pick.sample(sorted(value), len(value))
        return " {" + ", ".join(f"{json.dumps(key)}: {json.dumps(value[key])}" for key in keys) + "}"
    return " " + json.dumps(value)


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.sets(st.sampled_from(sorted(SPELLED))))
def test_order_comments_and_spelled_out_defaults_do_not_change_the_digest(
    pick: random.Random, spelled: set[tuple[str, ...]]
) -> None:
    value = json.loads(json.dumps(DATA_SPEC))
    for path in spelled:
        place = value
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = SPELLED[path]
    with tempfile.TemporaryDirectory() as name:
        folder = Folder(Path(name))
        spec, plain = folder.load(dump(value, pick).lstrip("\n") + "\n"), folder.load(json.dumps(DATA_SPEC))
        assert spec.digest == plain.digest
        assert {node.name: node.params for node in spec.graph().nodes} == {
            node.name: node.params for node in plain.graph().nodes
        }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"seed": 1', '"seed": 2'),
        ('"ab"', '"ac"'),
        ('"Q4_0"]', '"F16"]'),
        ('["Q8_0", "Q4_0"]', '["Q4_0", "Q8_0"]'),
        ('"x.txt"', '"y.txt"'),
        ('{"max": 5}', '{"max": 6}'),
        ('"name": "s"', '"name": "t"'),
        ('"sha256": "ab"', '"sha256": "ab", "virtual": true'),
        ('{"model": "base"}, "matrix"', '{"model": "base2"}, "matrix"'),
    ],
)
def test_what_changes_the_digest(folder: Folder, old: str, new: str) -> None:
    twin = json.dumps(DATA_SPEC).replace(
        '"data": {', '"base2": {"kind": "convert", "from": {"model": "w"}}, "data": {', 1
    )
    assert old in twin
    assert folder.load(twin).digest != folder.load(twin.replace(old, new)).digest


# --- fuzz ------------------------------------------------------------------------------------------------------------


def mutate(text: str, pick: random.Random) -> str:
    """One to three random edits: characters, swaps of words, lines cut, doubled or moved."""
    for _ in range(pick.randint(1, 3)):
        at = pick.randrange(len(text))
        lines, line = text.splitlines(keepends=True), pick.randrange(text.count("\n"))
        words = [
            "~",
            "[]",
            "{}",
            "012",
            ".nan",
            "*a",
            "&a 1",
            "!t",
            "<<",
            "null",
            "Q8_0",
            "from",
            "gguf@Q8_0",
            "true",
            "1e9",
        ]
        text = (
            pick.choice(
                [
                    text[:at] + pick.choice("{}[]:,-#&*!|>'\"%@`? \t\n\x00\u00e9") + text[at + 1 :],
                    text[:at] + text[at + pick.randint(1, 9) :],
                    text[:at] + pick.choice(words) + text[at:],
                    "".join(lines[:line] + lines[line + 1 :]),
                    "".join([*lines[:line], lines[line], *lines[line:]]),
                    "".join([*lines[line:], *lines[:line]]),
                ]
            )
            or "x: 1\n\n"
        )
        if "\n" not in text:
            text += "\n"
    return text


def test_a_thousand_mutated_specs_raise_only_spec_errors(folder: Folder) -> None:
    pick = random.Random(1)
    accepted = 0
    places: list[tuple[int, int]] = []
    for _ in range(1000):
        text = mutate(CHAIN, pick)
        try:
            folder.load(text).graph()
            accepted += 1
        except SpecError as error:
            places += [(problem.line, problem.column) for problem in error.problems]
    assert 0 < accepted < 700
    assert min(map(min, places)) >= 1
