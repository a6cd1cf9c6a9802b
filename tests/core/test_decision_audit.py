"""audit: decisions that were signed with the key and are not true are found, each by a code of its own."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from decisionkit import fill, opened, own_keys, plan, report_spec
from ingot.core import plan as planner
from ingot.core.accept import accept
from ingot.core.key import key_of
from ingot.core.promotion import promote
from ingot.core.statement import decision_of, decision_statement
from projectkit import Sandbox
from recordkit import audited, codes, registry_of, store_of

Fields = dict[str, Any]
GATE = "  report.gguf.kl_divergence: {max: 0.5}\n"


@pytest.fixture(autouse=True)
def _keys(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    own_keys(sandbox, monkeypatch)
    yield
    planner._program_output.cache_clear()


@pytest.fixture
def accepted(sandbox: Sandbox) -> Fields:
    """A chain with an accepted result; the fields of the true entry."""
    report_spec(sandbox, GATE)
    fill(sandbox, "1", {"report.gguf": {"kl_divergence": 0.1}})
    report_spec(sandbox, GATE, word="two")
    project = opened(sandbox)
    accept(project, plan(project)["s:gguf"], None, "same bytes")
    project.save()
    assert codes(sandbox) == []
    return newest(sandbox, "accept")


@pytest.fixture
def promoted(sandbox: Sandbox) -> Fields:
    """A chain whose candidate is promoted; the fields of the true entry."""
    report_spec(sandbox, GATE)
    fill(sandbox, "1", {"report.gguf": {"kl_divergence": 0.1}, "gguf": {"bits": 4.0}})
    project = opened(sandbox)
    promote(project, [project.nodes["s:gguf"]], None, None)
    assert codes(sandbox) == []
    return newest(sandbox, "promote")


def newest(sandbox: Sandbox, kind: str) -> Fields:
    return decision_of([entry for entry in registry_of(sandbox).entries() if entry.type == kind][-1].statement)


def lie(sandbox: Sandbox, kind: str, fields: Fields) -> None:
    """Sign an entry with the user's key, as any program could."""
    rest = {name: value for name, value in fields.items() if name != "type"}
    registry_of(sandbox).append([decision_statement(kind, rest)])


def other_key(fields: Fields) -> None:
    fields["key"] = "7" * 64


def other_parts(fields: Fields) -> None:
    fields["key_parts"]["params"]["command"] = ["echo", "three"]


def other_inputs(fields: Fields) -> None:
    fields["inputs"]["model"]["digest"] = "8" * 64


def other_build(fields: Fields) -> None:
    fields["build"]["index"] += 1


def no_build(fields: Fields) -> None:
    fields["build"]["index"] = 999


def other_digest(fields: Fields) -> None:
    fields["digest"] = "9" * 64


def other_kind(fields: Fields) -> None:
    fields["key_parts"]["kind"] = "gguf"
    fields["key"] = key_of(fields["key_parts"])


def other_roles(fields: Fields) -> None:
    fields["key_parts"]["inputs"]["base"] = fields["key_parts"]["inputs"].pop("model")
    fields["inputs"]["base"] = fields["inputs"].pop("model")
    fields["key"] = key_of(fields["key_parts"])


def unbuilt_input(fields: Fields) -> None:
    fields["inputs"]["model"]["digest"] = "8" * 64
    fields["key_parts"]["inputs"]["model"] = "sha256:" + "8" * 64
    fields["key"] = key_of(fields["key_parts"])


ACCEPT_LIES: tuple[tuple[Callable[[Fields], None], set[str], str], ...] = (
    (other_key, {"key_differs"}, "its key parts have another key"),
    (other_parts, {"key_differs"}, "its key parts have another key"),
    (other_inputs, {"accept_differs", "lineage_broken"}, "its inputs are not those of its key parts"),
    (other_build, {"accept_differs"}, "did not build"),
    (no_build, {"accept_differs"}, "did not build"),
    (other_digest, {"accept_differs", "lineage_broken"}, "which no entry built"),
    (other_kind, {"accept_differs"}, "is of kind command, not gguf"),
    (other_roles, {"accept_differs"}, "was built from other roles"),
    (unbuilt_input, {"lineage_broken"}, "an input, 8888888888888888…, was built by no entry"),
)


@pytest.mark.fault("T5", "an accept entry signed with the key that is not true of its key, its inputs or its build")
@pytest.mark.parametrize(("change", "found", "words"), ACCEPT_LIES, ids=lambda item: getattr(item, "__name__", ""))
def test_a_false_acceptance_is_found(
    sandbox: Sandbox, accepted: Fields, change: Callable[[Fields], None], found: set[str], words: str
) -> None:
    fields = copy.deepcopy(accepted)
    change(fields)
    lie(sandbox, "accept", fields)
    assert set(codes(sandbox)) == found
    assert any(words in problem.detail for problem in audited(sandbox).problems)


@pytest.mark.parametrize("change", [other_build, no_build, other_digest, other_kind], ids=lambda item: item.__name__)
def test_an_acceptance_without_its_build_gives_no_result(
    sandbox: Sandbox, accepted: Fields, change: Callable[[Fields], None]
) -> None:
    """Nothing is fresh by an entry whose artifact cannot be shown to have been built so."""
    fields = copy.deepcopy(accepted)
    fields["key_parts"]["params"]["command"] = ["echo", "three"]
    change(fields)
    fields["key"] = key_of(fields["key_parts"])
    lie(sandbox, "accept", fields)
    report_spec(sandbox, GATE, word="three")
    assert plan(opened(sandbox))["s:gguf"].state == "stale"


def test_the_value_was_not_measured(sandbox: Sandbox, promoted: Fields) -> None:
    fields = copy.deepcopy(promoted)
    fields["gates"][0]["value"] = 0.2
    lie(sandbox, "promote", fields)
    assert problems(sandbox) == [
        "promote_differs: promote of s:gguf: gate report.gguf.kl_divergence: 0.2 is not what was measured"
    ]


def problems(sandbox: Sandbox) -> list[str]:
    return [f"{problem.code}: {problem.detail}" for problem in audited(sandbox).problems]


@pytest.mark.fault("T5", "a promote entry signed with the key although a gate that it lists fails")
@pytest.mark.parametrize("limit", [{"max": 0.05, "bound": "value"}, {"min": 0.2}, {"max": 0.5, "min": 0.2}])
def test_a_promotion_against_its_gate_is_found(sandbox: Sandbox, promoted: Fields, limit: Fields) -> None:
    fields = copy.deepcopy(promoted)
    fields["gates"][0]["limit"] = limit
    lie(sandbox, "promote", fields)
    (problem,) = problems(sandbox)
    assert problem.startswith("promote_differs: promote of s:gguf: gate report.gguf.kl_divergence fails at 0.1")


def test_a_measurement_that_no_entry_built(sandbox: Sandbox, promoted: Fields) -> None:
    fields = copy.deepcopy(promoted)
    fields["gates"][0]["measured"] = "6" * 64
    lie(sandbox, "promote", fields)
    (problem,) = problems(sandbox)
    assert "was judged from 6666666666666666…, which no entry built" in problem


@pytest.mark.fault("T5", "a rollback signed with the key to a result that was never promoted")
def test_a_rollback_past_the_gates_is_found(sandbox: Sandbox, promoted: Fields) -> None:
    base = str(opened(sandbox).index.latest["s:base"]["digest"])
    lie(sandbox, "rollback", promoted | {"digest": base})
    (problem,) = problems(sandbox)
    assert problem.startswith("rollback_differs: rollback of s:gguf goes to ")


@pytest.mark.fault("T5", "a decision signed with the key that lacks a field of its type")
@pytest.mark.parametrize("field", ["key", "key_parts", "inputs", "build", "reason"])
def test_an_acceptance_without_a_field_is_unreadable(sandbox: Sandbox, accepted: Fields, field: str) -> None:
    fields = {name: value for name, value in accepted.items() if name != field}
    lie(sandbox, "accept", fields)
    assert codes(sandbox) == ["entry_unreadable"]


@pytest.mark.parametrize(
    "gate",
    [
        {"gate": "report.gguf.kl_divergence", "limit": {}, "value": 1, "measured": "6" * 64},
        {"gate": "kl", "limit": {"max": 1}, "value": 1, "measured": "6" * 64},
        {"gate": "report.gguf.kl_divergence", "limit": {"max": 1}, "value": None, "measured": "6" * 64},
        {"gate": "report.gguf.kl_divergence", "limit": {"max": 1}, "value": 1, "measured": None},
        {"gate": "report.gguf.kl_divergence", "limit": {"max": "low"}, "value": 1, "measured": "6" * 64},
        "report.gguf.kl_divergence",
    ],
)
def test_a_promotion_of_another_form_is_unreadable(sandbox: Sandbox, promoted: Fields, gate: Any) -> None:
    lie(sandbox, "promote", promoted | {"gates": [gate]})
    assert codes(sandbox) == ["entry_unreadable"]
    lie(sandbox, "promote", {name: value for name, value in promoted.items() if name != "key"})
    assert codes(sandbox) == ["entry_unreadable"]


@pytest.mark.fault("T1", "a result in cache/results that is filed as accepted and that no entry accepted")
@pytest.mark.parametrize("how", ["another reason", "another key", "a place that accepts nothing", "under another key"])
def test_a_forged_acceptance_in_the_cache_is_found(sandbox: Sandbox, accepted: Fields, how: str) -> None:
    """``cache/results`` decides what is fresh."""
    path = sandbox.root / "cache" / "results" / f"{accepted['key']}.json"
    data = json.loads(path.read_bytes().partition(b"\n")[2])
    (item,) = data["builds"]
    forge(item, path, how)
    goal = path.with_name(f"{'7' * 64}.json") if how == "under another key" else path
    # As a program of this user would write it.
    goal.write_bytes(store_of(sandbox).seal.wrap(f"results/{goal.name}", json.dumps(data).encode()))
    assert codes(sandbox) == ["results_differ"]
    assert audited(sandbox).exit_code == 4


def forge(item: Fields, path: Path, how: str) -> None:
    assert path.is_file()
    if how == "another reason":
        item["accepted"]["reason"] = "because"
    elif how == "another key":
        item["key"] = "7" * 64
    elif how == "a place that accepts nothing":
        item["index"] = item["accepted"]["index"] = 0
