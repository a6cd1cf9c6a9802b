"""``report``: one row a candidate, digests only; foreign or missing evaluations refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ingot.core.stage import load_kind
from ingot.errors import RefusedInput
from ingot.stages._scoring import Scoring
from ingot.stages._task import task_kinds
from ingot.stages.report import Report
from stagekit import digest_of, run_stage


def folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content, encoding="utf-8")
    return path


class Chain:
    """A reference, two candidates, data, and an evaluation for each, as ``evaluate`` writes them."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp = tmp_path
        self.data = folder(tmp_path / "data", "rows")
        self.base, self.merged, self.q4 = (folder(tmp_path / name, name) for name in ("base", "merged", "q4"))

    def evaluation(self, candidate: Path, against: Path | None, **changes: Any) -> Path:
        value = {"value": 12.0 if candidate == self.base else 10.0, "unit": "1", "method": "m", "n": 5}
        evaluation = {
            "format": 2,
            "kind": "evaluate",
            "candidate": digest_of(candidate),
            "reference": None if against is None else digest_of(against),
            "data": digest_of(self.data),
            "settings": Report().settings(),
            "container": "hf",
            "precision": "float32",
            "metrics": {"perplexity": value, "bytes": {"value": 100, "unit": "B", "method": "m"}},
            "not_measured": {},
            **changes,
        }
        out = self.tmp / f"evaluation-{len(list(self.tmp.iterdir()))}"
        out.mkdir()
        (out / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
        return out

    def run(self, evaluations: Sequence[Path], *, reference: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
        inputs: dict[str, Path | Sequence[Path]] = {
            "data": self.data, "candidates": [self.merged, self.q4], "evaluations": evaluations,
        }  # fmt: skip
        if reference:
            inputs["reference"] = self.base
        out, metrics = run_stage("report", {}, inputs, self.tmp)
        return json.loads((out / "report.json").read_text(encoding="utf-8")), dict(metrics)

    def all(self, **changes: Any) -> list[Path]:
        return [
            self.evaluation(self.base, None),
            self.evaluation(self.merged, self.base),
            self.evaluation(self.q4, self.base, **changes),
        ]


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


def test_rows_in_order_with_digests_and_no_names(chain: Chain) -> None:
    reason = {"not_measured": {"perplexity": "why"}}
    report, metrics = chain.run(chain.all(**reason))
    assert report["format"] == 2
    assert report["reference"] == digest_of(chain.base)
    assert [row["candidate"] for row in report["rows"]] == [digest_of(p) for p in (chain.base, chain.merged, chain.q4)]
    assert report["rows"][2]["not_measured"] == {"perplexity": "why"}
    assert "merged" not in json.dumps(report)
    assert metrics["rows"].value == 3
    assert metrics["best_perplexity"].value == 10.0
    assert metrics["smallest_bytes"].value == 100
    assert "worst_kl_divergence" not in metrics


def test_equal_candidates_share_a_row(chain: Chain) -> None:
    evaluations = chain.all()
    again = chain.evaluation(chain.merged, chain.base)
    report, _ = chain.run([*evaluations, again])
    assert len(report["rows"]) == 3


def test_the_reference_among_the_candidates_keeps_its_first_row(chain: Chain) -> None:
    against_itself = chain.evaluation(chain.base, chain.base)
    report, _ = chain.run([*chain.all(), against_itself])
    assert [row["candidate"] for row in report["rows"]].count(digest_of(chain.base)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"data": "f" * 64},
        {"reference": "f" * 64},
        {"reference": None},
        {"settings": {**Report().settings(), "documents": 7}},
    ],
)
def test_an_evaluation_measured_otherwise_is_refused(chain: Chain, change: dict[str, Any]) -> None:
    with pytest.raises(RefusedInput, match="not measured like the others") as refused:
        chain.run(chain.all(**change))
    assert refused.value.code == "E-REPORT-MIXED"


def test_missing_and_foreign_evaluations_are_refused(chain: Chain) -> None:
    evaluations = chain.all()
    with pytest.raises(RefusedInput) as refused:
        chain.run(evaluations[:2])
    assert refused.value.code == "E-REPORT-MISSING"
    assert digest_of(chain.q4)[:12] in refused.value.facts[0]


def test_a_foreign_candidate_is_refused(chain: Chain) -> None:
    with pytest.raises(RefusedInput) as refused:
        chain.run([*chain.all(), chain.evaluation(chain.data, chain.base)])
    assert refused.value.code == "E-REPORT-MISSING"


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2}', '{"format": 1}'])
def test_an_unreadable_evaluation_is_refused(chain: Chain, content: str) -> None:
    evaluations = chain.all()
    (evaluations[1] / "evaluation.json").write_text(content, encoding="utf-8")
    with pytest.raises(RefusedInput) as refused:
        chain.run(evaluations)
    assert refused.value.code == "E-REPORT-EVALUATION"


def test_hidden_targets_take_the_reports_settings() -> None:
    logits, first, others = Report(documents=7).hidden()
    assert (logits.kind, logits.per, logits.into) == ("logits", ("reference",), None)
    assert (first.kind, first.per, first.into) == ("evaluate", ("reference",), "evaluations")
    assert (others.kind, others.per, others.besides) == ("evaluate", ("candidates",), "reference")
    for hidden in (logits, first, others):
        kind = load_kind(hidden.kind)
        made = kind.model_validate_json(json.dumps(dict(hidden.params)), strict=True)
        assert isinstance(made, Scoring)
        assert made.scoring() == Report(documents=7).scoring()
        assert set(hidden.roles) <= set(kind.inputs)
    assert others.params == first.params == Report(documents=7).settings()


def test_a_device_is_that_of_what_is_measured_and_not_of_the_report() -> None:
    report = Report(device="cuda")
    assert report.device_wanted() is None
    assert {hidden.params["device"] for hidden in report.hidden()} == {"cuda"}


def test_the_name_of_the_references_logits_is_taken() -> None:
    with pytest.raises(ValueError, match="is the name of the reference's logits"):
        Report(tasks={"logits": {"kind": task_kinds()[0] if task_kinds() else "quiz"}})


def test_tasks_stand_in_the_row_of_their_candidate_under_no_name(chain: Chain) -> None:
    score = {"score": {"value": 0.5, "unit": "1", "method": "m"}}
    task = chain.evaluation(chain.q4, None, kind="quiz", settings={"x": 1}, metrics=score, data=None)
    report, _ = chain.run([*chain.all(), task, task])
    assert [len(row["tasks"]) for row in report["rows"]] == [0, 0, 1]
    assert report["rows"][2]["tasks"][0]["metrics"] == score
    assert report["rows"][2]["tasks"][0]["evaluation"] == digest_of(task)


def test_a_task_of_something_else_is_refused(chain: Chain) -> None:
    with pytest.raises(RefusedInput, match="no candidate of the report"):
        chain.run([*chain.all(), chain.evaluation(chain.data, None, kind="quiz")])
