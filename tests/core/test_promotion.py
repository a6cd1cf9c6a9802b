"""promote and rollback: what becomes active, what is refused, and what the logs say afterwards."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from decisionkit import active, clone, fill, last_good, merge, opened, own_keys, report_spec, size
from ingot.core import promotion
from ingot.core.key import NOT_INSTALLED
from ingot.core.project import Project
from ingot.core.promotion import promote, rollback
from ingot.core.standing import Decision, Standing, stacked
from ingot.core.statement import decision_statement
from ingot.core.store import Store
from ingot.errors import GateFailed, IngotError, StoreDamaged, UsageError
from projectkit import Sandbox
from recordkit import store_of, writable

GATE = "  report.gguf.kl_divergence: {max: 0.5}\n"
GOOD, BAD = {"report.gguf": {"kl_divergence": 0.1}}, {"report.gguf": {"kl_divergence": 0.9}}


@pytest.fixture(autouse=True)
def _keys(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    own_keys(sandbox, monkeypatch)


@pytest.fixture
def reported(sandbox: Sandbox) -> Sandbox:
    """A chain with a report whose gate passes."""
    report_spec(sandbox, GATE)
    fill(sandbox, "1", GOOD)
    return sandbox


def put(sandbox: Sandbox, *names: str, digest: str | None = None, reason: str | None = None) -> int:
    """Promote targets; how many entries that took."""
    project = opened(sandbox)
    nodes = [node for node in project.nodes.values() if node.id in names or (not names and not node.hidden)]
    return sum(step.recorded is not None for step in promote(project, nodes, digest, reason))


def back(sandbox: Sandbox, name: str, to: str | None = None) -> list[str]:
    """Roll back; the targets that went back."""
    return [step.target for step in rollback(opened(sandbox), name, to, None).steps]


def refused(sandbox: Sandbox, error: type[IngotError], *names: str, digest: str | None = None) -> IngotError:
    """Promote what must be refused: nothing is appended and nothing becomes active."""
    before, was = size(sandbox), {name: active(sandbox, name) for name in names}
    with pytest.raises(error) as caught:
        put(sandbox, *names, digest=digest)
    assert size(sandbox) == before
    assert {name: active(sandbox, name) for name in names} == was
    return caught.value


def rebuilt(sandbox: Sandbox, word: str, metrics: dict[str, dict[str, float]], gates: str = GATE) -> str:
    """Change the candidate's parameter and build; its new digest."""
    report_spec(sandbox, gates, word=word)
    return fill(sandbox, word, metrics)["s:gguf"]


# --- promote -------------------------------------------------------------------------------------------------


def test_a_spec_is_one_commit_of_all_its_visible_targets(reported: Sandbox) -> None:
    assert put(reported, reason="first") == 4
    entries = [entry for entry in opened(reported).registry.entries() if entry.type == "promote"]
    assert [entry.statement["subject"][0]["name"] for entry in entries] == ["s:base", "s:data", "s:gguf", "s:report"]
    assert len({entry.time for entry in entries}) == 1
    gguf = entries[2].statement["predicate"]
    measured = str(opened(reported).index.latest["s:report.gguf"]["digest"])
    judged = {
        "gate": "report.gguf.kl_divergence",
        "limit": {"max": 0.5, "bound": "value"},
        "value": 0.1,
        "measured": measured,
    }
    assert gguf["gates"] == [judged]
    assert (gguf["replaces"], gguf["reason"], gguf["spec"]) == (None, "first", "s")


def test_what_is_active_already_gets_no_entry(reported: Sandbox) -> None:
    assert put(reported) == 4
    before = size(reported)
    assert put(reported) == 0
    assert size(reported) == before
    rebuilt(reported, "two", GOOD)
    assert put(reported) == 2, "base and data are as they were"


def test_two_that_promote_at_once_leave_one_entry(reported: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is done while this one reads the bytes."""
    read = promotion.require_whole

    def meanwhile(project: Project, target: str, receipt: Mapping[str, Any]) -> None:
        monkeypatch.setattr(promotion, "require_whole", read)
        read(project, target, receipt)
        assert put(reported, target) == 1

    monkeypatch.setattr(promotion, "require_whole", meanwhile)
    assert put(reported, "s:gguf") == 0
    assert [entry.type for entry in opened(reported).registry.entries()].count("promote") == 1


def test_a_failing_gate_stops_the_candidate_and_the_report(reported: Sandbox) -> None:
    rebuilt(reported, "two", BAD)
    for name in ("s:gguf", "s:report"):
        error = refused(reported, GateFailed, name)
        assert error.code == "E-GATE"
        assert error.exit_code == 1
        assert error.facts == ("report.gguf.kl_divergence ≤ 0.5: FAIL at 0.9",)
    assert put(reported, "s:base") == 1, "no gate concerns the reference"


def test_a_whole_spec_is_refused_when_one_target_is(reported: Sandbox) -> None:
    rebuilt(reported, "two", BAD)
    refused(reported, GateFailed, "s:base", "s:data", "s:gguf", "s:report")


def test_a_gate_that_was_not_measured_is_not_known(reported: Sandbox) -> None:
    report_spec(reported, "  report.gguf.top1_agreement: {min: 0.5}\n")
    error = refused(reported, GateFailed, "s:gguf")
    assert error.code == "E-GATE-UNKNOWN"
    assert "nothing measures 'top1_agreement' there" in error.facts[0]


def test_a_measurement_that_is_not_up_to_date_answers_nothing(reported: Sandbox) -> None:
    text = (reported.root / "specs/s.yaml").read_text()
    reported.spec(text.replace("candidates: [gguf]}", "candidates: [gguf]}, documents: 9"))
    error = refused(reported, GateFailed, "s:gguf")
    assert error.code == "E-GATE-UNKNOWN"
    assert "s:report.gguf is waiting" in error.facts[0]


def test_a_measurement_counts_though_its_own_bytes_are_gone(reported: Sandbox) -> None:
    """Its metrics are in the log."""
    for target in ("s:report.gguf", "s:report"):
        shutil.rmtree(writable(Store(reported.root / "cache").object_path(active_digest(reported, target))))
    assert put(reported, "s:gguf") == 1


def test_gates_are_judged_from_the_measurement_of_the_digest_that_is_named(reported: Sandbox) -> None:
    """Neither the newest measurement's failure nor its success counts for other bytes."""
    first = active_digest(reported, "s:gguf")
    second = rebuilt(reported, "two", BAD)
    assert put(reported, "s:gguf", digest=first[:12]) == 1
    assert active(reported, "s:gguf") == first
    rebuilt(reported, "three", GOOD)
    assert refused(reported, GateFailed, "s:gguf", digest=second).code == "E-GATE"


def active_digest(sandbox: Sandbox, target: str) -> str:
    return str(opened(sandbox).index.latest[target]["digest"])


def test_an_earlier_result_that_was_never_measured_is_not_known(reported: Sandbox) -> None:
    report_spec(reported, GATE, word="two")
    second = fill(reported, "two", only="s:gguf")["s:gguf"]
    rebuilt(reported, "three", GOOD)
    error = refused(reported, GateFailed, "s:gguf", digest=second)
    assert error.code == "E-GATE-UNKNOWN"
    assert f"s:report.gguf has no measurement of {second[:12]}" in error.facts[0]


def test_an_own_gate_and_a_gate_of_the_whole_report_concern_a_target(reported: Sandbox) -> None:
    metrics = {**GOOD, "gguf": {"bytes": 9.0}, "report": {"worst_kl_divergence": 0.7}}
    rebuilt(reported, "two", metrics, "  gguf.bytes: {max: 8}\n")
    assert refused(reported, GateFailed, "s:gguf").facts == ("gguf.bytes ≤ 8: FAIL at 9",)
    report_spec(reported, "  report.worst_kl_divergence: {max: 0.6}\n", word="two")
    assert refused(reported, GateFailed, "s:gguf").facts == ("report.worst_kl_divergence ≤ 0.6: FAIL at 0.7",)


def test_what_is_not_up_to_date_or_never_built_is_refused(reported: Sandbox) -> None:
    put(reported, "s:gguf")
    report_spec(reported, GATE, word="two")
    error = refused(reported, UsageError, "s:gguf")
    assert error.code == "E-STALE"
    assert "one → two" in error.facts[0]
    assert f"--digest {active(reported, 's:gguf')}"[:21] in str(error.hint)
    assert error.what == "nothing was promoted: s:gguf is not up to date"
    reported.spec(
        "targets:\n  new: {kind: command, command: [echo, x]}\n  two: {kind: command, command: [echo, y]}\n", name="n"
    )
    error = refused(reported, UsageError, "n:new")
    assert (error.code, error.what) == ("E-NOT-BUILT", "nothing was promoted: n:new was never built")
    assert refused(reported, UsageError, "n:new", "n:two").what == "nothing was promoted: n:new, n:two were never built"


def test_an_earlier_result_that_fits_again_must_be_taken_up_first(reported: Sandbox) -> None:
    first = active_digest(reported, "s:gguf")
    rebuilt(reported, "two", GOOD)
    report_spec(reported, GATE)
    assert refused(reported, UsageError, "s:gguf").code == "E-STALE"
    fill(reported)
    assert put(reported, "s:gguf") == 1
    assert active(reported, "s:gguf") == first


@pytest.mark.parametrize("digest", ["1234", "f" * 64, "zz" * 32, ""])
def test_a_digest_that_is_no_result_of_the_target_is_refused(reported: Sandbox, digest: str) -> None:
    assert refused(reported, UsageError, "s:gguf", digest=digest).code == "E-DIGEST"


def test_missing_and_damaged_bytes_are_refused(reported: Sandbox) -> None:
    path = Store(reported.root / "cache").object_path(active_digest(reported, "s:gguf"))
    for code in ("E-OBJECT-DAMAGED", "E-OBJECT-MISSING"):
        writable(path / "out.txt").write_text("other") if code.endswith("DAMAGED") else shutil.rmtree(writable(path))
        for digest in (None, path.name):
            error = refused(reported, StoreDamaged, "s:gguf", digest=digest)
            assert (error.code, error.exit_code) == (code, 4)


def test_evicted_bytes_are_refused_with_the_way_back(reported: Sandbox) -> None:
    first = active_digest(reported, "s:gguf")
    second = rebuilt(reported, "two", GOOD)
    store = Store(reported.root / "cache")
    for digest in (first, second):
        store.evict(digest)
    error = refused(reported, StoreDamaged, "s:gguf", digest=first)
    assert (error.code, "built again when the spec turns back to it" in str(error.hint)) == ("E-OBJECT-MISSING", True)
    error = refused(reported, StoreDamaged, "s:gguf", digest=second)
    assert "doit materialize s:gguf writes it again" in str(error.hint)


def test_where_tools_are_not_installed_a_recorded_result_is_promoted_by_its_digest(
    reported: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clone without the heavy packages: what needs them looks stale, and the log has what was measured."""
    monkeypatch.setattr("ingot.core.plan.tool_version", lambda _name: NOT_INSTALLED)
    error = refused(reported, GateFailed, "s:gguf")
    assert error.code == "E-GATE-UNKNOWN"
    assert "--digest" in str(error.hint)
    assert put(reported, "s:gguf", digest=active_digest(reported, "s:gguf")) == 1


@pytest.mark.fault("B3", "a byte of an artifact changes under an unchanged stat before it is promoted")
def test_damaged_bytes_are_refused_though_their_stat_is_unchanged(reported: Sandbox) -> None:
    """Only reading proves: the cache of stats would say that the file is as it was."""
    digest = active_digest(reported, "s:gguf")
    path = writable(Store(reported.root / "cache").object_path(digest) / "out.txt")
    fill(reported)  # reads it once, and remembers its stat
    rot(reported, path)
    assert opened(reported).store.presence(digest, files_of(reported, digest))[0] == "present"
    error = refused(reported, StoreDamaged, "s:gguf")
    assert (error.code, error.exit_code) == ("E-OBJECT-DAMAGED", 4)
    assert error.facts == ("out.txt has other content",)


def rot(sandbox: Sandbox, path: Path) -> None:
    """Change a byte and let the cache of stats believe that it was there when the file was read."""
    data = path.read_bytes()
    path.write_bytes(b"X" + data[1:])
    store = store_of(sandbox)
    name = f"objects/{path.parent.name}/{path.name}"
    record = next(file for file in files_of(sandbox, path.parent.name) if file["path"] == path.name)
    store.stats.put(name, os.lstat(path), str(record["xxh3_128"]), settled=True)
    store.stats.save()


def files_of(sandbox: Sandbox, digest: str) -> list[dict[str, object]]:
    (build, *_more) = Standing(opened(sandbox)).lookup.builds_of(digest)
    return list(build["files"])


# --- rollback ------------------------------------------------------------------------------------------------


def test_rollback_is_an_undo_stack(reported: Sandbox) -> None:
    one = active_digest(reported, "s:gguf")
    put(reported, "s:gguf")
    two = rebuilt(reported, "two", GOOD)
    put(reported, "s:gguf")
    three = rebuilt(reported, "three", GOOD)
    put(reported, "s:gguf")
    assert active(reported, "s:gguf") == three
    back(reported, "s:gguf")
    assert active(reported, "s:gguf") == two
    back(reported, "s:gguf")
    assert active(reported, "s:gguf") == one
    with pytest.raises(UsageError) as caught:
        back(reported, "s:gguf")
    assert caught.value.code == "E-NO-EARLIER"
    assert str(caught.value.hint).startswith("doit promote s:")
    put(reported, "s:gguf")
    back(reported, "s:gguf")
    assert active(reported, "s:gguf") == one, "what was rolled back does not come again by a rollback"


def test_rollback_of_a_spec_takes_back_its_newest_promotion_only(reported: Sandbox) -> None:
    """Targets that the newest promotion left as they were stay as they are."""
    base = active_digest(reported, "s:base")
    one = active_digest(reported, "s:gguf")
    put(reported)
    two = rebuilt(reported, "two", GOOD)
    put(reported)
    assert back(reported, "s") == ["s:gguf", "s:report"]
    assert (active(reported, "s:gguf"), active(reported, "s:base")) == (one, base)
    put(reported, "s:gguf")
    put(reported, "s:report")
    assert back(reported, "s") == ["s:report"], "two commands are two promotions"
    assert active(reported, "s:gguf") == two


def test_a_target_without_an_earlier_digest_stays(reported: Sandbox) -> None:
    put(reported, "s:report")
    rebuilt(reported, "two", GOOD)
    put(reported, "s:gguf", "s:report")
    done = rollback(opened(reported), "s", None, "slow")
    assert [step.target for step in done.steps] == ["s:report"]
    assert [item.target for item in done.stayed] == ["s:gguf"]


def test_to_goes_back_to_what_was_active_and_nowhere_else(reported: Sandbox) -> None:
    found = []
    for word in ("one", "two", "three"):
        found.append(rebuilt(reported, word, GOOD))
        put(reported, "s:gguf")
    other = rebuilt(reported, "four", GOOD)
    for to in (other, found[2], "12", ""):
        with pytest.raises(UsageError) as caught:
            back(reported, "s:gguf", to)
        assert caught.value.code == "E-DIGEST"
    back(reported, "s:gguf", found[0][:8])
    assert active(reported, "s:gguf") == found[0]
    put(reported, "s:report")
    with pytest.raises(UsageError, match="names a digest of one target"):
        back(reported, "s", found[0])


def test_nothing_was_promoted(reported: Sandbox) -> None:
    with pytest.raises(UsageError) as caught:
        back(reported, "s:gguf")
    assert caught.value.code == "E-NOT-ACTIVE"


def test_rollback_to_what_no_log_built_is_refused(reported: Sandbox) -> None:
    """As after a log was lost: audit says so, and nothing becomes active that nobody knows."""
    fields: dict[str, Any] = {"target": "s:gguf", "digest": "9" * 64, "key": "7" * 64, "spec": "s"}
    fields |= {"replaces": None, "gates": []}
    opened(reported).record(decision_statement("promote", fields))
    put(reported, "s:gguf")
    with pytest.raises(UsageError) as caught:
        back(reported, "s:gguf")
    assert caught.value.code == "E-NOT-BUILT"


def test_rollback_verifies_bytes_and_needs_no_spec(reported: Sandbox) -> None:
    one = active_digest(reported, "s:gguf")
    put(reported, "s:gguf")
    rebuilt(reported, "two", GOOD)
    put(reported, "s:gguf")
    writable(Store(reported.root / "cache").object_path(one) / "out.txt").write_text("other")
    before = size(reported)
    with pytest.raises(StoreDamaged):
        back(reported, "s:gguf")
    assert size(reported) == before


# --- what the logs say ---------------------------------------------------------------------------------------


def test_last_good_leaves_out_what_failed_a_gate(reported: Sandbox) -> None:
    project = opened(reported)
    first = {name: str(place["digest"]) for name, place in project.index.latest.items()}
    second = rebuilt(reported, "two", BAD)
    assert last_good(reported, "s:gguf") == second, "nothing has failed until a gate is judged"
    judged(reported)
    for target in ("s:gguf", "s:report", "s:report.gguf"):
        assert last_good(reported, target) == first[target]
    assert last_good(reported, "s:base") == first["s:base"]
    # The limit is raised, and the result promoted: its gates were judged anew.
    report_spec(reported, "  report.gguf.kl_divergence: {max: 1}\n", word="two")
    assert last_good(reported, "s:gguf") == first["s:gguf"]
    put(reported, "s:gguf")
    assert last_good(reported, "s:gguf") == second
    assert last_good(reported, "s:report") == first["s:report"]


def judged(sandbox: Sandbox) -> None:
    """Judge the report's gates as ``doit`` does, and record the failures."""
    project = opened(sandbox)
    project.plan(project.nodes.values())
    node = project.nodes["s:report"]
    project.record_failures(node, project.judge(node))


def test_every_result_failed(sandbox: Sandbox) -> None:
    report_spec(sandbox, GATE)
    fill(sandbox, "1", BAD)
    judged(sandbox)
    assert last_good(sandbox, "s:gguf") is None


def test_logs_are_merged_in_one_order(reported: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two users promote different results; both clones, and a fresh one, then say the same."""
    put(reported, "s:gguf")
    other = clone(reported, tmp_path / "other")
    mine = rebuilt(reported, "mine", GOOD)
    put(reported, "s:gguf")
    own_keys(other, monkeypatch)
    theirs = rebuilt(other, "theirs", GOOD)
    put(other, "s:gguf")
    merge(other, reported)
    merge(reported, other)
    assert active(reported, "s:gguf") == active(other, "s:gguf") == theirs, "the newest decision"
    back(other, "s:gguf")
    assert active(other, "s:gguf") == mine, "the one before it, of the other log"


def test_a_clock_that_was_set_back_does_not_reorder_the_logs(
    reported: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a log says counts from the latest time that it has seen, as the registry merges entries."""
    put(reported, "s:gguf")
    other = clone(reported, tmp_path / "other")
    mine = rebuilt(reported, "two", GOOD)
    monkeypatch.setattr(promotion, "now", lambda: "2001-01-01T00:00:00.000000Z")
    put(reported, "s:gguf")
    assert active(reported, "s:gguf") == mine
    own_keys(other, monkeypatch)
    monkeypatch.setattr(promotion, "now", lambda: "2010-01-01T00:00:00.000000Z")
    put(other, "s:base")
    put(other, "s:data")
    merge(reported, other)
    entries = list(opened(reported).registry.entries())
    lookup = Standing(opened(reported)).lookup
    assert sorted(entries, key=lookup.order) == entries
    assert lookup.decisions("promote") == [entry for entry in entries if entry.type == "promote"]
    assert [entry.time[:4] for entry in entries if entry.type == "promote"][1:] == ["2001", "2010", "2010"]


def decision(kind: str, digest: str, number: int = 0) -> Decision:
    return Decision(kind, "s:a", digest, "k", f"t{number}", "o", number, ("", "o", number))


def test_the_stack_follows_a_small_model() -> None:
    """Against lists: promote appends, rollback cuts, and the last decision always names what is active."""
    source = random.Random(7)
    for _ in range(300):
        model: list[str] = []
        made: list[Decision] = []
        for number in range(source.randrange(1, 12)):
            if len(model) > 1 and source.random() < 0.4:
                del model[source.randrange(1, len(model)) :]
                made.append(decision("rollback", model[-1], number))
            else:
                # What lies deeper in the stack is left out: two levels of one digest are a case of their own.
                digest = source.choice([each for each in "ABCDEF" if each not in model[:-1]])
                made.append(decision("promote", digest, number))
                model += [digest] if model[-1:] != [digest] else []
            stack = [level.digest for level in stacked(made)]
            assert stack[-1] == made[-1].digest
        if len(set(model)) == len(model):
            assert stack == model


def test_a_rollback_goes_to_the_upper_one_of_two_levels_of_a_digest() -> None:
    made = [decision("promote", digest, number) for number, digest in enumerate("ABAC")]
    assert [level.digest for level in stacked([*made, decision("rollback", "A", 9)])] == ["A", "B", "A"]


def test_a_rollback_to_what_no_log_promoted_is_active_all_the_same() -> None:
    stack = stacked([decision("promote", "A"), decision("rollback", "Z", 1)])
    assert [level.digest for level in stack] == ["A", "Z"]
