"""``doit bisect`` through doit itself: what is measured and what is not, both ends, contradictions, codes, keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import doitkit
from decisionkit import opened, own_keys, report_spec
from ingot.core import probes, project
from ingot.core.executor import Executor, Listener, Outcome
from ingot.errors import StageFailed
from projectkit import Sandbox

SPEC = """\
targets:
  weights: {kind: fetch, path: weights.bin}
  base: {kind: convert, from: {model: weights}}
  dataset: {kind: dataset, sources: [{python_stdlib: topics}], split: {eval: 0.1}}
  p1: {kind: prune, from: {model: base}, sparsity: 0.1}
  p2: {kind: prune, from: {model: p1}, sparsity: 0.2}
  p3: {kind: prune, from: {model: p2}, sparsity: 0.3}
  p4: {kind: prune, from: {model: p3}, sparsity: 0.4}
  gguf: {kind: gguf, from: {model: p4}, type: Q8_0}
  report: {kind: report, from: {data: dataset, reference: base, candidates: [CANDIDATES]}, documents: 8}
"""
NAMES = ("base", "p1", "p2", "p3", "p4", "gguf")


class Worth(Executor):
    """Runs no stage: each model writes what it was made of, and a measurement is looked up by the length of that."""

    #: By the depth of a model below the base: its divergence. What is not there could not be measured.
    divergence: Mapping[int, float] = {}
    ran: list[str] = []  # noqa: RUF012 - shared on purpose: doit makes the executor
    fails: str = ""

    def run(self, job: Mapping[str, Any], log: Path, lock_fd: int, listener: Listener) -> Outcome:
        log.touch()
        kind, out = str(job["kind"]), Path(job["out"])
        if kind == "evaluate":
            (model,) = job["inputs"]["candidate"]
            depth = len((Path(model) / "out.txt").read_text().split()) - 2
            self.ran.append(NAMES[depth])
            if self.fails == NAMES[depth]:
                raise StageFailed("E-STAGE-EXIT", "the stage ended", log=str(log))
            metrics = {"nll": {"value": 2.0 + depth, "unit": "nats/token", "method": "m", "n": 9}}
            why = {"kl_divergence": "it has another tokenizer"}
            if depth in self.divergence:
                found = self.divergence[depth]
                kl = {
                    "value": found,
                    "unit": "nats/token",
                    "method": "m",
                    "n": 9,
                    "interval": [found - 0.1, found + 0.1],
                }
                metrics, why = metrics | {"kl_divergence": kl}, {}
            (out / "evaluation.json").write_text(json.dumps({"depth": depth, "not_measured": why}))
            return Outcome(metrics, "not isolated", 0.0, None, None)
        parents = [(Path(path) / "out.txt").read_text() for path in job["inputs"].get("model", ())]
        (out / "out.txt").write_text("".join(parents) + f"{kind}:{job['params'].get('type')}\n")
        return Outcome({"bytes": {"value": 1, "unit": "B", "method": "m"}}, "not isolated", 0.0, None, None)


@pytest.fixture
def chain(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    # What is replaced last is put back first: else the executor of doitkit would stay for the tests of other files.
    with doitkit.prepared(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(project, "Executor", Worth)
        monkeypatch.setattr(Worth, "divergence", {1: 0.1, 2: 0.2, 3: 0.9, 4: 1.0, 5: 1.1})
        monkeypatch.setattr(Worth, "ran", [])
        sandbox.file("specs/weights.bin", "weights")
        write(sandbox, "gguf")
        yield sandbox


def write(sandbox: Sandbox, candidates: str, **changes: str) -> None:
    text = SPEC.replace("CANDIDATES", candidates)
    for old, new in changes.items():
        text = text.replace(old, new)
    sandbox.spec(text)


def bisect(sandbox: Sandbox, *more: str, metric: str = "kl_divergence") -> tuple[int, str, list[str]]:
    """The exit code, what was printed, and what was measured by it."""
    Worth.ran.clear()
    code, text = doitkit.run(sandbox, "bisect", "s", "--metric", metric, *(more or ("--max", "0.5")))
    return code, text, list(Worth.ran)


def test_the_lossy_step_is_found_with_few_measurements(chain: Sandbox) -> None:
    code, text, ran = bisect(chain)
    assert code == 0
    assert text.rstrip().splitlines()[-1] == "the lossy step is p3: kl_divergence 0.2 → 0.9"
    # The reference is known by definition; of the four between two are enough.
    assert ran == ["gguf", "p2", "p3"]
    assert "0  holds (by definition)" in text
    assert "built     s:report.p2" in text
    assert "doit show" not in text, "no closing page between the probes"


def test_what_was_measured_is_measured_never_again(chain: Sandbox) -> None:
    bisect(chain)
    code, text, ran = bisect(chain)
    assert (code, ran) == (0, [])
    assert "holds (reused)" in text
    code, text, ran = bisect(chain, "--max", "0.15")
    assert (code, ran) == (0, ["p1"])
    assert "the lossy step is p2: kl_divergence 0.1 → 0.2" in text


def test_a_report_that_lists_the_intermediates_has_nothing_to_measure(chain: Sandbox) -> None:
    bisect(chain)
    write(chain, "p2, p3, gguf")
    Worth.ran.clear()
    code, text = doitkit.run(chain, "s:report.p2", "s:report.p3", "s:report.gguf")
    assert (code, Worth.ran) == (0, [])
    assert "nothing to do" in text
    code, text = doitkit.run(chain, "plan", "--json")
    states = {item["target"]: item["state"] for item in json.loads(text)["targets"]}
    assert {states[f"s:report.{name}"] for name in ("p2", "p3", "gguf")} == {"fresh"}


def test_another_setting_is_another_measurement(chain: Sandbox) -> None:
    bisect(chain)
    write(chain, "gguf", **{"documents: 8": "documents: 9"})
    assert bisect(chain)[2] == ["gguf", "p2", "p3"]


def test_an_end_that_holds_has_no_lossy_step(chain: Sandbox) -> None:
    code, text, ran = bisect(chain, "--max", "2")
    assert (code, ran) == (1, ["gguf"])
    assert text.rstrip().endswith("no step breaks it: gguf has kl_divergence 1.1")


def test_a_start_beyond_the_limit_has_none_either(chain: Sandbox) -> None:
    code, text, ran = bisect(chain, "--max", "1", metric="nll")
    assert (code, ran) == (1, ["gguf", "base"])
    assert "no step breaks it: base at the start has nll 2 already" in text


def test_a_minimum_is_searched_too(chain: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worth, "divergence", {1: 0.0, 2: -1.0, 3: -2.0, 4: -3.0, 5: -4.0})
    code, text, _ = bisect(chain, "--min", "-2.5")
    assert code == 0
    assert "the lossy step is p4: kl_divergence -2 → -3" in text


def test_known_neighbours_that_contradict_are_told(chain: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worth, "divergence", {1: 0.1, 2: 0.9, 3: 0.2, 4: 1.0, 5: 1.1})
    write(chain, "p2, p3, gguf")
    doitkit.run(chain, "s:report.p2", "s:report.p3")
    code, text, ran = bisect(chain)
    assert (code, ran) == (0, ["gguf", "p1"])
    assert "note: p2 (0.9) breaks the limit and p3 (0.2), made of it, holds it again" in text
    assert text.rstrip().endswith("the lossy step is p2: kl_divergence 0.1 → 0.9")


def test_a_break_that_a_later_step_heals_is_found_where_it_is_known(
    chain: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worth, "divergence", {1: 0.1, 2: 0.9, 3: 0.9, 4: 0.2, 5: 0.2})
    write(chain, "p3, gguf")
    doitkit.run(chain, "s:report.p3")
    code, text, _ = bisect(chain)
    assert code == 0
    assert "note: p3 (0.9) breaks the limit and gguf (0.2), made of it, holds it again" in text
    assert "the lossy step is p2" in text


def test_what_cannot_be_measured_is_stepped_over(chain: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worth, "divergence", {1: 0.1, 2: 0.2, 4: 1.0, 5: 1.1})
    code, text, _ = bisect(chain)
    assert code == 0
    assert "p3    not measured: it has another tokenizer" in text
    assert "the lossy step is p3 → p4 (2 steps, not measured between): kl_divergence 0.2 → 1" in text
    monkeypatch.setattr(Worth, "divergence", {1: 0.1})
    write(chain, "gguf", **{"documents: 8": "documents: 9"})
    code, text, ran = bisect(chain)
    assert (code, ran) == (1, ["gguf"])
    assert "gguf: kl_divergence could not be measured there" in text


def test_json(chain: Sandbox) -> None:
    code, text, _ = bisect(chain, "--max", "0.85", "--json")
    data = json.loads(text)
    assert (code, data["report"], data["limit"]) == (0, "s:report", {"max": 0.85})
    (found,) = data["bisections"]
    assert found["step"] == {"from": "p2", "to": "p3", "between": [], "before": 0.2, "after": 0.9}
    assert [probe["how"] for probe in found["probes"]] == ["defined", "built", "built", "built"]
    assert found["probes"][2]["sure"] is False, "0.85 lies in [0.8, 1.0]"
    assert (found["probes"][1]["measurement"], len(found["probes"][1]["digest"])) == ("s:report.p2", 64)


def test_json_of_what_was_not_found(chain: Sandbox) -> None:
    code, text, _ = bisect(chain, "--max", "2", "--json")
    (found,) = json.loads(text)["bisections"]
    assert (code, found["verdict"], found["step"]) == (1, "holds", None)


def test_of_several_reports_one_must_be_named(chain: Sandbox) -> None:
    chain.spec(SPEC.replace("CANDIDATES", "gguf") + SPEC[SPEC.index("  report:") :].replace("report:", "second:", 1)
               .replace("CANDIDATES", "p1"))  # fmt: skip
    code, text, ran = bisect(chain)
    assert (code, ran) == (2, [])
    assert "E-TARGET: 's' has several reports" in text and "s:second" in text
    assert doitkit.run(chain, "bisect", "s:second", "--metric", "nll", "--max", "9")[0] == 1


def test_each_end_is_searched_and_shares_what_was_measured(chain: Sandbox) -> None:
    text = SPEC.replace("CANDIDATES", "gguf, p2, other")
    chain.spec(text + "  other: {kind: gguf, from: {model: p4}, type: Q4_0}\n")
    code, text, ran = bisect(chain)
    assert code == 0
    assert ran == ["gguf", "p2", "p3", "gguf"], "both exports are of one depth; the stem is measured once"
    assert text.count("the lossy step is p3: kl_divergence 0.2 → 0.9") == 2
    assert bisect(chain, "--max", "0.5", "--target", "other")[:2][0] == 0


def test_a_probe_that_fails_ends_it_and_keeps_the_others(chain: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worth, "fails", "p2")
    code, text, ran = bisect(chain)
    assert (code, ran) == (1, ["gguf", "p2"])
    assert "E-STAGE-EXIT" in text and "Traceback" not in text
    monkeypatch.setattr(Worth, "fails", "")
    assert bisect(chain)[2] == ["p2", "p3"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("s", "--metric", "kl_divergenc", "--max", "1"), "E-METRIC: nothing in s:report measures 'kl_divergenc'"),
        (("s", "--metric", "gsm8k.acc", "--max", "1"), "E-METRIC"),
        (("s", "--metric", "nll"), "E-USAGE: doit bisect needs --metric, and either --max or --min"),
        (("s", "--metric", "nll", "--max", "1", "--min", "0"), "E-USAGE"),
        (("s", "--metric", "nll", "--max", "high"), "E-USAGE: --max is a number, not 'high'"),
        (("s", "--metric", "nll", "--max", "nan"), "E-USAGE"),
        (("--metric", "nll", "--max", "1"), "E-USAGE"),
        (("t", "--metric", "nll", "--max", "1"), "E-TARGET: there is no spec 't'"),
        (("s:p1", "--metric", "nll", "--max", "1"), "E-TARGET: 's:p1' is no report"),
        (("s", "--metric", "nll", "--max", "1", "--target", "ggu"), "did you mean 'gguf'?"),
        (("s", "--metric", "nll", "--max", "1", "--target", "dataset"), "cannot be a candidate"),
        (("s", "--metric", "nll", "--maximum", "1"), "E-USAGE"),
    ],
)
def test_wrong_use(chain: Sandbox, arguments: tuple[str, ...], words: str) -> None:
    code, text = doitkit.run(chain, "bisect", *arguments)
    print(text)
    assert code == 2
    assert words in text
    assert "Traceback" not in text
    assert Worth.ran == []
    if "kl_divergenc" in arguments:
        assert "did you mean kl_divergence" in text


def test_a_reference_that_was_fetched_begins_the_chain(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a ``fetch`` or a ``command`` brings is no model by its kind; the report measures it all the same."""
    own_keys(sandbox, monkeypatch)
    report_spec(sandbox)
    found = opened(sandbox)
    assert probes.chain(found, found.nodes["s:report"], "gguf") == ("base", "gguf")
