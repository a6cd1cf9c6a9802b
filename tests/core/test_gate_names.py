"""``gates:`` as written: what nothing measures is refused when the spec is read, with place and nearest name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingot.core.gate_presets import PRESETS
from ingot.core.gates import Gate
from ingot.core.graph import SpecGraph, from_json, to_json
from speckit import CHAIN, Folder, kinds_in_use


@pytest.fixture(autouse=True, scope="module")
def _kinds() -> Iterator[None]:
    with kinds_in_use():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def chain(*gates: str, fast: bool = False) -> str:
    """The chain with these lines of gates; they start in line 14."""
    text = CHAIN.partition("gates:\n")[0] + "gates:\n" + "".join(f"  {line}\n" for line in gates)
    return text.replace("matrix: {type: [Q8_0, Q4_0]}", "benchmark: true, matrix: {type: [Q8_0, Q4_0]}" if fast else
                        "matrix: {type: [Q8_0, Q4_0]}")  # fmt: skip


def graph(folder: Folder, *gates: str, fast: bool = False) -> SpecGraph:
    return folder.load(chain(*gates, fast=fast)).graph()


MISTAKES: list[tuple[str, str, str, str | None]] = [
    ("report.gguf@Q8_0.kl_divergense: {max: 1}", "14:3", "nothing measures 'kl_divergense'", "'kl_divergence'"),
    ("report.base.kl_divergence: {max: 1}", "14:3", "nothing measures 'kl_divergence' of 'report.base'", "nll"),
    ("gguf@Q8_0.perplexity: {max: 1}", "14:3", "of 'gguf@Q8_0' (kind 'gguf')", "'report.gguf@Q8_0.perplexity'"),
    ("gguf@Q8_0.cost: {max: 1}", "14:3", "nothing measures 'cost'", "it measures bytes"),
    ("report.merged.nll: {max: 1, relative_to: referense}", "14:44", "under the name 'referense'", "'reference'"),
    ("report.merged.nll: {max: 1, relative_to: report.bass}", "14:44", "under the name", "'report.base'"),
    ("report.merged.nll: {max: 1, relative_to: gguf}", "14:44", "under the name", "one of gguf@Q4_0, gguf@Q8_0"),
    ("report.merged.nll: {max: 1, minus: merged}", "14:38", "nothing measures 'nll' of 'merged'", "report.merged.nll"),
    ("report.merged.nll: {max: 1, minus: report.merged}", "14:38", "compared with itself", None),
    ("report.base.nll: {max: 1, minus: reference}", "14:36", "compared with itself", None),
    ("gguf@Q8_0.bytes: {max: 1, minus: reference}", "14:36", "no measurement of a report that has a reference", "name"),
    ("report.merged.nll: {max: 1, minus: 5}", "14:38", "must be the name of a node or one of reference", None),
    ("report.merged.nll: {max: 1, minus: active, relative_to: active}", "14:31", "not by both", None),
    ("report.merged.nll: {max: 0, relative_to: active}", "14:3", "the limit of a ratio is above 0", "minus"),
    ("report.merged.nll: {max: 1, severity: wran}", "14:41", "must be one of fail, warn", "'warn'"),
    ("report.merged.nll: {max: 1, undecided: fail}", "14:31", "can be undecided", None),
    (
        "report.merged.nll: {max: 1, bound: proven, severity: warn, undecided: fail}", "14:62", "never fails", None,
    ),
    ("presset: {gguf: edge}", "14:3", "TARGET.METRIC", "'presets'"),
    ("presets: edge", "14:12", "presets are a mapping", None),
    ("presets: {guff@Q8_0: batch}", "14:13", "there is no target 'guff@Q8_0'", "'gguf@Q8_0'"),
    ("presets: {merged: interactiv}", "14:21", "there is no preset 'interactiv'", "'interactive'"),
    ("presets: {merged: [5]}", "14:22", "there is no preset", "one of interactive, chat, batch, edge"),
    ("presets: {merged: {edge: 5}}", "14:28", "a preset is changed by", None),
    ("presets: {merged: {edge: {first_tokens: 1}}}", "14:29", "unknown field 'first_tokens'", "'first_token_s'"),
    ("regression: maybe", "14:15", "must be true, false or a mapping", None),
    ("regression: {severity: never}", "14:26", "must be one of fail, warn", None),
    ("regression: {metrics: []}", "14:25", "names no metric", "switches it off"),
    ("regression: {metrics: nll}", "14:25", "must be a list of metrics", None),
    ("regression: {metrics: [nil]}", "14:26", "nothing measures 'nil' of a candidate", "'nll'"),
    ("regression: {metrics: [tensors_f16]}", "14:26", "which way 'tensors_f16' is better", "minus: active"),
    ("regression: {metrics: [5]}", "14:26", "must be the name of a metric", None),
    ("regression: {margin: {nll: -1}}", "14:30", "must be a number of at least 0", None),
    ("regression: {margin: 5}", "14:24", "must be a mapping of metrics", None),
    ("regression: {undecidet: warn}", "14:16", "unknown field", "'undecided'"),
]  # fmt: skip


@pytest.mark.fault("Y", "a gate on what nothing measures, or beside what is not there, is refused with its place")
@pytest.mark.parametrize(("line", "place", "what", "hint"), MISTAKES, ids=[case[0][:44] for case in MISTAKES])
def test_a_gate_that_cannot_be_judged_is_refused(
    folder: Folder, line: str, place: str, what: str, hint: str | None
) -> None:
    problems = folder.error(chain(line)).problems
    found = [it for it in problems if what in it.what]
    assert [f"{it.line}:{it.column}" for it in found] == [place], problems
    assert hint is None or hint in str(found[0].hint), found[0].hint


def test_all_of_them_come_at_once(folder: Folder) -> None:
    lines = ["report.merged.nl: {max: 1}", "gguf@Q8_0.byte: {max: 1}", "presets: {gguf: foo}"]
    assert [it.line for it in folder.error(chain(*lines)).problems if it.code == "E-SPEC-GATE"] == [14, 15, 16]


def test_names_with_capitals_stand_for_several_and_prices_measure_all(folder: Folder) -> None:
    text = chain("report.merged.tensors_q4_0: {max: 1}", "gguf@Q8_0.cost: {max: 1}")
    gates = folder.load(text + "prices: {machine_hour: 1, currency: EUR}\n").graph().gates
    assert [gate.metric for gate in gates] == ["tensors_q4_0", "cost"]


def test_a_target_that_is_wrong_itself_is_not_said_to_measure_nothing(folder: Folder) -> None:
    text = chain("gguf@Q5.first_token_s: {max: 1}").replace("{type: [Q8_0, Q4_0]}", "{type: [Q8_0, Q5]}")
    assert [problem.code for problem in folder.error(text).problems] == ["E-SPEC-VALUE"]


def test_a_reference_becomes_the_node_that_measures_it_and_survives_the_cache(folder: Folder) -> None:
    found = graph(
        folder,
        "report.merged.perplexity: {max: 1.05, relative_to: reference, bound: confident, undecided: fail}",
        "report.merged.nll: {max: 0.02, minus: last_good, severity: warn}",
        "gguf@Q4_0.bytes: {max: 0.7, relative_to: gguf@Q8_0}",
        "regression: {severity: warn, margin: {nll: 0.01}}",
    )
    name = "report.merged.perplexity"
    first = Gate(name, max=1.05, bound="confident", undecided="fail", form="ratio", other="report.base")
    second = Gate("report.merged.nll", max=0.02, severity="warn", form="difference", other="last_good")
    assert found.gates == (first, second, Gate("gguf@Q4_0.bytes", max=0.7, form="ratio", other="gguf@Q8_0"))
    assert found.regression == {"severity": "warn", "margin": {"nll": 0.01}}
    assert from_json(to_json(found)) == found
    assert graph(folder, "regression: false").regression is None
    assert graph(folder, "regression: true").regression == {}


def test_each_node_says_what_it_measures(folder: Folder) -> None:
    nodes = {node.name: node.measured for node in graph(folder, "regression: true", fast=True).nodes}
    assert "kl_divergence" in nodes["report.merged"]
    assert "kl_divergence" not in nodes["report.base"]
    assert nodes["gguf@Q8_0"] == ("bytes", "first_token_s", "token_p50_s")


# --- presets ----------------------------------------------------------------------------------------------------------

SLOW = "token_p95_s: null, generation_tokens_per_second: null"


def test_a_preset_limits_what_the_target_and_its_reports_measure(folder: Folder) -> None:
    found = {gate.name: gate for gate in graph(folder, f"presets: {{gguf: {{chat: {{{SLOW}}}}}}}", fast=True).gates}
    names = [
        "gguf@Q.first_token_s",
        "gguf@Q.token_p50_s",
        "report.gguf@Q.kl_divergence",
        "report.gguf@Q.scores_kept",
    ]
    assert sorted(found) == sorted(name.replace("@Q", f"@{q}") for q in ("Q8_0", "Q4_0") for name in names)
    limits = PRESETS["chat"].limits
    assert found["gguf@Q8_0.first_token_s"].max == limits["first_token_s"].number
    kept = found["report.gguf@Q8_0.scores_kept"]
    assert (kept.min, kept.form, kept.other) == (PRESETS["chat"].kept, "ratio", "report.base")
    assert {gate.rule for gate in found.values()} == {"preset chat"}


def test_each_number_of_a_preset_can_be_changed_or_left_out(folder: Folder) -> None:
    changed = f"presets: {{gguf@Q8_0: {{chat: {{{SLOW}, first_token_s: 9, kl_divergence: null, scores_kept: 0.5}}}}}}"
    found = {gate.name: gate for gate in graph(folder, changed, fast=True).gates}
    assert found["gguf@Q8_0.first_token_s"].max == 9
    assert found["report.gguf@Q8_0.scores_kept"].min == 0.5
    assert "report.gguf@Q8_0.kl_divergence" not in found
    for wrong in ("first_token_s: fast", "scores_kept: 0", "scores_kept: all"):
        line = f"presets: {{gguf@Q8_0: {{chat: {{{SLOW}, {wrong}}}}}}}"
        assert "must be a" in str(folder.error(chain(line, fast=True)))


def test_a_preset_may_only_warn(folder: Folder) -> None:
    line = f"presets: {{gguf@Q8_0: {{chat: {{{SLOW}, severity: SEVERITY}}}}}}"
    assert {gate.severity for gate in graph(folder, line.replace("SEVERITY", "warn"), fast=True).gates} == {"warn"}
    assert "must be one of fail, warn" in str(folder.error(chain(line.replace("SEVERITY", "loud"), fast=True)))


def test_a_preset_that_limits_what_nothing_measures_says_so(folder: Folder) -> None:
    error = str(folder.error(chain("presets: {gguf@Q8_0: interactive}")))
    assert "the preset 'interactive' limits 'first_token_s', which nothing measures of 'gguf@Q8_0'" in error
    assert "{gguf@Q8_0: {interactive: {first_token_s: null}}}" in error
    assert "'kl_divergence'" not in error, "its report measures that"


def test_every_preset_limits_what_real_kinds_measure() -> None:
    from ingot.stages.evaluate import Evaluate
    from ingot.stages.gguf import Gguf

    known = {it.metric for it in (*Gguf.measures, *Evaluate.measures)}
    for preset in PRESETS.values():
        assert set(preset.limits) <= known
        assert {limit.side for limit in preset.limits.values()} <= {"max", "min"}
        assert 0 < preset.kept <= 1
