"""``gc``: for what each artifact stays, as a policy says it; ``doit gc`` itself is in ``commands/test_gc.py``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from decisionkit import fill, opened, own_keys, report_spec
from ingot.core.gc import Policy, collect, sort
from ingot.core.statement import receipt_of
from projectkit import Sandbox
from recordkit import audited, registry_of


@pytest.fixture
def two(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """A chain that was built for two values of a parameter of its candidate."""
    own_keys(sandbox, monkeypatch)
    for word in ("one", "two"):
        report_spec(sandbox, "", word=word)
        fill(sandbox, word, {"report.gguf": {"kl_divergence": 0.1}})
    return sandbox


def kept(sandbox: Sandbox, policy: Policy, now: float | None = None) -> Mapping[str, list[tuple[str, ...]]]:
    """For what the artifacts of each target stay; those that go have no reason."""
    found, told = sort(opened(sandbox), policy, now), dict[str, list[tuple[str, ...]]]()
    for item in (*found.kept, *found.evicted):
        for target in item.targets:
            told.setdefault(target, []).append(item.kept)
    return told


def test_inputs_of_the_newest_stay_unless_they_are_dropped(two: Sandbox) -> None:
    everything = kept(two, Policy())
    assert all(reasons for listed in everything.values() for reasons in listed)
    assert any("input of one of the newest" in reasons for reasons in everything["s:base"])
    dropped = kept(two, Policy(drop=("s:ba*",)))
    assert dropped["s:base"] == [()]
    assert all(reasons for name, listed in dropped.items() if name != "s:base" for reasons in listed)


def test_what_only_its_age_keeps_is_counted(two: Sandbox) -> None:
    first = next(
        receipt_of(entry.statement)["digest"]
        for entry in registry_of(two).entries()
        if entry.type == "build" and entry.statement["subject"][0]["name"] == "s:gguf"
    )
    found = sort(opened(two), Policy())
    assert found.newest >= sum(item.bytes for item in found.kept if item.digest == first) > 0
    assert sort(opened(two), Policy(newest=0)).newest == 0
    assert first in {item.digest for item in sort(opened(two), Policy(newest=0)).evicted}


@pytest.mark.parametrize("days", [1, 400_000, 700_000, 10**6, 1e300])
def test_days_reach_back_as_far_as_they_say(two: Sandbox, days: float) -> None:
    policy = Policy(newest=0, days=days)
    assert all(reasons for listed in kept(two, policy).values() for reasons in listed)
    later = datetime.now(UTC).timestamp() + 2 * 24 * 3600
    gone = [reasons for listed in kept(two, policy, later).values() for reasons in listed if not reasons]
    assert bool(gone) == (days == 1)


def test_an_audit_counts_what_was_evicted(two: Sandbox) -> None:
    gone = collect(opened(two), Policy(newest=0)).evicted
    found = audited(two)
    assert {where.rpartition("/")[2] for where in found.evicted} == {item.digest for item in gone}
    assert found.absent == len(gone) > 0


def test_what_was_accepted_or_is_named_stays(two: Sandbox) -> None:
    report_spec(two, "", word="three")
    two.ok("accept", "s:gguf", "--reason", "as good")
    dropped = kept(two, Policy(newest=0, drop=("s",)))
    assert [reasons for reasons in dropped["s:gguf"] if reasons] == [("accepted",)]
    assert not any(reasons for name, listed in dropped.items() if name != "s:gguf" for reasons in listed)
    digest = sort(opened(two), Policy(newest=0, drop=("s",))).evicted[0].digest
    named = sort(opened(two), Policy(newest=0, keep=(digest[:8], "s:da*"), drop=("s",))).kept
    assert {item.kept for item in named if item.digest == digest or "s:data" in item.targets} == {("named",)}
