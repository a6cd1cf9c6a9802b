"""How a report reads: names joined, columns fitted to the width, reasons for what was not measured."""

from __future__ import annotations

from typing import Any

import pytest

from ingot.core.report_view import headline, markdown, other_tokens, steps, table

BASE, MERGED, Q4, COREML = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
NAMES = {BASE: ["base"], MERGED: ["merged"], Q4: ["gguf@Q4_K_M"], COREML: ["coreml"]}
REASON = "a Core ML package runs on a Mac only"


def metric(value: float, *interval: float, method: str = "as measured") -> dict[str, Any]:
    data: dict[str, Any] = {"value": value, "unit": "1", "method": method}
    return {**data, "interval": list(interval)} if interval else data


def row(digest: str, container: str, precision: str, size: int, **metrics: Any) -> dict[str, Any]:
    return {
        "candidate": digest,
        "container": container,
        "precision": precision,
        "metrics": {"bytes": metric(size), "bits_per_weight": metric(16.0), **metrics},
        "not_measured": {},
    }


@pytest.fixture
def report() -> dict[str, Any]:
    speed = {"prompt_tokens_per_second": metric(1234.5), "generation_tokens_per_second": metric(61.28)}
    base = row(BASE, "hf", "bfloat16", 269_000_000, perplexity=metric(12.5, 11.0, 14.0), **speed)
    better = {
        "nll_difference": metric(-0.21, -0.3, -0.1),
        "kl_divergence": metric(0.25, 0.2, 0.3),
        "top1_agreement": metric(0.812, 0.8, 0.825),
    }
    worse = {"nll_difference": metric(0.05, 0.01, 0.09), "kl_divergence": metric(0.1, 0.05, 0.2)}
    coreml = row(COREML, "coreml", "int8", 136_000_000)
    names = ("perplexity", "nll_difference", "kl_divergence", "top1_agreement")
    coreml["not_measured"] = dict.fromkeys(names, REASON)
    return {
        "format": 1,
        "reference": BASE,
        "data": "e" * 64,
        "settings": {},
        "rows": [
            base,
            row(MERGED, "hf", "bfloat16", 269_000_000, perplexity=metric(10.1, 9.0, 11.5), **better, **speed),
            row(Q4, "gguf", "Q4_K_M", 105_000_000, perplexity=metric(13.1, 11.9, 14.9), **worse, **speed),
            coreml,
        ],
    }


def test_rows_in_spec_order_with_names_values_and_intervals(report: dict[str, Any]) -> None:
    shown = table(report, NAMES, None)
    assert [cells[0] for cells in shown.rows] == ["base (reference)", "merged", "gguf@Q4_K_M", "coreml"]
    by_key = {column.key: cell for column, cell in zip(shown.columns, shown.rows[1], strict=True)}
    assert by_key["format"] == "hf bfloat16"
    assert by_key["bytes"] == "269.0"
    assert by_key["perplexity"] == "10.100 [9.000, 11.500]"
    assert by_key["nll_difference"] == "−0.2100 [−0.3000, −0.1000]"
    assert by_key["top1_agreement"] == "81.2 [80.0, 82.5]"
    assert by_key["generation_tokens_per_second"] == "61.3"


def test_right_answers_have_a_column_where_questions_were_asked(report: dict[str, Any]) -> None:
    assert "pattern_accuracy" not in {column.key for column in table(report, NAMES, None).columns}
    report["rows"][1]["metrics"]["pattern_accuracy"] = metric(0.975, 0.9, 0.99)
    shown = table(report, NAMES, None)
    at = [column.title for column in shown.columns].index("right %")
    assert [cells[at] for cells in shown.rows] == ["–", "97.5 [90.0, 99.0]", "–", "–"]
    assert table(report, NAMES, 60).width() <= 60


def test_bits_per_byte_have_columns_where_a_tokenizer_gives_other_tokens(report: dict[str, Any]) -> None:
    """Else the table would show two perplexities that do not compare, and nothing that does."""
    told = {"bits_per_byte": metric(0.9, 0.8, 1.0), "bits_per_byte_difference": metric(0.1, 0.05, 0.15)}
    report["rows"][2]["metrics"] |= told
    titles = [column.title for column in table(report, NAMES, None).columns]
    assert not {"bits/byte", "Δ bits/byte"} & set(titles)
    report["rows"][3]["metrics"] |= told
    shown = table(report, NAMES, None)
    titles = [column.title for column in shown.columns]
    assert [shown.rows[3][titles.index(title)] for title in ("bits/byte", "Δ bits/byte")] == [
        "0.9000 [0.8000, 1.0000]",
        "+0.1000 [+0.0500, +0.1500]",
    ]


def test_not_measured_is_a_dash_with_its_reason(report: dict[str, Any]) -> None:
    shown = table(report, NAMES, None)
    by_key = {column.key: cell for column, cell in zip(shown.columns, shown.rows[3], strict=True)}
    assert by_key["perplexity"] == "–[1]"
    assert by_key["kl_divergence"] == "–[1]"
    assert by_key["prompt_tokens_per_second"] == "–"  # nobody said why
    assert shown.notes == (f"[1] {REASON}",)


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_fits_the_width_and_keeps_what_matters(report: dict[str, Any], width: int) -> None:
    shown = table(report, NAMES, width)
    assert shown.width() <= width
    assert max(len(line) for line in shown.lines()) <= width
    keys = [column.key for column in shown.columns]
    assert {"step", "bytes", "nll_difference"} <= set(keys)
    if width >= 80:
        assert {"perplexity", "kl_divergence"} <= set(keys)
    if width >= 140:
        assert "–0.2100".replace("–", "−") in " ".join(shown.rows[1])
        assert "top1_agreement" in keys


def test_intervals_go_before_columns(report: dict[str, Any]) -> None:
    everything = table(report, NAMES, None)
    narrower = table(report, NAMES, everything.width() - 1)
    assert [column.key for column in narrower.columns] == [column.key for column in everything.columns]
    assert "[" not in dict(zip((c.key for c in narrower.columns), narrower.rows[1], strict=True))["top1_agreement"]


def test_steps_read_the_interval_not_the_value(report: dict[str, Any]) -> None:
    rows = {cells[0]: cells[1:] for cells in steps(report, NAMES).rows}
    assert rows["base (reference)"] == ("100 %", "–", "the reference")
    assert rows["merged"] == ("100 %", "−18.9 %", "better")
    assert rows["gguf@Q4_K_M"] == ("39 %", "+5.1 %", "worse")
    assert rows["coreml"] == ("51 %", "–", "not measured")
    report["rows"][1]["metrics"]["nll_difference"]["interval"] = [-0.5, 0.1]
    assert steps(report, NAMES).rows[1][3] == "no difference shown"
    del report["rows"][1]["metrics"]["nll_difference"]["interval"]
    assert steps(report, NAMES).rows[1][3] == "too few documents to say"


def test_markdown_has_both_tables_and_the_methods(report: dict[str, Any]) -> None:
    page = markdown(report, {**NAMES, Q4: ["gguf@Q4_K_M", "other:small|er"]})
    assert "| gguf@Q4_K_M, other:small\\|er | gguf Q4_K_M |" in page
    assert "## Quality by step and size" in page
    assert f"- [1] {REASON}" in page
    assert "`perplexity` (1; hf, gguf): as measured" in page
    assert page.endswith("\n")
    assert BASE not in page  # twelve digits are enough to read


def test_names_alone_stay_when_there_is_no_room_at_all(report: dict[str, Any]) -> None:
    assert [column.key for column in table(report, NAMES, 5).columns] == ["step"]


def test_without_reference_and_without_names(report: dict[str, Any]) -> None:
    report["reference"] = None
    del report["rows"][3]  # everything measured: no notes
    assert "[1]" not in markdown(report, {})
    page = markdown(report, {})
    assert "without a reference" in page
    assert f"| {MERGED[:12]} |" in page
    assert steps(report, {}).rows[1][1] == "–"


def test_without_a_reference_it_is_told_whose_tokens_are_others(report: dict[str, Any]) -> None:
    """Else perplexities of different tokenizers stand in one column, and nothing warns of that."""
    scored = {BASE: (100, 320), MERGED: (100, 320), Q4: (240, 320), COREML: (100, 190)}
    for row in report["rows"]:
        tokens, size = scored[row["candidate"]]
        row["metrics"] |= {"tokens": metric(tokens), "bits_per_byte": metric(0.9) | {"n": size}}
    assert other_tokens(report) == {}, "each was held to the reference's tokens, or says what does not compare"
    report["reference"] = None
    assert list(other_tokens(report)) == [Q4, COREML]
    told = [note for note in table(report, NAMES, 80).notes if "do not compare" in note]
    assert [note.split()[0] for note in told] == ["gguf@Q4_K_M", "coreml"]
    assert "scored 240 tokens (320 bytes)" in told[0]
    assert "scored 100 tokens (320 bytes)" in told[0]
    del report["rows"][3]["metrics"]["bits_per_byte"]
    assert list(other_tokens(report)) == [Q4], "of how many bytes is not known"


def test_empty_report() -> None:
    report: dict[str, Any] = {"format": 1, "reference": None, "data": "e" * 64, "rows": []}
    assert table(report, {}, 80).rows == ()


def test_the_best_metric_of_each_task_has_a_column_with_its_name(report: dict[str, Any]) -> None:
    score = {"exact_match": metric(0.5, 0.4, 0.6), "tokens": metric(9)}
    task = {"evaluation": "f" * 64, "kind": "harness", "metrics": score, "not_measured": {}}
    report["rows"][2]["tasks"] = [task]
    said = {"evaluation": "9" * 64, "kind": "samples", "metrics": {"distinct_answers": metric(0.7)}, "not_measured": {}}
    report["rows"][2]["tasks"].append(said)
    report["rows"][3]["tasks"] = [{**task, "metrics": {}, "not_measured": {"exact_match": "no answer ended"}}]
    shown = table(report, {**NAMES, "f" * 64: ["report.gguf@Q4_K_M.gsm8k"]}, None)
    at = [column.title for column in shown.columns].index("gsm8k exact_match")
    assert [cells[at] for cells in shown.rows] == ["–", "–", "0.500 [0.400, 0.600]", "–[2]"]
    assert shown.notes[1] == "[2] no answer ended"
    assert "tokens" not in [column.title for column in shown.columns], "counts are no scores"
    assert "distinct_answers" not in str(shown.columns), "samples are there to be read"


def test_what_gates_say_has_a_column_where_there_are_any(report: dict[str, Any]) -> None:
    assert "gates" not in [column.key for column in table(report, NAMES, None).columns]
    shown = table(report, NAMES, None, {"merged": "pass", "gguf@Q4_K_M": "FAIL"})
    assert [cells[-1] for cells in shown.rows] == ["–", "pass", "FAIL", "–"]


@pytest.mark.parametrize(
    ("names", "best"),
    [
        (["acc", "acc_norm"], "acc_norm"),
        (["x_accuracy", "b"], "x_accuracy"),
        (["tokens", "zeta"], "zeta"),
        (["tokens"], None),
    ],
)
def test_a_task_is_told_by_its_best_known_metric(names: list[str], best: str | None) -> None:
    assert headline(dict.fromkeys(names)) == best
