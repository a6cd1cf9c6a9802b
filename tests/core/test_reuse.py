"""What a build is offered to take over: results that may hold the same, and nothing where the answer is asked for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ingot.core import reuse
from ingot.core.executor import Listener, Outcome
from ingot.core.plan import tool_version
from ingot.core.stage import Done, Earlier
from ingot.core.worker import given_of, plain_done
from ingot.stages.gguf import Gguf
from ingot.stages.merge import Merge
from projectkit import Sandbox
from recordkit import codes, object_of, receipts, registry_of, writable
from virtualkit import Chains, Flowing


@dataclass
class Telling(Flowing):
    """Every kind tells of its tensors, and ``gguf`` of their blocks; ``jobs`` are those of ``gguf``."""

    jobs: list[Mapping[str, Any]] = field(default_factory=list)

    def run(self, job: Mapping[str, Any], log: Path, lock_fd: int, listener: Listener) -> Outcome:
        self.jobs += [job] if job["kind"] == "gguf" else []
        outcome = super().run(job, log, lock_fd, listener)
        for result in outcome.results:
            result["tensors"] = {"a": job["kind"]}
            result["blocks"] = {"type": job["params"]["type"]} if job["kind"] == "gguf" else {}
        return outcome

    def offered(self) -> list[str]:
        """What the newest job of ``gguf`` was offered, by the types of the files."""
        return [item["blocks"]["type"] for item in self.jobs[-1].get("earlier", ())]


def _other(name: str) -> str:
    return "0.0" if name == "llama-cpp-python" else tool_version(name)


@pytest.fixture
def told() -> Telling:
    return Telling()


@pytest.fixture
def chains(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, told: Telling) -> Chains:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(sandbox.home / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(sandbox.home / "state"))
    return Chains(sandbox, told)


def spec(*types: str, virtual: bool = False, word: str = "base") -> str:
    """base → merged → one target for each type, built one after the other."""
    never = ", virtual: true" if virtual else ""
    return (
        f"targets:\n  base: {{kind: command, command: [{word}]}}\n  adapter: {{kind: command, command: [a]}}\n"
        f"  merged: {{kind: merge, from: {{model: base, adapter: adapter}}{never}}}\n"
    ) + "".join(f"  {kind.lower()}: {{kind: gguf, from: {{model: merged}}, type: {kind}}}\n" for kind in types)


def test_earlier_results_are_offered_newest_first(chains: Chains, told: Telling) -> None:
    chains.sandbox.spec(spec("Q8_0", "Q4_0", "Q5_0"))
    chains.doit()
    assert [[item["blocks"]["type"] for item in job["earlier"]] for job in told.jobs] == [
        [], ["Q8_0"], ["Q4_0", "Q8_0"],
    ]  # fmt: skip
    newest = told.jobs[-1]["earlier"][0]
    assert newest["folder"] == str(object_of(chains.sandbox, "s:q4_0"))
    assert newest["tensors"] == {"a": "gguf"}
    assert told.jobs[-1]["tensors"] == {"model": {"a": "merge"}}
    given = given_of({**told.jobs[-1], "threads": 1})
    assert given.earlier[0] == Earlier(Path(newest["folder"]), {"a": "gguf"}, {"type": "Q4_0"})
    assert given.tensors == {"model": {"a": "merge"}}


def test_what_a_stage_tells_of_its_blocks_is_evidence(chains: Chains) -> None:
    chains.sandbox.spec(spec("Q8_0"))
    chains.doit()
    receipt = receipts(chains.sandbox)["s:q8_0"]
    assert registry_of(chains.sandbox).read_evidence(receipt["blocks_evidence"]) == b'{"type":"Q8_0"}'
    assert "blocks" not in receipt
    assert codes(chains.sandbox) == []
    assert plain_done(Done({}, blocks={"a": 1}))["blocks"] == {"a": 1}


def test_other_specs_offer_too_and_of_a_flow_the_folder_below_is_told(chains: Chains, told: Telling) -> None:
    chains.sandbox.spec(spec("Q8_0"))
    chains.doit()
    chains.sandbox.spec(spec("Q4_0", virtual=True, word="other"), name="t")
    chains.doit()
    assert told.offered() == ["Q8_0"]
    job = told.jobs[-1]
    assert "tensors" not in job, "what flows in is not a folder"
    assert job["virtual"]["model"]["tensors"] == {"model": {"a": "command"}}
    assert "earlier" not in job["virtual"]["model"]


def test_only_so_many_are_offered(chains: Chains, told: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "MOST", 2)
    chains.sandbox.spec(spec("Q8_0", "Q4_0", "Q4_1", "Q5_0"))
    chains.doit()
    assert told.offered() == ["Q4_1", "Q4_0"]


def test_another_version_of_a_tool_is_not_offered(
    chains: Chains, told: Telling, monkeypatch: pytest.MonkeyPatch
) -> None:
    chains.sandbox.spec(spec("Q8_0", "Q4_0"))
    chains.doit("s:base", "s:adapter", "s:merged", "s:q8_0")
    monkeypatch.setattr("ingot.core.plan.tool_version", _other)
    chains.doit("s:q4_0")
    assert told.offered() == []


def test_another_revision_is_not_offered(chains: Chains, told: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
    chains.sandbox.spec(spec("Q8_0", "Q4_0"))
    chains.doit("s:base", "s:adapter", "s:merged", "s:q8_0")
    monkeypatch.setattr(Gguf, "revision", 99)
    chains.sandbox.spec(spec("Q8_0", "Q4_0", "Q5_0"))
    chains.doit("s:q4_0")
    assert told.offered() == []


def test_what_is_not_here_is_not_offered(chains: Chains, told: Telling) -> None:
    chains.sandbox.spec(spec("Q8_0", "Q4_0", "Q5_0"))
    chains.doit("s:base", "s:adapter", "s:merged", "s:q8_0", "s:q4_0")
    folder = object_of(chains.sandbox, "s:q4_0")
    writable(folder.parent)
    writable(folder)
    shutil.rmtree(folder)
    chains.doit("s:q5_0")
    assert told.offered() == ["Q8_0"]


def test_evidence_that_was_changed_offers_nothing(chains: Chains, told: Telling) -> None:
    chains.sandbox.spec(spec("Q8_0", "Q4_0"))
    chains.doit("s:base", "s:adapter", "s:merged", "s:q8_0")
    digest = receipts(chains.sandbox)["s:q8_0"]["blocks_evidence"]
    (path,) = chains.sandbox.root.glob(f"registry/*/evidence/{digest}")
    writable(path).write_bytes(b'{"type":"Q8_1"}')
    chains.doit("s:q4_0")
    assert told.offered() == []
    assert "evidence_damaged" in codes(chains.sandbox)


def test_who_shows_what_comes_out_again_is_offered_nothing(chains: Chains, told: Telling) -> None:
    """Forced, forgotten or evicted: the digest is known, and a copy of the old blocks would prove nothing."""
    chains.sandbox.spec(spec("Q8_0", "Q4_0"))
    chains.doit()
    session = chains.session()
    session.begin(force=False, parallel=1, always=True)
    session.execute("s:q4_0")
    session.close()
    assert (len(told.jobs), "earlier" in told.jobs[-1]) == (3, False)
    assert receipts(chains.sandbox)["s:q4_0"]["observed"]["agrees"]
    chains.session().project.store.forget("s:q4_0")
    chains.doit("s:q4_0")
    assert (len(told.jobs), "earlier" in told.jobs[-1]) == (4, False)
    folder = object_of(chains.sandbox, "s:q4_0")
    writable(folder.parent)
    writable(folder)
    shutil.rmtree(folder)
    chains.doit("s:q4_0")
    assert (len(told.jobs), "earlier" in told.jobs[-1]) == (5, False)


def test_a_kind_that_takes_nothing_over_is_offered_nothing(
    chains: Chains, told: Telling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gguf, "reuses", False)
    assert not Merge.reuses
    chains.sandbox.spec(spec("Q8_0", "Q4_0"))
    chains.doit()
    assert "earlier" not in told.jobs[-1]
    assert "tensors" not in told.jobs[-1]
