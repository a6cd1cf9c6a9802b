"""The waterfall: lineage by digests, differences paired by document, what was not measured named and never guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chainkit import Chains, digest_of, documents, number
from ingot import registry
from ingot.core.directions import better
from ingot.core.waterfall import Waterfalls
from ingot.core.waterfall_view import to_json, waterfall_table
from ingot.errors import UsageError
from projectkit import Sandbox

BASE = documents((10, 30.0, None, None), (20, 50.0, None, None), (5, 20.0, None, None))
#: Each document is worse by about the same, while documents differ much more from each other.
WORSE = documents((10, 31.0, 30.0, 1.0), (20, 52.1, 50.0, 2.0), (5, 20.4, 20.0, 0.5))
WORST = documents((10, 33.0, 30.0, 2.0), (20, 56.5, 50.0, 4.4), (5, 21.4, 20.0, 1.1))


def metrics(rows: list[dict[str, Any]], size: int) -> dict[str, Any]:
    tokens = sum(row["tokens"] for row in rows)
    found = {"nll": number(sum(row["nll"] for row in rows) / tokens, 2.0, 4.0, unit="nats/token", n=tokens)}
    found["bytes"] = number(size, unit="B")
    if rows[0]["kl"] is not None:
        found["kl_divergence"] = number(sum(row["kl"] for row in rows) / tokens, 0.05, 0.2, unit="nats/token", n=tokens)
    return found


@pytest.fixture
def chains(tmp_path: Path) -> Chains:
    made = Chains(Sandbox.make(tmp_path))
    made.built("base", "convert")
    made.built("adapter", "adapter", model="base")
    made.built("merged", "merge", model="base", adapter="adapter")
    made.built("pruned", "prune", model="merged")
    made.built("gguf@Q8_0", "gguf", model="pruned")
    made.built("gguf@Q4_0", "gguf", model="pruned")
    made.evaluated("report.base", "base", metrics(BASE, 400), BASE)
    made.evaluated("report.merged", "merged", metrics(WORSE, 400), WORSE, reference="base")
    made.evaluated("report.gguf@Q8_0", "gguf@Q8_0", metrics(WORST, 200), WORST, reference="base")
    made.evaluated(
        "report.gguf@Q4_0", "gguf@Q4_0", metrics(WORST, 100), WORST, reference="base", params={"documents": 4}
    )
    return made


def report(chains: Chains, *candidates: str, more: tuple[str, ...] = (), reference: str | None = "base") -> Waterfalls:
    measured = [f"report.{name}" for name in ([reference] if reference else [])] + [f"report.{n}" for n in candidates]
    chains.reported("report", reference, list(candidates), [*measured, *more])
    chains.commit()
    project = registry.open_log(chains.sandbox.root)
    return Waterfalls(project, registry.receipt_of_target(project, "s:report"))


@pytest.fixture(autouse=True)
def _home(chains: Chains, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, chains.sandbox.env[name])


def test_each_step_with_its_paired_difference_and_sizes(chains: Chains) -> None:
    found = report(chains, "merged", "gguf@Q8_0").of("nll")
    first, second = found.steps
    assert [link.target for link in first.through] == ["s:merged"]
    assert first.end.beside == (("s:adapter", "adapter"),)
    assert first.basis == "paired" and first.documents == 3
    assert first.difference == pytest.approx(3.5 / 35)
    assert first.interval is not None and 0.08 <= first.interval[0] < 0.1 < first.interval[1] <= 0.106
    assert first.reading("nll") == "worse"
    assert second.bytes == (400, 200)
    assert second.before == first.after and second.after.evaluation == chains.digests["report.gguf@Q8_0"]
    assert [chain.steps for chain in found.chains] == [(0,), (0, 1)]


def test_what_was_not_measured_is_part_of_a_step(chains: Chains) -> None:
    falls = report(chains, "merged", "gguf@Q8_0")
    step = falls.of("nll").steps[1]
    assert [link.target for link in step.between] == ["s:pruned"]
    text = "\n".join(waterfall_table(falls.of("nll"), {}).lines())
    assert "→ merged (adapter, merge)" in text
    assert "  → pruned → gguf@Q8_0 (2 steps, not measured between)" in text


def test_chains_share_their_stem(chains: Chains) -> None:
    found = report(chains, "gguf@Q8_0", "gguf@Q4_0", "merged").of("nll")
    assert len(found.steps) == 3
    assert [chain.steps for chain in found.chains] == [(0, 1), (0, 2), (0,)]
    lines = waterfall_table(found, {digest_of("s:merged"): ["merged", "again"]}).lines()
    assert [line.strip().partition(" (")[0] for line in lines[2:]] == [
        "→ merged, again", "→ pruned → gguf@Q8_0", "→ pruned → gguf@Q4_0",
    ]  # fmt: skip


def test_an_intermediate_that_the_log_measured_alike_is_a_step_of_its_own(chains: Chains) -> None:
    chains.evaluated("report.pruned", "pruned", metrics(WORSE, 300), WORSE, reference="base")
    found = report(chains, "gguf@Q8_0", more=("report.merged",)).of("nll")
    assert [step.end.target for step in found.steps] == ["s:merged", "s:pruned", "s:gguf@Q8_0"]


@pytest.mark.parametrize(
    "other", [{"data": "ee" * 32}, {"params": {"documents": 9}}, {"reference": "merged"}, {"reference": None}]
)
def test_an_intermediate_that_was_measured_otherwise_is_none(chains: Chains, other: dict[str, Any]) -> None:
    chains.evaluated("other.pruned", "pruned", metrics(WORSE, 300), WORSE, **{"reference": "base", **other})
    found = report(chains, "gguf@Q8_0").of("kl_divergence")
    assert [step.end.target for step in found.steps if not step.between] == ["s:merged"]
    assert [link.target for link in found.steps[-1].between] == ["s:pruned"]


def test_the_distance_of_the_reference_is_known_by_definition(chains: Chains) -> None:
    first, second = report(chains, "merged", "gguf@Q8_0").of("kl_divergence").steps
    assert first.basis == "reference" and first.before.defined and first.before.evaluation is None
    assert first.difference == pytest.approx(0.1)
    assert first.interval == (0.05, 0.2)
    assert second.basis == "paired"


def test_sums_that_do_not_give_the_recorded_value_pair_nothing(chains: Chains) -> None:
    rows = [{**row, "nll": row["nll"] + 1} for row in WORSE]
    chains.evaluated("report.pruned", "pruned", metrics(WORSE, 300), rows, reference="base")
    found = report(chains, "pruned").of("nll")
    step = next(step for step in found.steps if step.end.target == "s:pruned")
    assert (step.basis, step.interval) == ("unpaired", None)
    assert step.reading("nll") == "unknown"
    assert "unpaired" in "\n".join(waterfall_table(found, {}).lines())


def test_other_documents_and_lost_artifacts_pair_nothing(chains: Chains) -> None:
    rows = [{**row, "id": f"x{row['id']}"} for row in WORSE]
    chains.evaluated("report.pruned", "pruned", metrics(WORSE, 300), rows, reference="base")
    falls = report(chains, "pruned")
    assert {step.basis for step in falls.of("nll").steps if step.end.target == "s:pruned"} == {"unpaired"}
    assert {step.basis for step in falls.of("bytes").steps} == {"exact"}


def test_a_candidate_that_was_not_measured_says_why(chains: Chains) -> None:
    chains.built("coreml", "coreml", model="merged")
    why = {"nll": "a Core ML package runs on a Mac only"}
    chains.evaluated("report.coreml", "coreml", {"bytes": number(50, unit="B")}, reference="base", not_measured=why)
    found = report(chains, "coreml").of("nll")
    (chain,) = found.chains
    assert [link.target for link in chain.unmeasured] == ["s:coreml"]
    assert chain.reason == why["nll"]
    table = waterfall_table(found, {})
    assert table.notes == (why["nll"],)
    assert "not measured [1]" in "\n".join(table.lines())


def test_without_a_reference_a_chain_starts_at_what_was_measured_first(chains: Chains) -> None:
    chains.evaluated("report.merged", "merged", metrics(BASE, 400), BASE)
    chains.evaluated("report.gguf@Q8_0", "gguf@Q8_0", metrics(BASE, 200), BASE)
    found = report(chains, "merged", "gguf@Q8_0", reference=None).of("nll")
    # The log has measured the base alike, for another report.
    assert [chain.start.target if chain.start else None for chain in found.chains] == ["s:base", "s:base"]
    assert [step.end.target for step in found.steps] == ["s:merged", "s:gguf@Q8_0"]


def test_a_step_that_changes_no_byte_is_none(chains: Chains) -> None:
    chains.built("same", "prune", model="merged", digest=digest_of("s:merged"))
    chains.built("after", "quantize", model="same")
    chains.evaluated("report.after", "after", metrics(WORST, 100), WORST, reference="base")
    found = report(chains, "after", more=("report.merged",)).of("nll")
    assert [[link.target for link in step.through] for step in found.steps] == [["s:same"], ["s:after"]]


def test_a_task_has_its_own_waterfall(chains: Chains) -> None:
    for name, value in (("base", 0.5), ("merged", 0.75), ("gguf@Q8_0", 0.25)):
        chains.evaluated(f"report.{name}.gsm8k", name, {"exact_match": number(value, n=8)}, kind="harness")
    tasks = ("report.base.gsm8k", "report.merged.gsm8k", "report.gguf@Q8_0.gsm8k")
    falls = report(chains, "merged", "gguf@Q8_0", more=tasks)
    found = falls.of("gsm8k.exact_match")
    assert [step.difference for step in found.steps] == [0.25, -0.5]
    assert "unpaired" in "\n".join(waterfall_table(found, {}).lines())
    with pytest.raises(UsageError, match=r"did you mean gsm8k\.exact_match") as caught:
        falls.of("gsm8k.exact_mach")
    assert caught.value.code == "E-METRIC"


def test_json_is_plain_and_whole(chains: Chains) -> None:
    data = to_json(report(chains, "gguf@Q8_0").of("nll"), {digest_of("s:base"): ["start"]})
    assert data["chains"][0]["start"]["names"] == ["start"]
    step = data["steps"][1]
    assert step["title"] == "pruned → gguf@Q8_0 (2 steps, not measured between)"
    assert step["basis"] == "paired" and step["bytes"] == {"before": 400, "after": 200}
    assert {*step["after"]} == {"value", "unit", "interval", "n", "evaluation", "origin", "index", "defined"}


def test_windows_of_other_text_pair_nothing(chains: Chains) -> None:
    count = number(3, unit="windows")
    rows = [[{**row, "id": f"{at:08d}", "bytes": size} for at, row in enumerate(WORST)] for size in (40, 41)]
    chains.evaluated("report.w1", "pruned", {**metrics(WORST, 300), "windows": count}, rows[0], reference="base")
    for name, each in (("gguf@Q8_0", rows[0]), ("gguf@Q4_0", rows[1])):
        found = {**metrics(WORST, 300), "windows": count}
        chains.evaluated(f"report.{name}", name, found, each, reference="base")
    steps = report(chains, "gguf@Q8_0", "gguf@Q4_0").of("nll").steps
    assert {step.end.target: step.basis for step in steps if step.start.target == "s:pruned"} == {
        "s:gguf@Q8_0": "paired", "s:gguf@Q4_0": "unpaired",
    }  # fmt: skip


def test_a_reference_that_is_kept_as_logits_is_measured_alike(chains: Chains) -> None:
    """Then candidates are compared with its logits, and it itself is measured by them."""
    chains.built("logits", "logits", model="base")
    chains.evaluated("report.base", "base", metrics(BASE, 400), BASE, logits="logits")
    for name in ("merged", "pruned"):
        chains.evaluated(f"report.{name}", name, metrics(WORSE, 400), WORSE, reference="logits")
    chains.evaluated("elsewhere", "gguf@Q8_0", metrics(WORST, 9), WORST, reference="logits")
    steps = report(chains, "pruned", "gguf@Q8_0", more=("report.merged",)).of("nll").steps
    assert [(step.start.target, step.end.target, step.basis) for step in steps][:2] == [
        ("s:base", "s:merged", "paired"), ("s:merged", "s:pruned", "paired"),
    ]  # fmt: skip


def test_directions() -> None:
    names = ("kl_divergence", "bytes", "p95_latency", "gsm8k.acc_norm", "tokens_per_second", "f1_lax", "pass_at_1")
    assert [better(name) for name in names] == ["lower"] * 3 + ["higher"] * 4
    assert better("positive_share") is None


def test_what_an_artifact_says_otherwise_pairs_nothing_and_gives_no_reason(chains: Chains) -> None:
    odd = [{"id": "d0"}, *WORSE[1:]]
    chains.evaluated("report.pruned", "pruned", metrics(WORSE, 300), odd, reference="base")
    chains.built("onnx", "onnx", model="pruned")
    chains.evaluated(
        "report.onnx", "onnx", {"bytes": number(5, unit="B")}, reference="base", not_measured=["no", "reason"]
    )
    found = report(chains, "pruned", "onnx", more=("report.merged",)).of("nll")
    assert {step.end.target: step.basis for step in found.steps} == {"s:merged": "paired", "s:pruned": "unpaired"}
    assert found.chains[1].reason is None and found.chains[1].unmeasured
    assert "→ onnx" in "\n".join(waterfall_table(found, {}).lines())


@pytest.mark.parametrize("text", ["{", "[]\n", "\n", ""])
def test_lines_that_are_no_objects_pair_nothing(chains: Chains, text: str) -> None:
    chains.evaluated("report.pruned", "pruned", metrics(WORSE, 300), text, reference="base")
    chains.built("onnx", "onnx", model="pruned")
    chains.evaluated("report.onnx", "onnx", {"bytes": number(5, unit="B")}, reference="base", not_measured=text)
    falls = report(chains, "pruned", "onnx", more=("report.merged",))
    assert falls.of("nll").steps[-1].basis == "unpaired"
    assert falls.of("nll").chains[1].reason is None


def test_an_artifact_that_is_gone_pairs_nothing(chains: Chains) -> None:
    from recordkit import store_of

    falls = report(chains, "merged")
    path = store_of(chains.sandbox).object_path(chains.digests["report.merged"])
    path.rename(path.with_name("gone"))
    (step,) = falls.of("nll").steps
    assert (step.basis, step.interval) == ("unpaired", None)
    table = waterfall_table(falls.of("nll"), {}, 42)
    assert [column.key for column in table.columns] == ["step", "change"], "what matters most is what is left"


def test_a_model_whose_build_no_log_holds_starts_a_chain(chains: Chains) -> None:
    chains.digests["foreign"] = digest_of("elsewhere")
    chains.built("mine", "quantize", model="foreign")
    chains.evaluated("report.mine", "mine", metrics(WORSE, 300), WORSE, reference="base")
    found = report(chains, "mine").of("nll")
    (chain,) = found.chains
    assert (chain.steps, chain.start and chain.start.target) == ((), "s:mine")
    assert to_json(found, {})["chains"][0]["start"]["kind"] == "quantize"


def test_a_metric_of_no_known_direction_has_no_reading(chains: Chains) -> None:
    for name, share in (("base", 0.5), ("merged", 0.25)):
        chains.evaluated(f"report.{name}.mood", name, {"positive_share": number(share)}, kind="classify")
    found = report(chains, "merged", more=("report.base.mood", "report.merged.mood")).of("mood.positive_share")
    assert [step.reading("mood.positive_share") for step in found.steps] == ["unknown"]


def test_a_measurement_that_was_taken_over_from_another_name_is_that_task(chains: Chains) -> None:
    """The report names what it reads by its own names; the receipt may have been built under another."""
    chains.evaluated("exam", "merged", {"exact_match": number(0.5, n=4)}, kind="match")
    falls = report(chains, "merged", more=("exam",))
    assert "exam.exact_match" in falls.metrics


def test_without_kept_documents_nothing_is_paired(chains: Chains) -> None:
    chains.evaluated("report.pruned", "pruned", metrics(BASE, 300), reference="base")
    found = report(chains, "pruned", more=("report.merged",)).of("nll")
    assert found.steps[-1].basis == "unpaired"


def test_better_and_worse(chains: Chains) -> None:
    falls = report(chains, "merged", "gguf@Q8_0")
    assert [step.reading("bytes") for step in falls.of("bytes").steps] == ["no difference shown", "better"]
    assert [step.reading("top1_agreement") for step in falls.of("bytes").steps][1] == "worse"
