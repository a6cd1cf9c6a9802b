"""The page of a report: what it says, where each number leads, what is marked; that what models say stays text."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pagekit
from ingot.core.quantities import number_text
from ingot.errors import MissingTool, UsageError
from ingot.view.page import (
    card,
    document,
    history,
    html,
    jsonform,
    markdown,
    measures,
    overview,
    palette,
    render,
    verdicts,
    write,
)  # fmt: skip
from ingot.view.page.book import Book, Entry
from ingot.view.page.facts import Page, collect, row_id
from ingot.view.page.figures import script_json
from ingot.view.page.sections import pareto
from pagekit import Rendered
from projectkit import Sandbox

pytest.importorskip("altair", reason="pip install 'ingot[report]'")
pytest.importorskip("vl_convert", reason="pip install 'ingot[report]'")


class Reader(HTMLParser):
    """The elements of a page: tags with attributes in order, text by the nearest id above it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._open: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in ("br", "meta", "img", "rect", "path", "line"):
            self._open.append((tag, found.get("id")))

    def handle_endtag(self, tag: str) -> None:
        if any(known == tag for known, _ in self._open):
            while self._open.pop()[0] != tag:
                pass

    def handle_data(self, data: str) -> None:
        for _, name in self._open:
            if name is not None:
                self.texts[name] = self.texts.get(name, "") + data

    def ids(self) -> list[str]:
        """All ids, as often as they come."""
        return [str(found["id"]) for _, found in self.tags if "id" in found]

    def hrefs(self) -> list[str]:
        """Where all links lead."""
        return [str(found["href"]) for tag, found in self.tags if tag == "a"]


@pytest.fixture(scope="module")
def reader(page_rendered: Rendered) -> Reader:
    return Reader(page_rendered[0])


def test_every_link_leads_to_something_on_the_page(reader: Reader) -> None:
    ids = reader.ids()
    assert len(ids) == len(set(ids)), [name for name in ids if ids.count(name) > 1]
    assert all(href.startswith("#") for href in reader.hrefs()), "the page leads nowhere else"
    assert {href[1:] for href in reader.hrefs()} <= set(ids)


def test_every_number_leads_to_the_entry_that_holds_it(page_facts: Page, reader: Reader) -> None:
    scores = [score for row in page_facts.rows for score in row.scores.values()]
    assert len(scores) > 25
    for score in scores:
        assert isinstance(score.entry, Entry)
        assert score.href in reader.hrefs()
        name = score.href[1:]
        shown = reader.texts[name]
        assert shown.startswith(score.name.rpartition(".")[2]), "the line of this metric, and not the whole entry"
        assert number_text(score.metric["value"]) in shown, "the entry holds the very number"
        assert score.metric["method"] in shown
        whole = reader.texts[score.entry.id]
        place = f"{score.entry.receipt['origin']}#{score.entry.receipt['index']}"
        assert place in whole
        assert score.entry.digest in whole
        assert str(score.entry.receipt["key"]) in whole
        assert f"sed -n {score.entry.receipt['index'] + 1}p registry/" in whole


def test_the_line_that_an_entry_names_is_that_entry(page_project: Sandbox, page_facts: Page) -> None:
    entry = next(iter(page_facts.rows)).evaluation
    assert entry is not None
    folder = str(entry.receipt["origin"]).rpartition("/")[2]
    lines = (page_project.root / "registry" / folder / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[entry.receipt["index"]])["subject"][0]["digest"]["dirHash1"] == entry.digest


def test_what_models_say_stays_text(page_rendered: Rendered, reader: Reader) -> None:
    text = page_rendered[0]
    assert "&lt;/script&gt;&lt;script&gt;document.title=" in text, "the answer is shown"
    scripts = [found for tag, found in reader.tags if tag == "script"]
    assert len(scripts) == len(page_rendered[1]) + 2, "charts, and two that run"
    assert [found for found in scripts if found.get("type") != "application/json"] == [{}, {}]
    assert not [found for _, found in reader.tags if any(name.startswith("on") for name in found)]
    assert "\u202e" not in text, "nothing turns the direction of what follows"
    hostile = script_json({"a": "</script><!--&"})
    assert "<" not in hostile
    assert json.loads(hostile) == {"a": "</script><!--&"}


def test_a_page_asks_for_nothing_and_lets_only_its_own_scripts_run(page_rendered: Rendered, reader: Reader) -> None:
    (policy,) = [str(found["content"]) for _, found in reader.tags if found.get("http-equiv")]
    assert "default-src 'none'" in policy
    bodies = re.findall(r"<script>(.*?)</script>", page_rendered[0], re.DOTALL)
    assert len(bodies) == 2
    for body in bodies:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'" in policy
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
    assert not [found for _, found in reader.tags if "src" in found or found.get("xlink:href")]
    assert "@import" not in page_rendered[0].partition("<script>")[0]
    assert len(page_rendered[0].encode()) < 3_000_000


@pytest.mark.usefixtures("page_keys")
def test_the_same_facts_give_the_same_bytes(page_project: Sandbox, page_rendered: Rendered) -> None:
    again, figures = document.report_page(pagekit.page_of(page_project))
    assert again == page_rendered[0]
    assert markdown.report(pagekit.page_of(page_project), figures) == markdown.report(
        pagekit.page_of(page_project), page_rendered[1]
    )
    assert render.png(figures[0].spec) == render.png(page_rendered[1][0].spec)


def test_headings_are_in_order_and_tables_have_headers(reader: Reader) -> None:
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    heads = [found for tag, found in reader.tags if tag == "th"]
    assert {found["scope"] for found in heads} == {"col", "row"}
    tables = [tag for tag, _ in reader.tags if tag == "table"]
    assert len(tables) == len([tag for tag, _ in reader.tags if tag == "caption"])
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in reader.tags}
    assert dict(reader.tags[0][1]) == {"lang": "en"}


def test_every_chart_has_a_description_and_its_numbers_as_a_table(page_rendered: Rendered, reader: Reader) -> None:
    kinds = {figure.id.partition(".")[0].partition("-")[0] for figure in page_rendered[1]}
    assert kinds >= {"quality", "waterfall", "judged", "confusion", "latency", "loss", "funnel"}
    for figure in page_rendered[1]:
        assert len(figure.spec["description"]) > 30
        assert figure.rows
        assert f"{figure.title}: the numbers" in reader.texts[figure.id]
    drawn = [found for tag, found in reader.tags if tag == "svg" and found.get("role") == "img"]
    assert len(drawn) == len(page_rendered[1])
    assert all(found["aria-label"] for found in drawn)
    assert "NaN" not in page_rendered[0].partition("<script>")[0]


def test_texts_can_be_read_on_light_and_on_dark_paper() -> None:
    for colours in (palette.LIGHT, palette.DARK):
        for paper in palette.PAPERS:
            for name in palette.TEXTS:
                assert palette.contrast(colours[name], colours[paper]) >= 4.5, (name, paper)
        for name in palette.SERIES:
            assert palette.contrast(colours[name], colours["paper"]) >= 3, name
    assert palette.LIGHT.keys() == palette.DARK.keys()
    assert palette.contrast("#ffffff", "#000000") == pytest.approx(21)
    assert palette.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gguf@Q4_0", ["artifact not here", "fails ≤ 0.5"]),
        ("rotten", ["artifact damaged"]),
        ("leaked", ["contaminated", "overlap not measured"]),
        ("merged", ["passes ≤ 0.5", "not measured (1)"]),
        ("gguf@Q8_0", ["40.0 %"]),
        ("base", ["(reference)"]),
    ],
)
def test_what_is_wrong_stands_beside_what_it_is_wrong_with(
    page_facts: Page, reader: Reader, name: str, words: list[str]
) -> None:
    row = next(row for row in page_facts.rows if row.name == name)
    shown = reader.texts[row_id(row)].replace("\u00a0", " ")
    assert [word for word in words if word not in shown] == []
    every = ("artifact", "contaminated", "overlap", "fails", "not measured (")
    assert [word for word in every if word in shown and not any(word in known for known in words)] == []


def test_the_worst_comes_first_and_what_is_sound_is_said(page_facts: Page, reader: Reader) -> None:
    found = [(problem.level, problem.word) for problem in page_facts.problems()]
    assert found == [
        ("bad", "gate: FAIL"), ("bad", "contaminated"), ("bad", "artifact damaged"), ("warn", "gate: not known"),
        ("warn", "overlap not measured"), ("warn", "artifact not here"),
    ]  # fmt: skip
    assert "no counter of energy can be read" in reader.texts["why-1"]
    marks = {mark.word for row in page_facts.rows for mark in row.marks if mark.level == "note"}
    assert marks == {"held out"}


def test_near_duplicates_that_were_kept_are_marked(
    page_project: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = Sandbox.make(tmp_path)
    pagekit.keys(sandbox, monkeypatch)
    story = pagekit.Story(sandbox)
    story.build("data", "dataset", params={"dedup": None})
    story.build("model", "student", {"data": "data"})
    metrics = {"perplexity": pagekit.metric(2)}
    story.build("report.model", "evaluate", {"candidate": "model", "data": "data"}, metrics=metrics)
    rows = [
        {
            "candidate": story.digests["model"],
            "container": "hf",
            "precision": "bf16",
            "metrics": metrics,
            "not_measured": {},
        }
    ]
    report = {"format": 1, "data": story.digests["data"], "reference": None, "settings": {}, "rows": rows}
    inputs = {"data": "data", "candidates": ["model"], "evaluations": ["report.model"]}
    story.build("report", "report", inputs, files={"report.json": json.dumps(report)})
    story.record()
    page = pagekit.page_of(sandbox, ())
    assert [mark.word for mark in page.rows[0].marks] == ["near-duplicates kept"]
    assert page.rows[0].scores["perplexity"].href is not None, "a report of format 1 finds its entries by the log"


def test_what_was_judged_stands_beside_what_the_reference_said(reader: Reader) -> None:
    assert "base did" in reader.texts["answers"]
    assert "gguf@Q8_0 did" in reader.texts["answers"]


def test_the_pareto_front_is_what_no_other_beats(page_facts: Page) -> None:
    rows = [row for row in page_facts.rows if not row.is_reference]
    assert [row.name for row in pareto("kl_divergence", rows)] == ["merged", "gguf@Q8_0", "gguf@Q4_0"]
    assert [row.name for row in pareto("pattern_accuracy", rows)] == ["merged", "gguf@Q8_0", "gguf@Q4_0"]


def test_markdown_takes_no_text_for_markup(page_facts: Page, page_rendered: Rendered) -> None:
    text = markdown.report(page_facts, page_rendered[1])
    assert "| `gguf@Q4_0` **artifact not here** |" in text
    assert "- **contaminated** `leaked`: " in text
    assert [figure.file for figure in page_rendered[1] if f"]({figure.file})" not in text] == []
    assert markdown.plain("a|b <i> @you [x](y) `c`\n# d") == r"a\|b \<i\> \@you \[x\](y) \`c\` \# d"
    assert markdown.plain("1. one") == r"1\. one"
    assert markdown.plain("- one") == r"\- one"
    assert markdown.name("a`b|c") == "`` a`b\\|c ``"
    assert "counted by hand \\<" in text


def test_pictures_are_drawn_on_paper(page_rendered: Rendered) -> None:
    picture = render.png(page_rendered[1][0].spec)
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(picture[16:20], "big") >= 1200, "twice as fine as it is large"
    assert "var(" not in json.dumps(palette.fixed(page_rendered[1][0].spec))


def test_a_card_says_what_the_log_says_and_no_more(page_facts: Page) -> None:
    hub = pytest.importorskip("huggingface_hub")
    text = card.card(page_facts, card.chosen(page_facts, "gguf@Q8_0"))
    data = hub.ModelCard(text).data
    assert (data.license, data.language, data.base_model) == ("apache-2.0", ["en"], "maker/base-1b")
    assert data.to_dict()["base_model_relation"] == "quantized"
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results["kl_divergence"] == 0.03
    assert results["exact_match"] == 0.4
    assert not {"bytes", "generation_tokens_per_second"} & results.keys()
    for title in ("## How it was made", "## Measured results", "## Limits", "## Provenance"):
        assert title in text
    damaged = card.card(page_facts, card.chosen(page_facts, "s:rotten"))
    assert "Artifact damaged" in damaged
    assert "Gate: report.gguf\\@Q4\\_0.kl\\_divergence ≤ 0.5: FAIL at 0.9." in card.card(
        page_facts, card.chosen(page_facts, "gguf@Q4_0")
    )
    with pytest.raises(UsageError, match="no candidate 'gguf@Q9'") as raised:
        card.chosen(page_facts, "gguf@Q9")
    assert "gguf@Q" in str(raised.value.hint)


def test_a_card_invents_no_licence(page_project: Sandbox, page_facts: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(page_facts.book), "folder", lambda _self, _entry: None)
    text = card.card(page_facts, card.chosen(page_facts, None))
    head = text.split("---")[1]
    assert "license" not in head
    assert "language" not in head
    assert "No licence is stated here" in text


def test_json_holds_the_numbers_with_their_entries(page_facts: Page) -> None:
    told = json.loads(json.dumps(jsonform.report(page_facts), allow_nan=False))
    row = next(row for row in told["rows"] if row["names"] == ["gguf@Q8_0"])
    assert row["metrics"]["kl_divergence"]["value"] == 0.03
    assert row["evaluation"]["index"] >= 0
    assert [task["name"] for task in row["tasks"]] == [pagekit.TASK, "mood", "better"]
    assert [gate["verdict"] for gate in told["gates"]] == ["fail", "pass", "unknown"]
    assert {"from", "to", "role"} == set(told["lineage"]["edges"][0])


def test_a_warning_does_not_count_as_passing() -> None:
    passing = pagekit.VERDICTS[1]
    warned = replace(pagekit.VERDICTS[0], severity="warn")
    assert verdicts.standing([passing, warned]) == ("warn", "1 of 2 pass")
    assert verdicts.standing([passing, replace(passing, finding="new", value=None)]) == ("note", "1 of 2 pass")
    assert verdicts.standing([passing]) == ("ok", "1 of 1 pass")


def test_the_registry_on_one_page(page_project: Sandbox, page_facts: Page) -> None:
    known = overview.Overview(page_facts.book.project, {"s:report": pagekit.VERDICTS})
    text = overview.page(known)
    reader = Reader(text)
    ids = reader.ids()
    assert len(ids) == len(set(ids))
    assert {href[1:] for href in reader.hrefs()} <= set(ids)
    assert "1 of 3 pass" in text
    row = reader.texts[next(target.row for target in known.specs["s"] if target.name == "rotten")]
    assert "damaged" in row
    assert "doit report s:report --open" in text
    states = {item["target"]: item["artifact"] for item in overview.to_json(known)["specs"][0]["targets"]}
    assert states["s:gguf@Q4_0"] == "missing"
    assert not [name for name in states if "report." in name]


def test_without_a_reference_a_candidate_with_other_tokens_is_marked(page_facts: Page) -> None:
    rows = [dict(row) for row in page_facts.report["rows"]]
    for row, tokens in zip(rows, (64, 64, 80), strict=False):
        row["metrics"] = row["metrics"] | {"tokens": pagekit.metric(tokens, "tokens")}
    for reference, marked in ((page_facts.report["reference"], []), (None, [rows[2]["candidate"]])):
        report = {**page_facts.report, "reference": reference, "rows": rows[:3]}
        page = collect(page_facts.book, page_facts.entry.receipt, report, ())
        found = [row.digest for row in page.rows for mark in row.marks if mark.word == "other tokens"]
        assert found == marked


@pytest.mark.usefixtures("page_keys")
def test_an_artifact_is_looked_at_once(page_facts: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    book, receipt = Book(page_facts.book.project), page_facts.entry.receipt
    presence = book.project.store.presence

    def counted(digest: str, *more: Any) -> Any:
        looked.append(digest)
        return presence(digest, *more)

    monkeypatch.setattr(book.project.store, "presence", counted)
    assert book.take(receipt) is book.take(receipt) is book.find("s:report", page_facts.entry.digest)
    assert looked == [page_facts.entry.digest]


def test_both_pages_tell_an_entry_in_the_same_words(page_rendered: Rendered, page_facts: Page) -> None:
    known = overview.page(overview.Overview(page_facts.book.project, {}))
    (entry,) = page_facts.book.lookup.about("s:report")
    place, what, *rest = (html.tag("td", cell) for cell in history.told(entry))
    target = html.tag("td", html.code("s:report"))
    first = str(place).replace("<td>", '<th scope="row">').replace("</td>", "</th>")
    assert "".join(map(str, (first, what, *rest))) in page_rendered[0]
    assert "".join(map(str, (first, what, target, *rest))) in known


def test_over_time_is_drawn_what_was_measured_again() -> None:
    """The best metric first; of what was measured once time says nothing."""

    class Log:
        def about(self, target: str) -> list[SimpleNamespace]:
            results = {"s:r.a": [0.3, 0.1], "s:r.b": [0.2]}[target]
            return [SimpleNamespace(type="build", value=value, target=target) for value in results]

        def result_of(self, entry: SimpleNamespace) -> dict[str, Any]:
            metrics = {"bytes": pagekit.metric(9.0), "perplexity": pagekit.metric(entry.value)}
            digest = f"{entry.target}{entry.value}"
            return {"metrics": metrics, "digest": digest, "timings": {"finished": "2026-11-26T03:01:02.000Z"}}

    log: Any = Log()
    figures = list(history.over_time(log, "s:r", ["a", "b"]))
    assert [figure.title for figure in figures] == ["perplexity over time, r", "size over time, r"]
    assert [row[:3] for row in figures[0].rows] == [
        ["a", "2026-11-26 03:01:02", "0.3"], ["a", "2026-11-26 03:01:02", "0.1"], ["b", "2026-11-26 03:01:02", "0.2"],
    ]  # fmt: skip
    assert list(history.over_time(log, "s:r", ["b"])) == []


def test_a_missing_extra_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("altair", "vl_convert"):
        with monkeypatch.context() as patch:
            patch.setitem(__import__("sys").modules, name, None)
            with pytest.raises(MissingTool, match="not installed") as raised:
                render.require()
            assert raised.value.hint == "pip install 'ingot[report]'"


def test_a_name_of_the_log_stays_below_the_folder_of_reports(tmp_path: Path) -> None:
    for target in ("../../x:report", "s:../../../etc", "s:a/b", ".:..", ":"):
        folder = write.default_folder(tmp_path, target)
        assert folder.resolve().is_relative_to((tmp_path / "cache" / "reports").resolve())
        assert len(folder.relative_to(tmp_path).parts) == 4
    assert write.default_folder(tmp_path, "s:gguf@Q8_0").name == "gguf@Q8_0"


def test_ids_and_numbers() -> None:
    assert html.anchor("a.b", "c") != html.anchor("a", "b.c")
    assert html.anchor("gguf@Q8_0") == "gguf-40-Q8_0"
    assert (
        html.tag("p", "<", html.code("&"), None, title='"', hidden=True)
        == '<p title="&quot;" hidden>&lt;<code>&amp;</code></p>'
    )
    shown = [measures.written(name, value) for name, value in (
        ("kl_divergence", 0.00012345), ("nll_difference", 0.5), ("nll_difference", -0.25), ("exact_match", 0.125),
        ("bytes", 1_500_000), ("token_p50_s", 0.0123), ("generation_tokens_per_second", 1234.5), ("x", 12345.678),
    )]  # fmt: skip
    assert shown == ["0.0001234", "+0.5", "−0.25", "12.5 %", "1.5 MB", "12.3 ms", "1,234", "12,345.7"]
    assert measures.interval("kl_divergence", {"value": 1, "interval": [0.5, 1.5]}) == "[0.5, 1.5]"
    assert measures.axis_title("gsm8k.exact_match") == "gsm8k: exact match, %"
