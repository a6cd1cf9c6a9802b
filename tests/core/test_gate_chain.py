"""Gates over recorded results, judged by the real ``doit``: what fails, what only warns, what is compared with what."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import pytest

from decisionkit import Files, Metrics, fill, last_good, opened, own_keys, report_spec
from ingot.core.promotion import promote
from ingot.core.statement import decision_of, decision_statement
from projectkit import Sandbox
from recordkit import codes, registry_of

Fields = dict[str, Any]


@pytest.fixture(autouse=True)
def _keys(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    own_keys(sandbox, monkeypatch)


def measured(value: float, *, spread: float = 0.5, **more: float) -> Metrics:
    """An evaluation with a nll, whose interval is ``spread`` to both sides."""
    return {"nll": {"value": value, "n": 400, "interval": [value - spread, value + spread]}, **more}


def documents(shift: float, count: int = 40, noise: float = 0.01) -> tuple[float, bytes]:
    """A nll, and the documents that it is of: of unlike difficulty, each ``shift`` harder than it is."""
    draw = random.Random(3)
    rows: list[dict[str, Any]] = []
    for at in range(count):
        tokens, hard, jitter = draw.randint(5, 50), draw.uniform(1, 9), draw.gauss(0, noise)
        nll = (hard + (shift + jitter if shift else 0)) * tokens
        rows.append({"id": f"d{at}", "tokens": tokens, "nll": nll, "ref_nll": None, "kl": None, "agree": None})
    value = sum(row["nll"] for row in rows) / sum(row["tokens"] for row in rows)
    return value, "".join(json.dumps(row) + "\n" for row in rows).encode()


def built(
    sandbox: Sandbox, word: str, gates: str, metrics: Mapping[str, Metrics], files: Files | None = None
) -> Fields:
    """Build the candidate ``word`` with what was measured of it; what ``doit`` then says."""
    report_spec(sandbox, gates, word=word)
    digests = fill(sandbox, word, metrics, files=files)
    done = sandbox.doit("s")
    assert "Traceback" not in done.stdout + done.stderr
    return {"code": done.returncode, "text": done.stdout + done.stderr, **digests}


def of(shift: float, noise: float = 0.01) -> tuple[dict[str, Metrics], Files]:
    """An evaluation with its documents."""
    value, lines = documents(shift, noise=noise)
    return {"report.gguf": measured(value, spread=1.0)}, {"report.gguf": {"documents.jsonl": lines}}


def recorded(sandbox: Sandbox, kind: str) -> list[Fields]:
    return [decision_of(entry.statement) for entry in registry_of(sandbox).entries() if entry.type == kind]


def verdicts(sandbox: Sandbox) -> list[Fields]:
    """Of the report, as ``doit plan`` shows them."""
    return next(list(it["gates"]) for it in sandbox.json("plan")["targets"] if it["target"] == "s:report")


def put(sandbox: Sandbox) -> int:
    return sandbox.doit("promote", "s", "--reason", "good").returncode


# --- beside a reference -----------------------------------------------------------------------------------------------

RATIO = "  report.gguf.perplexity: {max: 1.05, relative_to: reference}\n"


def test_a_ratio_to_the_reference_fails_once_for_each_reference(sandbox: Sandbox) -> None:
    good = {"report.base": {"perplexity": 10.0}, "report.gguf": {"perplexity": 10.4}}
    assert built(sandbox, "one", RATIO, good)["code"] == 0
    assert recorded(sandbox, "gate-failed") == []
    found = built(sandbox, "two", RATIO, {"report.gguf": {"perplexity": 10.6}})
    assert found["code"] == 1
    assert "gate FAIL     1.06, needs ≤ 1.05  report.gguf.perplexity / report.base; against 10, values" in found["text"]
    assert sandbox.doit("s").returncode == 1
    (failure,) = recorded(sandbox, "gate-failed")
    assert (failure["value"], failure["limit"]["relative_to"]) == (1.06, "report.base")
    assert failure["reference"] == failure["compared"]["measured"] == found["s:report.base"]
    # The reference gets worse: the same candidate passes beside it, and nothing is unpublished meanwhile.
    report_spec(sandbox, RATIO, word="two")
    text = (sandbox.root / "specs/s.yaml").read_text().replace("[echo, base]", "[echo, worse]")
    (sandbox.root / "specs/s.yaml").write_text(text)
    fill(sandbox, "three", {"report.base": {"perplexity": 10.2}, "report.gguf": {"perplexity": 10.6}})
    assert sandbox.doit("s").returncode == 0
    assert codes(sandbox) == []


def test_what_is_not_measured_of_the_other_is_not_known(sandbox: Sandbox) -> None:
    found = built(sandbox, "one", RATIO, {"report.gguf": {"perplexity": 10.4}})
    assert found["code"] == 1
    assert "of report.base: nothing measures 'perplexity' there" in found["text"]
    assert recorded(sandbox, "gate-failed") == []


# --- beside earlier results -------------------------------------------------------------------------------------------

GROWTH = "  report.gguf.nll: {max: 0.1, minus: last_good}\n  regression: false\n"


def test_last_good_is_the_newest_that_did_not_fail(sandbox: Sandbox) -> None:
    first = built(sandbox, "one", GROWTH, {"report.gguf": measured(1.0)})
    assert first["code"] == 0
    (verdict,) = verdicts(sandbox)
    assert (verdict["verdict"], verdict["finding"]) == ("none", "new")
    assert "no other result of s:gguf is good" in verdict["reason"]
    second = built(sandbox, "two", GROWTH, {"report.gguf": measured(1.5)})
    assert second["code"] == 1
    assert last_good(sandbox, "s:gguf") == first["s:gguf"]
    third = built(sandbox, "three", GROWTH, {"report.gguf": measured(1.08)})
    assert third["code"] == 0, "it is compared with the first, and not with the one that failed"
    (verdict,) = verdicts(sandbox)
    assert verdict["compared"]["name"] == f"last_good {first['s:gguf'][:12]}"
    assert (verdict["value"], verdict["compared"]["measured"]) == (pytest.approx(0.08), first["s:report.gguf"])
    assert last_good(sandbox, "s:gguf") == third["s:gguf"]
    assert sandbox.doit("s").returncode == 0
    assert codes(sandbox) == []


def test_an_earlier_result_that_was_measured_otherwise_answers_nothing(sandbox: Sandbox) -> None:
    built(sandbox, "one", GROWTH, {"report.gguf": measured(1.0)})
    report_spec(sandbox, GROWTH, word="two")
    path = sandbox.root / "specs/s.yaml"
    path.write_text(path.read_text().replace("[echo, data]", "[echo, other]"))
    fill(sandbox, "two", {"report.gguf": measured(9.0)})
    assert sandbox.doit("s").returncode == 0
    assert "was not measured in the same way" in verdicts(sandbox)[0]["reason"]


def test_a_regression_is_caught_after_a_promotion(sandbox: Sandbox) -> None:
    first = built(sandbox, "one", "", *of(0))
    assert (first["code"], put(sandbox)) == (0, 0)
    assert verdicts(sandbox) == [], "what is active is not compared with itself"
    second = built(sandbox, "two", "", *of(0.05))
    assert second["code"] == 1
    assert "regression: report.gguf.nll − active" in second["text"]
    assert "paired over 40 documents" in second["text"]
    (failure,) = recorded(sandbox, "gate-failed")
    assert (failure["rule"], failure["limit"]) == ("regression", {"max": 0.001, "bound": "proven", "minus": "active"})
    assert failure["interval"][0] < failure["value"] < failure["interval"][1]
    done = sandbox.doit("promote", "s:gguf")
    assert (done.returncode, done.stderr.partition(":")[0]) == (1, "E-GATE")
    assert last_good(sandbox, "s:gguf") == first["s:gguf"]
    assert sandbox.json("show", "s:gguf")["digest"] == second["s:gguf"], "it stays published"
    assert codes(sandbox) == []
    report_spec(sandbox, "  regression: false\n", word="two")
    assert sandbox.doit("s").returncode == 0
    assert put(sandbox) == 0


def test_what_comes_of_rounding_is_no_regression(sandbox: Sandbox) -> None:
    """It is certainly worse, by so little that no reader could tell."""
    built(sandbox, "one", "", *of(0))
    put(sandbox)
    assert built(sandbox, "two", "", *of(0.0005, noise=0.0001))["code"] == 0
    assert built(sandbox, "two", "  regression: {margin: {nll: 0}}\n", {})["code"] == 1


def test_a_margin_and_a_warning_let_a_small_loss_pass(sandbox: Sandbox) -> None:
    built(sandbox, "one", "", *of(0))
    put(sandbox)
    assert built(sandbox, "two", "  regression: {margin: {nll: 0.1}}\n", *of(0.05))["code"] == 0
    assert recorded(sandbox, "gate-warned") == []
    found = built(sandbox, "two", "  regression: {severity: warn}\n", {})
    assert found["code"] == 0
    assert "gate warn" in found["text"]
    (warning,) = recorded(sandbox, "gate-warned")
    assert (warning["severity"], warning["rule"]) == ("warn", "regression")


def test_what_the_documents_do_not_tell_is_a_warning_and_a_better_build_is_none(sandbox: Sandbox) -> None:
    """Without pairs the intervals overlap: the loss is not proven, and it is said how many documents would."""
    built(sandbox, "one", "", {"report.gguf": measured(1.0)})
    put(sandbox)
    found = built(sandbox, "two", "", {"report.gguf": measured(1.2)})
    assert found["code"] == 0
    assert "not enough samples to say: about" in found["text"]
    (warning,) = recorded(sandbox, "gate-warned")
    assert (warning["finding"], warning["compared"]["method"]) == ("undecided", "intervals")
    assert last_good(sandbox, "s:gguf") == found["s:gguf"], "a warning is no failure"
    assert built(sandbox, "three", "", {"report.gguf": measured(0.9)})["code"] == 0
    assert len(recorded(sandbox, "gate-warned")) == 1
    assert codes(sandbox) == []


def test_a_promoted_one_that_was_measured_blocks_what_was_not(sandbox: Sandbox) -> None:
    built(sandbox, "one", "", *of(0))
    put(sandbox)
    report_spec(sandbox, "", word="two")
    fill(sandbox, "two", only="s:gguf")
    done = sandbox.doit("promote", "s:gguf")
    assert (done.returncode, done.stderr.partition(":")[0]) == (1, "E-GATE-UNKNOWN")
    assert "s:report.gguf is" in done.stderr


# --- warnings, and samples that do not tell ---------------------------------------------------------------------------


def test_a_warning_fails_nothing_and_is_recorded_once(sandbox: Sandbox) -> None:
    gates = "  report.gguf.perplexity: {max: 5, severity: warn}\n"
    found = built(sandbox, "one", gates, {"report.gguf": {"perplexity": 6.0}})
    assert found["code"] == 0
    assert "gate warn     6, needs ≤ 5  report.gguf.perplexity" in found["text"]
    assert sandbox.doit("s").returncode == 0
    (warning,) = recorded(sandbox, "gate-warned")
    assert (warning["value"], warning["severity"]) == (6.0, "warn")
    assert recorded(sandbox, "gate-failed") == []
    item = next(it for it in sandbox.json("plan")["targets"] if it["target"] == "s:report")
    assert (item["gate"], item["gates"][0]["verdict"]) == ("warn", "warn")
    assert "report.gguf.perplexity is 6, gate: max 5" in sandbox.ok("history")
    assert put(sandbox) == 0
    assert last_good(sandbox, "s:gguf") == found["s:gguf"]
    assert codes(sandbox) == []
    report_spec(sandbox, gates.replace(", severity: warn", ""))
    assert sandbox.doit("s").returncode == 1
    assert len(recorded(sandbox, "gate-failed")) == 1, "the same threshold fails now: that is another thing"


@pytest.mark.parametrize(("undecided", "code", "kind"), [("warn", 0, "gate-warned"), ("fail", 1, "gate-failed")])
def test_an_interval_that_straddles_the_limit(sandbox: Sandbox, undecided: str, code: int, kind: str) -> None:
    gates = f"  report.gguf.nll: {{max: 1.25, bound: confident, undecided: {undecided}}}\n"
    found = built(sandbox, "one", gates, {"report.gguf": measured(1.0)})
    assert found["code"] == code
    assert "1 [0.5, 1.5], needs ≤ 1.25" in found["text"]
    assert "about 1,600 samples would tell, 400 were measured" in found["text"]
    (entry,) = recorded(sandbox, kind)
    assert entry["finding"] == "undecided"
    assert codes(sandbox) == []


def test_undecided_may_pass_in_silence(sandbox: Sandbox) -> None:
    gates = "  report.gguf.nll: {max: 1.25, bound: confident, undecided: pass}\n"
    assert built(sandbox, "one", gates, {"report.gguf": measured(1.0)})["code"] == 0
    assert recorded(sandbox, "gate-warned") == []
    assert put(sandbox) == 0
    assert codes(sandbox) == []


# --- audit ------------------------------------------------------------------------------------------------------------


def lie(sandbox: Sandbox, kind: str, fields: Fields) -> None:
    rest = {name: value for name, value in fields.items() if name != "type"}
    registry_of(sandbox).append([decision_statement(kind, rest)])


@pytest.mark.fault("T5", "a failure or warning of a gate signed with the key that does not follow from measurements")
@pytest.mark.parametrize(
    "change",
    [
        {"value": 1.2},
        {"compared": {"name": "report.base", "value": 10, "measured": "7" * 64, "method": "values"}},
        {"limit": {"max": 1.1, "bound": "value", "relative_to": "report.base"}},
        {"severity": "warn"},
    ],
    ids=["value", "other", "limit", "severity"],
)
def test_a_false_failure_is_found(sandbox: Sandbox, change: Fields) -> None:
    built(sandbox, "one", RATIO, {"report.base": {"perplexity": 10.0}, "report.gguf": {"perplexity": 10.6}})
    (failure,) = recorded(sandbox, "gate-failed")
    assert codes(sandbox) == []
    lie(sandbox, "gate-failed", failure | change)
    assert codes(sandbox) == ["gate_differs"]


@pytest.mark.parametrize("lost", [{"compared": None}, {"gate": "perplexity"}, {"limit": {}}, {"value": None}])
def test_a_failure_of_another_form_is_unreadable(sandbox: Sandbox, lost: Fields) -> None:
    built(sandbox, "one", RATIO, {"report.base": {"perplexity": 10.0}, "report.gguf": {"perplexity": 10.6}})
    (failure,) = recorded(sandbox, "gate-failed")
    lie(sandbox, "gate-failed", failure | lost)
    assert codes(sandbox) == ["entry_unreadable"]


def test_a_promotion_beside_another_measurement_is_judged_again(sandbox: Sandbox) -> None:
    built(sandbox, "one", RATIO, {"report.base": {"perplexity": 10.0}, "report.gguf": {"perplexity": 10.4}})
    project = opened(sandbox)
    promote(project, [project.nodes["s:gguf"]], None, None)
    (promotion,) = recorded(sandbox, "promote")
    assert codes(sandbox) == []
    (gate,) = promotion["gates"]
    assert gate["compared"]["value"] == 10.0
    lie(sandbox, "promote", promotion | {"gates": [gate | {"limit": gate["limit"] | {"max": 1.03}}]})
    assert codes(sandbox) == ["promote_differs"]


@pytest.mark.parametrize("gone", [False, True])
def test_a_paired_interval_is_drawn_again_where_the_documents_are_here(sandbox: Sandbox, gone: bool) -> None:
    import shutil

    from recordkit import object_of, writable

    built(sandbox, "one", "", *of(0))
    put(sandbox)
    built(sandbox, "two", "", *of(0.05))
    (failure,) = recorded(sandbox, "gate-failed")
    if gone:
        shutil.rmtree(writable(object_of(sandbox, "s:report.gguf")))
    assert codes(sandbox) == []
    lie(sandbox, "gate-failed", failure | {"limit": failure["limit"] | {"max": 0.2}})
    assert codes(sandbox) == ["gate_differs"]


# --- scores of tasks, which only measuring tells ------------------------------------------------------------------

TASKS = """\
targets:
  base: {kind: command, command: [echo, base]}
  data: {kind: command, command: [echo, data]}
  gguf: {kind: command, command: [echo, WORD], from: {model: base}}
  report:
    kind: report
    from: {data: data, reference: base, candidates: [gguf]}
    tasks: {asked: {kind: match}, ends: {kind: harness, path: ../ends, tasks: [ends]}}
gates:
"""
KEPT = (
    "  presets: {gguf: {batch: {prompt_tokens_per_second: null, generation_tokens_per_second: null,"
    " kl_divergence: null}}}\n"
)


def asked(sandbox: Sandbox, word: str, gates: str, metrics: Mapping[str, Metrics], text: str = TASKS) -> Fields:
    """Build the candidate ``word`` with what its tasks and those of the reference measured; the verdicts by gate."""
    (sandbox.root / "ends").mkdir(exist_ok=True)
    (sandbox.root / "ends" / "ends.yaml").write_text("task: ends\n")
    sandbox.spec(text.replace("WORD", word) + gates)
    fill(sandbox, word, metrics)
    done = sandbox.doit("s")
    found = [line for line in done.stdout.splitlines() if line.startswith("gate ")]
    return {"code": done.returncode, "lines": found}


def test_a_preset_keeps_the_scores_that_a_task_has_and_asks_for_no_others(sandbox: Sandbox) -> None:
    """A task of lm-eval gives one or two of all the scores there are, some by names that no spec can tell."""
    right = {"report.base.ends": {"pass_at_1": 0.5, "acc": 0.0}, "report.base.asked": {"rouge_l": 0.4}}
    found = asked(
        sandbox, "one", KEPT,
        {**right, "report.gguf.ends": {"pass_at_1": 0.4, "acc": 0.0}, "report.gguf.asked": {"rouge_l": 0.4}},
    )  # fmt: skip
    assert found["code"] == 1
    kept, broken, none = (
        next(line for line in found["lines"] if f".{name} /" in line) for name in ("rouge_l", "pass_at_1", "acc")
    )
    assert kept.startswith("gate pass     1, needs ≥ 0.99  preset batch: report.gguf.asked.rouge_l")
    assert broken.startswith("gate FAIL     0.8, needs ≥ 0.99  preset batch: report.gguf.ends.pass_at_1")
    assert none.startswith("gate none")
    assert "of which nothing can be lost" in none
    assert len(found["lines"]) == 3


def test_a_score_that_the_reference_has_and_the_candidate_lacks_is_not_known(sandbox: Sandbox) -> None:
    found = asked(sandbox, "one", KEPT, {"report.base.ends": {"acc": 0.5}, "report.gguf.ends": {"acc_norm": 0.5}})
    assert found["code"] == 1
    assert [line.split()[1] for line in found["lines"]] == ["unknown"]


def test_what_a_candidate_said_is_compared_with_what_others_said(sandbox: Sandbox) -> None:
    """The answers that a score is of are the candidate's own; that they are others is no other way of measuring."""
    gates = "  report.gguf.asked.rouge_l: {min: 0, minus: OTHER}\n"
    metrics = {"report.base.asked": {"rouge_l": 0.4}, "report.gguf.asked": {"rouge_l": 0.5}}
    beside = asked(sandbox, "one", gates.replace("OTHER", "reference"), metrics)
    assert [line.split(",")[0] for line in beside["lines"]] == ["gate pass     0.1"]
    metrics["report.gguf.asked"] = {"rouge_l": 0.45}
    earlier = asked(sandbox, "two", gates.replace("OTHER", "last_good"), metrics)
    assert [line.split(",")[0] for line in earlier["lines"]] == ["gate FAIL     -0.05"]
    # A query compares them as well: none is marked as measured otherwise.
    assert "measured otherwise" not in sandbox.ok("query", "best asked.rouge_l")


def test_answers_that_were_asked_for_otherwise_do_not_compare(sandbox: Sandbox) -> None:
    gates = "  report.gguf.asked.rouge_l: {min: 0, minus: last_good}\n"
    asked(sandbox, "one", gates, {"report.gguf.asked": {"rouge_l": 0.5}})
    longer = TASKS.replace("{kind: match}", "{kind: match, samples: {max_tokens: 9}}")
    found = asked(sandbox, "two", gates, {"report.gguf.asked": {"rouge_l": 0.1}}, longer)
    assert found["code"] == 0
    assert "was not measured in the same way" in found["lines"][0]
