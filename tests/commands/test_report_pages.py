"""``doit report --html``, ``--write``, ``--open``, ``--card`` and ``--all`` as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pagekit
from projectkit import Sandbox

pytest.importorskip("altair", reason="pip install 'ingot[report]'")
pytest.importorskip("vl_convert", reason="pip install 'ingot[report]'")


@pytest.fixture
def quiet(page_project: Sandbox) -> Sandbox:
    """The project of pages where nobody sees windows."""
    seen = {"DISPLAY": "", "WAYLAND_DISPLAY": "", "BROWSER": ""}
    return Sandbox(page_project.root, page_project.home, seen)


def test_a_report_is_written_with_all_that_belongs_to_it(quiet: Sandbox, tmp_path: Path) -> None:
    before = sorted(path.name for path in (quiet.root / "registry").rglob("*"))
    folder = tmp_path / "out"
    lines = quiet.ok("report", "s:report", "--write", str(folder), "--card", "gguf@Q8_0", "--card", "merged", "--open")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"}
    assert names == {
        "report.html", "report.md", "report.json", "README.md", "cards/gguf@Q8_0/README.md", "cards/merged/README.md",
    }  # fmt: skip
    assert (folder / "README.md").read_text() == (folder / "cards/gguf@Q8_0/README.md").read_text()
    pictures = {path.name for path in folder.glob("*.png")}
    assert len(pictures) > 8
    assert {name for name in pictures if f"]({name})" not in (folder / "report.md").read_text()} == set()
    assert lines.splitlines()[-1] == f"no browser here: open {(folder / 'report.html').as_uri()}"
    assert f"written: {folder}/report.html" in lines
    assert json.loads((folder / "report.json").read_text())["target"] == "s:report"
    assert sorted(path.name for path in (quiet.root / "registry").rglob("*")) == before, "nothing is measured"


def test_the_registry_is_written_and_opened_where_somebody_sees_it(quiet: Sandbox, tmp_path: Path) -> None:
    told = tmp_path / "told"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {told}\n')
    browser.chmod(0o755)
    seeing = Sandbox(quiet.root, quiet.home, {**quiet.extra_env, "BROWSER": str(browser)})
    found = json.loads(seeing.ok("report", "--all", "--open", "--json"))
    page = quiet.root / "cache" / "reports" / "registry.html"
    assert found["opened"] is True
    assert found["written"] == [str(page), str(page.with_name("registry.json"))]
    assert told.read_text() == page.as_uri() + "\n"
    assert json.loads(page.with_name("registry.json").read_text())["specs"][0]["spec"] == "s"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["s:report", "--card", "gguf@Q8"], "E-TARGET: s:report has no candidate 'gguf@Q8'"),
        (["s:report", "--all"], "E-USAGE: --all is about everything"),
        (["s:nothing", "--html"], "E-TARGET"),
        (["s:merged", "--html"], "E-NOT-BUILT: no report was built for 's:merged'"),
    ],
)
def test_wrong_use_is_exit_2_and_writes_nothing(quiet: Sandbox, arguments: list[str], code: str) -> None:
    reports = quiet.root / "cache" / "reports"  # others write there too, as they may
    before = {path: path.stat().st_mtime_ns for path in reports.rglob("*")}
    done = quiet.doit("report", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(code)
    assert {path: path.stat().st_mtime_ns for path in reports.rglob("*")} == before


def test_the_terminal_shows_tasks(quiet: Sandbox) -> None:
    text = quiet.ok("report", "s:report")
    assert f"{pagekit.TASK} exact_match" in text
    assert "0.400 [0.300, 0.500]" in text
