"""The closing page over a small session: reports with names, artifacts, gates, next commands."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ingot.core.build import Built
from ingot.core.gates import Verdict
from ingot.core.graph import Node
from ingot.core.key import NOT_INSTALLED
from ingot.core.session import Session
from ingot.core.table import Table
from ingot.view import closing
from ingot.view.board import Board, Fate
from ingot.view.closing import closing_page, gate_lines
from ingot.view.text import render


class Run:
    """A session and its board, filled target by target; the store is a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.board = Board()
        store = SimpleNamespace(object_path=lambda digest: root / digest)
        self.project = SimpleNamespace(nodes={}, store=store)
        fake: Any = SimpleNamespace(project=self.project, outcomes={}, verdicts={}, refused=None)
        self.session: Session = fake

    def target(self, name: str, kind: str, fate: Fate = "built", **more: Any) -> None:
        spec, _, short = name.partition(":")
        files = [{"path": path, "size": 1_000_000} for path in more.get("files", ("model.gguf",))]
        receipt = {
            "digest": f"d-{short}",
            "files": files,
            "inputs": more.get("inputs", {}),
            "metrics": {},
            "timings": {},
        }
        self.project.nodes[name] = Node(
            kind,
            1,
            "seeded",
            "any",
            more.get("params", {}),
            more.get("sources", ()),
            spec=spec,
            name=short,
            hidden=more.get("hidden", False),
        )
        self.board.targets += (name,)
        self.board.end(name, fate)
        if fate != "failed":
            self.session.outcomes[name] = Built("built" if fate == "built" else "fresh", receipt)

    def page(self, width: int = 80) -> list[str]:
        lines: list[str] = []
        for item in closing_page(self.session, self.board, width):
            lines += item.lines() if isinstance(item, Table) else [render(item, color=False)]
        return lines


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "tool_version", lambda _name: "0.3.36")


def test_an_artifact_is_its_one_file_its_one_folder_or_all_of_it(run: Run) -> None:
    run.target("s:gguf@Q8_0", "gguf")
    run.target("s:coreml", "coreml", files=("model.mlpackage/a", "model.mlpackage/b/c"))
    run.target("s:base", "convert", files=("config.json", "model.safetensors"))
    run.target("s:report.base", "evaluate", hidden=True)
    assert run.page()[1:5] == [
        "target       size  path",
        "s:gguf@Q8_0  1 MB  cache/latest/s/gguf@Q8_0/model.gguf",
        "s:coreml     2 MB  cache/latest/s/coreml/model.mlpackage/",
        "s:base       2 MB  cache/latest/s/base/",
    ]


def test_where_space_is_short_the_path_stays_whole(run: Run) -> None:
    run.target("a-long-name-of-a-spec:gguf@Q4_K_M+another", "gguf")
    assert run.page(80)[2] == "1 MB  cache/latest/a-long-name-of-a-spec/gguf@Q4_K_M+another/model.gguf"


def test_many_artifacts_are_counted(run: Run) -> None:
    for index in range(50):
        run.target(f"s:t{index}", "command")
    page = run.page()
    assert sum("  cache/latest/s" in line for line in page) == 20
    assert "and 30 more in cache/latest/" in page


@pytest.mark.usefixtures("llama")
def test_the_next_commands_have_real_names(run: Run) -> None:
    run.target("s:gguf@Q8_0", "gguf", fate="fresh")
    run.target("s:gguf@Q4_0", "gguf")
    run.target("s:report", "report", files=("report.json",))
    assert run.page()[-4:] == [
        "what was measured, and how  doit show s:report",
        "the same as a page          doit report s:report --open",
        "how it came to be           doit history s",
        'chat with it                doit chat s:gguf@Q4_0 "What is the capital of France?"',
    ]


@pytest.mark.usefixtures("llama")
def test_an_onnx_model_is_talked_to_where_no_gguf_was_built(run: Run) -> None:
    run.target("s:old", "gguf", fate="fresh")
    run.target("s:onnx", "onnx")
    assert "doit chat s:onnx " in run.page()[-1]
    run.target("s:new", "gguf")
    assert "doit chat s:new " in run.page()[-1]


@pytest.mark.usefixtures("llama")
def test_a_model_of_python_documentation_is_asked_about_python(run: Run) -> None:
    run.target("s:data", "dataset", sources=(("/sources/0", {"python_stdlib": "docstrings"}, "specs"),))
    run.target("s:gguf", "gguf")
    assert run.page()[-1].endswith('"What does textwrap.dedent do?"')


@pytest.mark.usefixtures("llama")
@pytest.mark.parametrize(
    ("prompt", "asked"),
    [("{ask} find {what.name}?", '"Will I find gold?"'), ("Is {{it}} ${ask}?", "'Is {it} $Will I?'")],
)
def test_what_is_made_from_templates_is_asked_a_question_of_them(run: Run, prompt: str, asked: str) -> None:
    """A fortune teller knows no capitals. What a shell would change within double quotes stands in single ones."""
    case = {"prompts": [prompt], "completions": ["Yes."], "slots": {"ask": ["Will I", "Shall I"]}, "pattern": None}
    slots = {"ask": ["Do I"], "what": [{"name": "gold"}, {"name": "tin"}]}
    templates = {"count": 1, "seed": 0, "slots": slots, "cases": {"only": case}, "apart": []}
    run.target("s:data", "dataset", params={"sources": [{"path": None, "templates": templates}]})
    run.target("s:gguf", "gguf")
    assert run.page()[-1].endswith(f"doit chat s:gguf {asked}")


def test_without_llama_cpp_nobody_is_sent_to_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "tool_version", lambda _name: NOT_INSTALLED)
    run.target("s:gguf", "gguf")
    assert not any("chat" in line for line in run.page())


def test_a_failed_run_names_the_plan(run: Run) -> None:
    run.target("s:a", "command", fate="failed")
    assert run.page() == ["", "what is left, and why  doit plan"]


def report(run: Run) -> None:
    metric = {"unit": "B", "method": "size of the weight files"}
    rows = [
        {
            "candidate": f"d-{name}",
            "container": "gguf",
            "precision": name,
            "metrics": {"bytes": {**metric, "value": value}},
        }
        for name, value in (("base", 2e6), ("small", 1e6))
    ]
    run.target(
        "s:report",
        "report",
        fate="fresh",
        inputs={
            "reference": {"target": "s:base", "digest": "d-base"},
            "candidates": [{"target": "s:small", "digest": "d-small"}, {"target": "s:same", "digest": "d-small"}],
        },
    )
    (run.root / "d-report").mkdir()
    (run.root / "d-report" / "report.json").write_text(json.dumps({"reference": "d-base", "data": "d", "rows": rows}))


def test_a_fresh_report_is_shown_with_the_names_of_its_candidates(run: Run) -> None:
    report(run)
    page = run.page()
    assert page[1] == "s:report"
    assert any(line.startswith("base (reference)") and " 2.0" in line for line in page)
    assert any(line.startswith("small, same ") and " 1.0" in line for line in page)


@pytest.mark.parametrize("width", [80, 140])
def test_the_report_fits_the_terminal(run: Run, width: int) -> None:
    report(run)
    tables = [item for item in closing_page(run.session, run.board, width) if isinstance(item, Table)]
    assert tables
    assert all(table.width() <= width for table in tables)


def test_gates_say_value_limit_and_what_is_not_known(run: Run) -> None:
    run.target("s:report", "report", fate="fresh", files=("x",))
    run.session.verdicts["s:report"] = [
        Verdict("report.a.kl", "report.a", "kl", "max", 0.5, value=0.03125, finding="kept"),
        Verdict("report.a.nll", "report.a", "nll", "max", 0, "upper", value=0.01, finding="broken"),
        Verdict("report.b.kl", "report.b", "kl", "min", 1, reason="the target has not been measured", nearest=("kk",)),
    ]
    assert [render(line, color=False) for line in gate_lines(run.session, run.board)] == [
        "gate pass     0.03125, needs ≤ 0.5  report.a.kl",
        "gate FAIL     0.01, needs ≤ 0  report.a.nll (upper end of its interval)",
        "gate unknown  no value, needs ≥ 1  report.b.kl: the target has not been measured (nearest: kk)",
    ]


def test_a_report_whose_gates_fail_is_shown_all_the_same(run: Run) -> None:
    report(run)
    run.board.end("s:report", "failed")
    page = run.page()
    assert page[1] == "s:report"
    assert "doit show s:report" in page[-2]
    assert page[-1].endswith("doit report s:report --open")
    assert not any("doit plan" in line for line in page), "nothing is left to build"


def test_gates_of_two_specs_name_the_spec(run: Run) -> None:
    run.target("s:a", "command")
    run.target("t:a", "command")
    run.session.verdicts["t:a"] = [Verdict("a.bytes", "a", "bytes", "max", 5, value=3, finding="kept")]
    assert [render(line, color=False) for line in gate_lines(run.session, run.board)] == [
        "gate pass     3, needs ≤ 5  t:a.bytes"
    ]
