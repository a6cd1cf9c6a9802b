"""A project whose log tells of everything that a page must mark: recorded as builds would, without running a stage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ingot import registry
from ingot.core.key import key_of
from ingot.core.project import Project
from ingot.core.statement import build_statement
from ingot.core.verdicts import Finding, Verdict
from ingot.view.page.book import Book
from ingot.view.page.facts import Page, collect
from ingot.view.page.figures import Figure
from projectkit import Sandbox
from recordkit import publish, registry_of, store_of
from registrykit import receipt

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)> \u202eevil & \"quoted\""
TASK = "gsm8k"
Rendered = tuple[str, list[Figure]]


def metric(value: float, unit: str = "1", **more: Any) -> dict[str, Any]:
    """A metric as an entry holds it."""
    return {"value": value, "unit": unit, "method": f"counted by hand <{value:g}>", **more}


def quality(kl: float, size: float, *, reference: bool = False) -> dict[str, Any]:
    """What ``evaluate`` measures of a candidate."""
    found = {
        "bytes": metric(size, "B"),
        "perplexity": metric(10 + kl, n=200, interval=[9.5 + kl, 10.5 + kl]),
        "pattern_accuracy": metric(0.75 - kl / 10, n=40, interval=[0.6 - kl / 10, 0.9 - kl / 10]),
        "generation_tokens_per_second": metric(100 + size / 1e6, "tokens/s", n=3),
    }
    against = {
        "kl_divergence": metric(kl, "nats/token", n=200, interval=[0.9 * kl, 1.1 * kl]),
        "nll_difference": metric(kl / 2, "nats/token", n=200, interval=[0.4 * kl, 0.6 * kl]),
    }
    return found if reference else found | against


@dataclass
class Story:
    """Records builds in order; ``digests`` are by target."""

    sandbox: Sandbox
    digests: dict[str, str] = field(default_factory=dict)
    statements: list[dict[str, Any]] = field(default_factory=list)

    def build(
        self,
        name: str,
        kind: str,
        inputs: Mapping[str, Any] | None = None,
        *,
        files: Mapping[str, str] | None = None,
        metrics: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> str:
        """One build of ``s:NAME``; inputs by role, each a name or a list of names."""
        given = {"what.txt": f"{name} of {kind}\n", **(files or {})}
        digest, records = publish(self.sandbox, {path: text.encode() for path, text in given.items()})
        self.digests[name] = digest
        single = {role: self._input(it) for role, it in (inputs or {}).items() if isinstance(it, str)}
        many = {role: [self._input(each) for each in it] for role, it in (inputs or {}).items() if isinstance(it, list)}
        made = receipt(target=f"s:{name}", spec="s", kind=kind, revision=1)
        made |= {"digest": digest, "inputs": {**single, **many}, "metrics": dict(metrics or {})}
        made |= {"files": [record.to_dict() for record in records], **more}
        parts = {"format": 1, "kind": kind, "revision": 1, "params": dict(params or {}), "tools": {"torch": "2.13"}}
        made["key_parts"] = parts | {"inputs": {role: f"sha256:{it['digest']}" for role, it in single.items()}}
        made["key"] = key_of(made["key_parts"])
        made["timings"] = {**made["timings"], "finished": f"2026-11-26T03:{len(self.statements):02d}:00.000Z"}
        self.statements.append(build_statement(made))
        return digest

    def evaluation(self, candidate: str, metrics: Mapping[str, Any], task: str = "", **more: Any) -> str:
        """A measurement of a candidate, by the report or a task of it; its name."""
        name = f"report.{candidate}{f'.{task}' if task else ''}"
        inputs: dict[str, Any] = {"candidate": candidate, "data": "data"}
        if candidate != "base":
            inputs["reference"] = "base"
        inputs |= more.pop("said", {})
        kind = more.pop("kind", "evaluate")
        told = {"format": 2, "kind": kind, "not_measured": more.pop("not_measured", {})}
        files = {"evaluation.json": json.dumps(told), **more.pop("files", {})}
        self.build(name, kind, inputs, files=files, metrics=metrics, **more)
        return name

    def _input(self, name: str) -> dict[str, str]:
        return {"target": f"s:{name}", "digest": self.digests[name]}

    def record(self) -> None:
        """Sign everything in one commit."""
        registry_of(self.sandbox).append(self.statements)
        self.statements.clear()


def told(sandbox: Sandbox) -> Story:
    """A chain with everything: trained, contaminated, missing, damaged, asked, classified, judged."""
    story = Story(sandbox)
    card = "---\nlicense: apache-2.0\nlanguage:\n- en\n---\n\n# A base model\n"
    story.build("weights", "fetch", files={"README.md": card}, params={"hf": "maker/base-1b", "revision": "a" * 40})
    asked = json.dumps(
        {"id": "q1", "messages": [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": "Yes."}]}
    )
    counts = {
        "read": 900,
        "too_short": 60,
        "too_long": 0,
        "exact_duplicates": 20,
        "near_duplicates": 20,
        "over_limit": 0,
    }
    funnel = {f"documents_{name}": metric(n, "documents") for name, n in {**counts, "train": 720, "eval": 80}.items()}
    story.build(
        "data", "dataset", files={"eval.jsonl": asked + "\n"}, metrics=funnel, params={"dedup": {"threshold": 0.8}}
    )
    leaked = {"contaminated_documents": metric(3, "documents")}
    story.build("leaky", "dataset", metrics=leaked, params={"dedup": None})
    story.build("base", "convert", {"model": "weights"})
    curve = {
        "format": 1, "loss_unit": "nats/token", "kept_step": 20,
        "train": [{"step": step, "loss": 3 - step / 20} for step in range(1, 21)],
        "eval": [{"step": step, "loss": 3 - step / 22} for step in (0, 10, 20)],
    }  # fmt: skip
    losses = {"eval_loss_before": metric(3, "nats/token", n=8), "eval_loss_after": metric(2.1, "nats/token", n=8)}
    files = {"training.json": json.dumps(curve)}
    story.build("adapter", "adapter", {"model": "base", "data": "data"}, files=files, metrics=losses)
    story.build("merged", "merge", {"model": "base", "adapter": "adapter"})
    story.build("leaked", "full", {"model": "base", "data": "leaky"})
    seconds = {"first_token": 0.5, "token_p50": 0.02, "token_p95": 0.03, "token_p99": 0.05}
    times = {f"{name}_s": metric(value, "s") for name, value in seconds.items()}
    runtime = {"runtime": {"runtime": "llama.cpp", "baselines": {}, "hardware": {"processor": "a processor"}}}
    story.build("gguf@Q8_0", "gguf", {"model": "merged"}, metrics=times, notes=runtime)
    panels = {
        name: {"ece": 0.125, "bins": [{"confidence": at / 4, "accuracy": at / less, "n": 10 * at} for at in (1, 2, 3)]}
        for name, less in (("before", 5), ("temperature", 6), ("platt", 7))
    }
    sure = {"calibration.json": json.dumps({"format": 1, "reliability": panels})}
    story.build("sure", "calibrate", {"model": "merged", "data": "data"}, files=sure)
    story.build("gguf@Q4_0", "gguf", {"model": "merged"})
    story.build("rotten", "gguf", {"model": "merged"})
    reported(story)
    story.record()
    store = store_of(sandbox)
    shutil.rmtree(_writable(store.object_path(story.digests["gguf@Q4_0"])))
    path = _writable(store.object_path(story.digests["rotten"])) / "what.txt"
    path.chmod(0o644)
    path.write_text("other bytes\n")
    return story


def reported(story: Story) -> None:
    """The report over the chain, with what tasks found."""
    sizes = {"base": 4e6, "merged": 4e6, "leaked": 4e6, "gguf@Q8_0": 2e6, "gguf@Q4_0": 1e6, "rotten": 1.5e6}
    divergences = {"base": 0.0, "merged": 0.02, "leaked": 0.3, "gguf@Q8_0": 0.03, "gguf@Q4_0": 0.9, "rotten": 1.2}
    evaluations: list[str] = []
    rows: list[dict[str, Any]] = []
    for name, size in sizes.items():
        metrics = quality(divergences[name], size, reference=name == "base")
        said = {"id": "q1", "answer": f"{name} says {HOSTILE}", "pattern": name != "rotten", "exact": False}
        files = {"answers.jsonl": json.dumps(said) + "\n"}
        absent = {"energy_per_token": "no counter of energy can be read"} if name == "merged" else {}
        evaluations.append(story.evaluation(name, metrics, files=files, not_measured=absent))
        rows.append({
            "candidate": story.digests[name], "container": "hf", "precision": "bf16", "metrics": metrics,
            "not_measured": absent, "evaluation": story.digests[evaluations[-1]], "tasks": [],
        })  # fmt: skip
    rates = {"win_rate": metric(0.5, n=20), "tie_rate": metric(0.2, n=20), "loss_rate": metric(0.3, n=20)}
    confusion = {"confusion.json": json.dumps({"format": 1, "labels": ["a<b", "c"], "counts": [[8, 1, 1], [2, 7, 0]]})}
    for name in ("base", "gguf@Q8_0"):
        line = {"id": "j1", "prompt": "Who won?", "answer": f"{name} did"}
        story.build(f"said.{name}", "samples", {"candidate": name}, files={"samples.jsonl": json.dumps(line) + "\n"})
    for task, kind, metrics, written in (
        (TASK, "harness", {"exact_match": metric(0.4, n=50, interval=[0.3, 0.5]), "tokens": metric(9, "tokens")}, {}),
        ("mood", "classify", {"accuracy": metric(0.8, n=19)}, confusion),
        ("better", "judge", rates, {}),
    ):
        notes = {"device": "cpu", "runtime": "llama.cpp"}
        said = {"samples": "said.gguf@Q8_0", "reference_samples": "said.base"} if kind == "judge" else {}
        name = story.evaluation("gguf@Q8_0", metrics, task, kind=kind, files=written, notes=notes, said=said)
        evaluations.append(name)
        told = {"evaluation": story.digests[name], "kind": kind, "metrics": metrics, "not_measured": {}}
        rows[3]["tasks"].append(told)
    report = {
        "format": 2, "data": story.digests["data"], "reference": story.digests["base"], "settings": {"documents": 24},
        "rows": rows,
    }  # fmt: skip
    others = [name for name in sizes if name != "base"]
    inputs = {"data": "data", "reference": "base", "candidates": others, "evaluations": evaluations}
    story.build("report", "report", inputs, files={"report.json": json.dumps(report)}, metrics={"rows": metric(6)})


_FINDINGS: dict[bool | None, Finding] = {True: "kept", False: "broken", None: "unknown"}


def verdict(gate: str, limit: float, value: float | None, *, passed: bool | None) -> Verdict:
    """A limit from above, judged."""
    target, _, name = gate.rpartition(".")
    made: dict[str, Any] = {
        "gate": gate,
        "target": target,
        "metric": name,
        "side": "max",
        "limit": limit,
        "value": value,
    }
    if passed is None:
        made["reason"] = f"nothing measures {name!r} there"
    return Verdict(**made, finding=_FINDINGS[passed])


VERDICTS = (
    verdict("report.gguf@Q4_0.kl_divergence", 0.5, 0.9, passed=False),
    verdict("report.merged.kl_divergence", 0.5, 0.02, passed=True),
    verdict("report.merged.bits", 5, None, passed=None),
)


def page_of(sandbox: Sandbox, verdicts: Any = VERDICTS) -> Page:
    """The facts of the report's page, as a new process would find them."""
    project: Project = registry.open_log(sandbox.root)
    found = registry.receipt_of_target(project, "s:report")
    report = json.loads((project.store.object_path(found["digest"]) / "report.json").read_text())
    return collect(Book(project), found, report, verdicts)


def keys(sandbox: Sandbox, patch: pytest.MonkeyPatch) -> None:
    """Let this process use the sandbox's keys and pins."""
    patch.setenv("XDG_CONFIG_HOME", str(sandbox.home / "config"))
    patch.setenv("XDG_STATE_HOME", str(sandbox.home / "state"))


def _writable(path: Path) -> Path:
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def page_project(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """A project with everything that a page must mark, recorded once."""
    sandbox = Sandbox.make(tmp_path_factory.mktemp("page"))
    with pytest.MonkeyPatch.context() as patch:
        keys(sandbox, patch)
        told(sandbox)
    return sandbox


@pytest.fixture
def page_keys(page_project: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test use the keys of that project."""
    keys(page_project, monkeypatch)


@pytest.fixture(scope="session")
def page_facts(page_project: Sandbox) -> Page:
    """The facts of its report's page."""
    with pytest.MonkeyPatch.context() as patch:
        keys(page_project, patch)
        return page_of(page_project)


@pytest.fixture(scope="session")
def page_rendered(page_facts: Page) -> Rendered:
    """Its page and the charts of it, rendered once."""
    from ingot.view.page import document

    return document.report_page(page_facts)
