"""What a person reads who makes a mistake with a real kind: each mistake once, in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from speckit import Folder, head

HF = "w: {kind: fetch, hf: owner/model, revision: abcdef7890123456789012345678901234567890}"
DATA = "d: {kind: dataset, sources: [{python_stdlib: topics}]}"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def lines(folder: Folder, *targets: str) -> list[str]:
    """Each problem as ``CODE field: what [hint]``."""
    found = folder.error(head(*targets)).problems
    return [f"{p.code} {p.field}: {p.what}" + (f" [{p.hint}]" if p.hint else "") for p in found]


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (
            "w: {kind: fetch, url: 'https://example.org/a.gguf', sha256: abc}",
            "E-SPEC-VALUE targets.w.sha256: must be 64 lower-case hex digits, not 'abc'",
        ),
        (
            "w: {kind: fetch, hf: owner/model, revision: main}",
            (
                "E-SPEC-VALUE targets.w.revision: must be 40 lower-case hex digits, not 'main' "
                "[branches and tags move: give the commit's 40 hex digits]"
            ),
        ),
        (
            "w: {kind: fetch, pypi: six, member: six.py, sha256: " + "a" * 64 + "}",
            "E-SPEC-VALUE targets.w.pypi: 'six' is not of the form wanted: a wheel on PyPI: NAME==VERSION",
        ),
        (
            "b: {kind: fetch, path: m}\n  d: {kind: coreml, from: {model: b}, sequence_lengths: []}",
            "E-SPEC-VALUE targets.d.sequence_lengths: must have at least 1 item, not 0",
        ),
        (
            "d: {kind: dataset, sources: {path: a.jsonl}}",
            "E-SPEC-TYPE targets.d.sources: must be a list, not a mapping",
        ),
        (
            "d: {kind: dataset, sources: [{path: a.jsonl, feilds: {text: t}}]}",
            "E-SPEC-FIELD targets.d.sources[0].feilds: unknown field 'feilds' [did you mean 'fields'?]",
        ),
        (
            "d: {kind: dataset, sources: [{path: a.jsonl, format: csv}]}",
            "E-SPEC-VALUE targets.d.sources[0].format: 'csv' is not one of jsonl, json, text",
        ),
    ],
)
def test_a_default_made_of_a_wrong_value_is_no_problem_of_its_own(folder: Folder, target: str, line: str) -> None:
    assert lines(folder, target) == [line]


def test_a_wrong_parameter_of_adapter_is_one_problem(folder: Folder) -> None:
    adapter = "a: {kind: adapter, from: {model: w, data: d}, rank: three, steps: 3}"
    assert lines(folder, HF, DATA, adapter) == ["E-SPEC-TYPE targets.a.rank: must be a whole number, not 'three'"]


def test_a_share_out_of_range_is_one_problem(folder: Folder) -> None:
    """A mapping of names would do as well; that a number is none is no second mistake."""
    assert lines(folder, HF, "p: {kind: prune, from: {model: w}, sparsity: 1.5}") == [
        "E-SPEC-VALUE targets.p.sparsity: must be less than 1.0, not 1.5"
    ]
    assert lines(folder, HF, "p: {kind: prune, from: {model: w}, sparsity: [1]}") == [
        "E-SPEC-TYPE targets.p.sparsity: must be a number or a mapping, not a list"
    ]


def test_a_misspelt_role_is_not_also_missing(folder: Folder) -> None:
    assert lines(folder, HF, "g: {kind: gguf, type: F16, from: {modl: w}}") == [
        "E-SPEC-ROLE targets.g.from.modl: unknown role 'modl' of kind 'gguf' [did you mean 'model'?]"
    ]
    evaluate = "e: {kind: evaluate, from: {candidate: w, reference: w, daat: d}}"
    assert [line.split(":")[0] for line in lines(folder, HF, DATA, evaluate)] == ["E-SPEC-ROLE targets.e.from.daat"]
    other = lines(folder, HF, "g: {kind: gguf, type: F16, from: {zzz: w}}")
    assert "E-SPEC-ROLE targets.g.from.model: the role 'model' is not filled [from: {model: TARGET}]" in other


@pytest.mark.parametrize(
    ("matrix", "line"),
    [
        ("{type: []}", "E-SPEC-MATRIX targets.g.matrix.type: needs a list of at least one value"),
        ("{type: [F16, F16]}", "E-SPEC-MATRIX targets.g.matrix.type[1]: the label 'F16' is used twice"),
        ("{typ: [F16]}", "E-SPEC-MATRIX targets.g.matrix.typ: unknown parameter 'typ' [did you mean 'type'?]"),
        ("[F16]", "E-SPEC-MATRIX targets.g.matrix: a matrix is a mapping of parameters to lists of values"),
    ],
)
def test_a_parameter_of_a_wrong_matrix_is_not_also_missing(folder: Folder, matrix: str, line: str) -> None:
    assert lines(folder, HF, f"g: {{kind: gguf, from: {{model: w}}, matrix: {matrix}}}") == [line]


def test_parameters_that_hang_on_a_wrong_matrix_are_not_judged_together(folder: Folder) -> None:
    """Without its axis, ``steps`` would seem not given."""
    adapter = "a: {kind: adapter, from: {model: w, data: d}, rank: 0, matrix: {steps: []}}"
    assert lines(folder, HF, DATA, adapter) == [
        "E-SPEC-VALUE targets.a.rank: must be at least 1, not 0",
        "E-SPEC-MATRIX targets.a.matrix.steps: needs a list of at least one value",
    ]
    assert [line.split(":")[0] for line in lines(folder, HF, DATA, adapter.replace("rank: 0", "rank: 1"))] == [
        "E-SPEC-MATRIX targets.a.matrix.steps"
    ]


def test_what_a_yes_means_is_offered(folder: Folder) -> None:
    assert "write `true`" in lines(folder, HF[:-1] + ", virtual: yes}")[0]
    assert "write `false`" in lines(folder, HF[:-1] + ", virtual: off}")[0]


def test_wanda_without_calibration_is_found_when_the_spec_is_read(folder: Folder) -> None:
    base = "b: {kind: convert, from: {model: w}}"
    prune = "p: {kind: prune, method: wanda, sparsity: 0.5, from: {model: b}}"
    line = (
        "E-SPEC-ROLE targets.p.from.calibration: the role 'calibration' is not filled, and 'method: wanda' needs "
        "its documents [from: {calibration: TARGET}]"
    )
    assert lines(folder, HF, base, prune) == [line]
    axis = "p: {kind: prune, sparsity: 0.5, from: {model: b}, matrix: {method: [magnitude, wanda]}}"
    assert lines(folder, HF, base, axis) == [line]
    misspelt = prune.replace("{model: b}", "{model: b, calibraton: d}")
    assert [item.split(":")[0] for item in lines(folder, HF, DATA, base, misspelt)] == [
        "E-SPEC-ROLE targets.p.from.calibraton"
    ]
    folder.load(head(HF, DATA, base, prune.replace("{model: b}", "{model: b, calibration: d}")))
    folder.load(head(HF, base, prune.replace("wanda", "magnitude")))


def test_a_placeholder_of_nothing_is_found_when_the_spec_is_read(folder: Folder) -> None:
    good = "c: {kind: command, command: [cp, '{d}/train.jsonl', '{out}'], env: {T: '{scratch}'}, from: {d: d}}"
    folder.load(head(DATA, good))
    known = "names no input of this target; known: {checkpoints}, {d}, {out}, {scratch}, {threads}"
    assert lines(folder, DATA, good.replace("{out}", "{outt}")) == [
        f"E-SPEC-VALUE targets.c.command: the placeholder {{outt}} {known}"
    ]
    assert lines(folder, DATA, good.replace("{scratch}", "{scrach}/x")) == [
        f"E-SPEC-VALUE targets.c.env: the placeholder {{scrach}} {known}"
    ]
    assert lines(folder, DATA, good.replace("from: {d: d}", "from: {d: d, out: d}")) == [
        "E-SPEC-ROLE targets.c.from.out: a role cannot be called 'out': {out} stands for something else in commands"
    ]
