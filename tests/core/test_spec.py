"""Specs: what is resolved, files that extend others, the digest, and mutated specs."""

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
from speckit import CHAIN, Folder, head, kinds_in_use


@pytest.fixture(autouse=True, scope="module")
def _kinds() -> Iterator[None]:
    with kinds_in_use():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_defaults_are_filled_in(folder: Folder) -> None:
    spec = folder.load(CHAIN)
    assert spec.targets["adapter"].params == {"rank": 8, "learning_rate": 2e-4, "steps": None, "epochs": None}
    assert spec.targets["adapter"].inputs == {"model": "base", "data": "data"}
    assert spec.targets["gguf"].params == {}
    assert spec.targets["gguf"].matrix == (("type", (("Q8_0", "Q8_0"), ("Q4_0", "Q4_0"))),)
    assert spec.targets["report"].inputs["candidates"] == ("merged", "gguf")
    assert (spec.name, spec.seed, spec.file) == ("chain", 7, "specs/a.yaml")
    assert spec.targets["adapter"].line == 8
    assert spec.gates.written == {"report.gguf@Q8_0.kl_divergence": {"max": 0.5}}


def test_field_names_may_be_aliases(folder: Folder) -> None:
    spec = folder.load(head("c: {kind: command, command: [a], tools: {sox: [sox, --version]}}"))
    assert spec.targets["c"].variants[()].facts.programs == {"sox": ("sox", "--version")}
    assert spec.targets["c"].params["tools"] == {"sox": ["sox", "--version"]}


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
        assert (spec.name, spec.seed, spec.gates.written) == ("child", 3, {})
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
