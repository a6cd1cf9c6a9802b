"""Pages in a real browser: no complaint, no request, charts that answer, both papers, a phone, scripts off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import chromekit
import pagekit
from ingot.view.page import overview
from ingot.view.page.facts import Page
from pagekit import Rendered
from projectkit import Sandbox

pytest.importorskip("altair", reason="pip install 'ingot[report]'")
pytest.importorskip("vl_convert", reason="pip install 'ingot[report]'")
pytestmark = pytest.mark.skipif(chromekit.found() is None, reason="no Chromium or Chrome is on PATH")

STORIES = """
targets:
  model: {kind: fetch, path: ../model}
  base: {kind: convert, from: {model: model}, to: hf, dtype: float32}
  rows: {kind: dataset, sources: [{path: ../rows.jsonl}], dedup: null, split: {eval: 0.3}, min_chars: 1}
  gguf: {kind: gguf, from: {model: base}, matrix: {type: [F16, Q8_0]}}
  report:
    kind: report
    from: {data: rows, reference: base, candidates: [gguf]}
    documents: 4
    answers: {documents: 4, max_tokens: 8}
gates:
  report.gguf@Q8_0.kl_divergence: {max: 0}
"""
_READY = "document.documentElement.getAttribute('data-charts')"


@pytest.fixture(scope="module")
def pages(page_rendered: Rendered, page_facts: Page, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of the page of a report and of that over the registry."""
    folder = tmp_path_factory.mktemp("pages")
    known = overview.Overview(page_facts.book.project, {"s:report": pagekit.VERDICTS})
    found = {"report": page_rendered[0], "registry": overview.page(known)}
    for name, text in found.items():
        (folder / f"{name}.html").write_text(text)
    return {name: folder / f"{name}.html" for name in found}


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromekit.Chrome]:
    browser = chromekit.Chrome(tmp_path_factory.mktemp("chrome"))
    yield browser
    browser.close()


def test_a_page_comes_alive_without_a_complaint_or_a_request(chrome: chromekit.Chrome, pages: dict[str, Path]) -> None:
    tab = chrome.open(pages["report"])
    count = int(tab.wait(_READY))
    assert count == tab.evaluate("document.querySelectorAll('figure[data-chart]').length") > 8
    assert tab.evaluate("document.querySelectorAll('.live svg.marks').length") == count
    assert tab.evaluate("Array.from(document.querySelectorAll('.drawn')).every(one => one.hidden)")
    assert tab.complaints == []
    assert tab.requests == [pages["report"].resolve().as_uri()]
    assert tab.evaluate("document.title") == "s:report", "no answer of a model has run"


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        ("#speed .live .mark-rect path", ["gguf@Q8_0", "p50"]),
        ("[id^=reliability] .live .mark-symbol.role-mark path", ["as it is (error 0.1250)", "how often right", "10"]),
    ],
)
def test_a_chart_says_what_is_pointed_at(
    chrome: chromekit.Chrome, pages: dict[str, Path], marks: str, words: list[str]
) -> None:
    tab = chrome.open(pages["report"])
    tab.wait(_READY)
    place = (
        f"(() => {{ const mark = document.querySelector('{marks}');"
        "mark.scrollIntoView({block: 'center', behavior: 'instant'}); const at = mark.getBoundingClientRect();"
        "return [at.left + at.width / 2, at.top + at.height / 2] })()"
    )
    x, y = tab.evaluate(place)
    chrome.call("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y}, tab.session)
    shown = tab.wait("(document.querySelector('#vg-tooltip-element.visible') || {}).innerText")
    assert [word for word in words if word not in shown] == []


def test_a_bin_of_few_tokens_is_a_small_point(chrome: chromekit.Chrome, pages: dict[str, Path]) -> None:
    tab = chrome.open(pages["report"])
    tab.wait(_READY)
    marks = "Array.from(document.querySelectorAll('[id^=reliability] .live .mark-symbol.role-mark path'))"
    widths = tab.evaluate(f"{marks}.map(one => one.getBoundingClientRect().width)")
    assert len(widths) == 9
    assert widths[:3] == sorted(widths[:3])
    assert widths[2] > 1.5 * widths[0]


@pytest.mark.parametrize("name", ["report", "registry"])
def test_a_phone_scrolls_tables_and_not_the_page(chrome: chromekit.Chrome, pages: dict[str, Path], name: str) -> None:
    tab = chrome.open(pages[name], width=390, height=844)
    if name == "report":
        tab.wait(_READY)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert tab.evaluate("innerWidth") == 390
    wide = "Array.from(document.querySelectorAll('.live svg')).map(one => one.getBoundingClientRect().right)"
    assert all(right <= 390 for right in tab.evaluate(wide)), "charts fit, too"
    assert tab.complaints == []


def test_without_scripts_every_number_and_picture_is_there(chrome: chromekit.Chrome, pages: dict[str, Path]) -> None:
    tab = chrome.open(pages["report"], scripts=False)
    text = tab.evaluate("document.body.textContent")
    for number in ("0.03", "40.0 %", "artifact damaged", "20 ms"):
        assert number in text
    charts = "Array.from(document.querySelectorAll('figure[data-chart] .drawn svg'))"
    heights = tab.evaluate(f"{charts}.map(one => one.getBoundingClientRect().height)")
    assert len(heights) > 8
    assert min(heights) > 40
    assert tab.evaluate("document.querySelector('button.theme').hidden"), "a switch that cannot switch is not shown"


def test_a_page_follows_the_paper_that_is_wanted(chrome: chromekit.Chrome, pages: dict[str, Path]) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('.live text')).fill"
    tab = chrome.open(pages["report"], scheme="dark")
    tab.wait(_READY)
    assert tab.evaluate(paper) == "rgb(13, 17, 23)"
    dark = tab.evaluate(ink)
    assert tab.evaluate("document.querySelector('button.theme').innerText") == "Light paper"
    tab.evaluate("document.querySelector('button.theme').click()")
    assert tab.evaluate(paper) == "rgb(255, 255, 255)"
    assert tab.evaluate(ink) != dark, "charts change with the page"
    assert chrome.open(pages["report"]).evaluate(paper) == "rgb(255, 255, 255)"


def test_a_number_opens_the_entry_that_it_leads_to(chrome: chromekit.Chrome, pages: dict[str, Path]) -> None:
    tab = chrome.open(pages["report"])
    tab.wait(_READY)
    tab.evaluate("document.querySelector('.results td a').click()")
    opened = "(() => { const one = document.querySelector(':target'); return one && one.closest('details').open })()"
    assert tab.wait(opened)
    box = "document.querySelector(':target').getBoundingClientRect().height"
    assert tab.evaluate(box) > 0


def test_whoever_uses_the_keyboard_sees_where_he_is(chrome: chromekit.Chrome, pages: dict[str, Path]) -> None:
    tab = chrome.open(pages["report"])
    tab.wait(_READY)
    for _ in range(2):
        for kind in ("keyDown", "keyUp"):
            key = {"type": kind, "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}
            chrome.call("Input.dispatchKeyEvent", key, tab.session)
    style = tab.evaluate("(s => [s.outlineStyle, s.outlineWidth])(getComputedStyle(document.activeElement))")
    assert style == ["solid", "3px"]
    assert tab.evaluate("document.activeElement.className") == "theme", "after the link over the head comes the switch"


def test_a_policy_keeps_what_gets_in_from_running(chrome: chromekit.Chrome, pages: dict[str, Path]) -> None:
    text = pages["report"].read_text()
    planted = pages["report"].with_name("planted.html")
    planted.write_text(text.replace("</main>", "<script>document.title = 'taken'</script></main>", 1))
    tab = chrome.open(planted)
    tab.wait(_READY)
    assert tab.evaluate("document.title") == "s:report"
    assert "Content Security Policy" in str(tab.complaints), "and what is complained of is seen by these tests"


def test_the_registry_has_no_complaint(chrome: chromekit.Chrome, pages: dict[str, Path]) -> None:
    tab = chrome.open(pages["registry"])
    assert tab.wait(_READY) is not None
    assert tab.complaints == []
    assert tab.requests == [pages["registry"].resolve().as_uri()]


@pytest.mark.slow
def test_a_report_that_was_really_built_comes_alive(
    chrome: chromekit.Chrome, stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = Sandbox.make(tmp_path)
    hidden = shutil.ignore_patterns("*.gguf", "SOURCE*", "LICENSE*")
    shutil.copytree(stories, sandbox.root / "model", ignore=hidden)
    rows = [{"prompt": f"Once upon a time {n}", "completion": " there was a little dog."} for n in range(24)]
    sandbox.file("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    sandbox.spec(STORIES)
    sandbox.doit()
    sandbox.extra_env |= {"DISPLAY": "", "WAYLAND_DISPLAY": "", "BROWSER": ""}
    told = sandbox.ok("report", "--open")
    page = sandbox.root / "cache" / "reports" / "s" / "report" / "report.html"
    assert f"no browser here: open {page.as_uri()}" in told
    tab = chrome.open(page)
    assert int(tab.wait(_READY)) >= 6
    assert tab.complaints == []
    assert tab.requests == [page.resolve().as_uri()]
    text = tab.evaluate("document.body.innerText")
    assert "fails ≤ 0" in text.replace("\u00a0", " "), "a quantized file is never quite its source"
    assert "near-duplicates kept" not in text, "nothing was trained"
    assert "Once upon a time" in text
    first = page.read_bytes()
    sandbox.ok("report", "--html")
    assert page.read_bytes() == first
