"""Virtual targets: what flows, what is copied, what is recorded of it, and that nobody could tell from the results."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ingot.core import staging
from ingot.core.forecast import forecast
from ingot.core.key import by_key, forms_of, key_of
from ingot.core.plan import Planned
from ingot.core.project import Project
from ingot.errors import GateFailed, IngotError, StageFailed, StoreDamaged, UsageError
from ingot.stages.gguf import Gguf
from ingot.stages.prune import Prune
from projectkit import Sandbox
from recordkit import append, audited, codes, object_of, receipts, store_of, writable
from virtualkit import Chains, chain

THREE = ("Q8_0", "Q4_0", "F16")
REPORT = "  report: {kind: report, from: {reference: base, candidates: [pruned, gguf], data: base}}\n"


@pytest.fixture
def chains(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Chains:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(sandbox.home / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(sandbox.home / "state"))
    monkeypatch.setattr(Prune, "weightwise", lambda self: self.method == "magnitude")
    monkeypatch.setattr(Prune, "streams", ("model",))
    monkeypatch.setattr(Gguf, "streams", ("model",))
    monkeypatch.setattr(Gguf, "one_pass", True)
    return Chains(sandbox)


def planned(chains: Chains) -> dict[str, Planned]:
    project = Project.open(chains.sandbox.root)
    return {item.node.name: item for item in project.plan(project.nodes.values()).values()}


def told(item: Planned) -> list[str]:
    return [reason.detail for reason in item.reasons]


def digests(sandbox: Sandbox) -> dict[str, str]:
    return {name: str(receipt["digest"]) for name, receipt in receipts(sandbox).items()}


# --- streamed -------------------------------------------------------------------------------------------------------


def test_a_plan_says_what_flows_into_what(chains: Chains) -> None:
    chains.sandbox.spec(chain(types=THREE[:2]))
    plan = planned(chains)
    assert told(plan["merged"]) == ["waits for base, adapter", "streamed into gguf@Q8_0, gguf@Q4_0"]
    assert told(plan["pruned"]) == ["waits for merged", "streamed into gguf@Q8_0, gguf@Q4_0"]
    assert plan["gguf@Q8_0"].state == "waiting"
    chains.doit("s:base", "s:adapter")
    plan = planned(chains)
    assert told(plan["merged"]) == ["streamed into gguf@Q8_0, gguf@Q4_0"]
    assert plan["gguf@Q8_0"].state == "stale", "its key is known by that of what flows in"
    chains.doit()
    plan = planned(chains)
    assert {item.state for item in plan.values()} == {"fresh", "virtual"}
    assert told(plan["pruned"]) == ["nothing that is to be built needs it"]
    assert plan["pruned"].digest == receipts(chains.sandbox)["s:pruned"]["digest"]


def test_what_flows_is_measured_recorded_and_not_written(chains: Chains) -> None:
    chains.sandbox.spec(chain())
    session = chains.doit()
    assert chains.ran() == [("command", 1, ()), ("command", 1, ()), ("gguf", 1, ("merge", "prune"))]
    fates = {name.partition(":")[2]: built.fate for name, built in session.outcomes.items()}
    assert (fates["merged"], fates["pruned"], fates["gguf@Q8_0"]) == ("streamed", "streamed", "built")
    found = receipts(chains.sandbox)
    names = [entry["target"] for entry in chains.sandbox.entries("build")]
    assert names == ["s:base", "s:adapter", "s:merged", "s:pruned", "s:gguf@Q8_0"], "inputs come first"
    merged, pruned, gguf = (found[f"s:{name}"] for name in ("merged", "pruned", "gguf@Q8_0"))
    assert merged["stored"] is pruned["stored"] is False
    assert merged["shared_with"] == ["s:gguf@Q8_0"]
    assert "shared_with" not in gguf, "its time is its own"
    assert "stored" not in gguf
    assert merged["metrics"]["weight_bytes"]["value"] == merged["files"][0]["size"]
    store = store_of(chains.sandbox)
    assert not store.object_path(merged["digest"]).exists()
    assert not (store.root / "latest" / "s" / "merged").is_symlink()


def test_keys_take_the_form_that_all_keys_have_and_are_filed_under_both(chains: Chains) -> None:
    chains.sandbox.spec(chain())
    chains.doit("s:base", "s:adapter")
    before = {name: item.key for name, item in planned(chains).items()}
    assert planned(chains)["gguf@Q8_0"].parts["inputs"] == {"model": by_key(str(before["pruned"]))}  # type: ignore[index]
    chains.doit()
    found = receipts(chains.sandbox)
    for name in ("merged", "pruned", "gguf@Q8_0"):
        receipt = found[f"s:{name}"]
        assert receipt["key"] == key_of(receipt["key_parts"])
        assert forms_of(receipt)[-1] == before[name]
        assert "key:" not in str(receipt["key_parts"])
        for key in forms_of(receipt):
            assert [build["digest"] for build in store_of(chains.sandbox).read_result(key)] == [receipt["digest"]]
    assert found["s:gguf@Q8_0"]["streamed"] == {"model": before["pruned"]}


def test_why_looks_at_what_a_virtual_target_flows_into(chains: Chains) -> None:
    """Asked for by its own name, with nothing else to be planned."""
    chains.sandbox.spec(chain(pruned=False))
    chains.doit("s:base", "s:adapter")
    assert chains.sandbox.ok("why", "s:merged").strip() == "s:merged is virtual: streamed into pruned"
    chains.doit()
    why = chains.sandbox.ok("why", "s:merged").splitlines()[0]
    assert why == "s:merged is virtual: nothing that is to be built needs it"


def test_a_chain_has_the_bytes_of_its_materialized_twin(chains: Chains, tmp_path: Path) -> None:
    chains.sandbox.spec(chain(types=THREE))
    chains.doit()
    twin = Chains(Sandbox.make(tmp_path / "twin", home=chains.sandbox.home))
    twin.sandbox.spec(chain(types=THREE, merged=False, pruned=False))
    twin.doit()
    assert digests(twin.sandbox) == digests(chains.sandbox)
    keys = [{name: it["key"] for name, it in receipts(each).items()} for each in (twin.sandbox, chains.sandbox)]
    assert keys[0] == keys[1]


def test_switching_virtual_off_writes_the_target_and_nothing_else(chains: Chains) -> None:
    chains.sandbox.spec(chain())
    chains.doit()
    chains.ran()
    before = digests(chains.sandbox)
    chains.sandbox.spec(chain(merged=False))
    assert told(planned(chains)["merged"]) == ["never written: it was virtual until now"]
    assert planned(chains)["gguf@Q8_0"].state == "fresh"
    why = chains.sandbox.ok("why", "s:merged").splitlines()[0]
    assert why == "s:merged is stale: never written: it was virtual until now"
    chains.doit()
    assert chains.ran() == [("merge", 1, ())]
    assert digests(chains.sandbox) == before
    assert receipts(chains.sandbox)["s:merged"]["observed"] == {"digest": before["s:merged"], "agrees": True}
    assert object_of(chains.sandbox, "s:merged").is_dir()


def test_switching_virtual_on_rebuilds_nothing_and_reads_what_is_there(chains: Chains) -> None:
    chains.sandbox.spec(chain(merged=False, pruned=False))
    chains.doit()
    chains.ran()
    entries = len(chains.sandbox.entries())
    chains.sandbox.spec(chain())
    chains.doit()
    assert chains.ran() == []
    assert len(chains.sandbox.entries()) == entries
    assert set(chains.states().values()) == {"fresh"}
    chains.sandbox.spec(chain(types=THREE[1:2]))
    chains.doit()
    assert chains.ran() == [("gguf", 1, ())], "it reads the folder"


def test_what_was_streamed_before_is_known_by_its_digest(chains: Chains) -> None:
    chains.sandbox.spec(chain())
    chains.doit()
    chains.ran()
    before = receipts(chains.sandbox)
    chains.sandbox.spec(chain(types=THREE[:2]))
    plan = planned(chains)
    assert plan["gguf@Q4_0"].parts["inputs"] == {"model": f"sha256:{before['s:pruned']['digest']}"}  # type: ignore[index]
    builds = len(chains.sandbox.entries("build"))
    chains.doit()
    assert chains.ran() == [("gguf", 1, ("merge", "prune"))]
    assert len(chains.sandbox.entries("build")) == builds + 1, "what flowed by again was no news"
    assert forms_of(receipts(chains.sandbox)["s:gguf@Q4_0"])[0] == plan["gguf@Q4_0"].key
    assert codes(chains.sandbox) == []


def test_going_back_finds_virtual_results_again(chains: Chains) -> None:
    chains.sandbox.spec(chain())
    chains.doit()
    chains.sandbox.spec(chain(adapter="b"))
    chains.doit()
    chains.ran()
    chains.sandbox.spec(chain())
    before = len(chains.sandbox.entries())
    session = chains.doit()
    assert chains.ran() == []
    again = [(entry["type"], entry["target"]) for entry in chains.sandbox.entries()[before:]]
    assert again == [("selected", f"s:{name}") for name in ("adapter", "merged", "pruned", "gguf@Q8_0")]
    assert session.outcomes["s:merged"].fate == "restored"
    chains.doit()
    assert len(chains.sandbox.entries()) == before + 4


def test_other_bytes_than_before_are_a_new_entry_and_give_consumers_other_keys(chains: Chains) -> None:
    chains.sandbox.spec(chain())
    chains.doit()
    before = receipts(chains.sandbox)
    chains.executor.other = {"merge": "by another machine"}
    chains.sandbox.spec(chain(types=THREE[1:2]))
    chains.doit()
    after = receipts(chains.sandbox)
    assert after["s:merged"]["observed"] == {"digest": before["s:merged"]["digest"], "agrees": False}
    pruned, gguf = after["s:pruned"], after["s:gguf@Q4_0"]
    assert pruned["inputs"]["model"]["digest"] == after["s:merged"]["digest"] != before["s:merged"]["digest"]
    assert gguf["key_parts"]["inputs"] == {"model": f"sha256:{pruned['digest']}"}
    assert codes(chains.sandbox) == []
    chains.ran()
    chains.doit()
    assert chains.ran() == []


def test_a_stage_that_measures_nothing_of_what_flowed_publishes_nothing(chains: Chains) -> None:
    chains.sandbox.spec(chain())
    chains.executor.careless = ("gguf",)
    with pytest.raises(StageFailed, match="nothing was measured") as caught:
        chains.doit()
    assert caught.value.code == "E-STREAM"
    assert "s:gguf@Q8_0" not in receipts(chains.sandbox)
    assert len(list(store_of(chains.sandbox).objects())) == 2


def test_what_is_known_need_not_be_measured_again(chains: Chains) -> None:
    chains.sandbox.spec(chain())
    chains.doit()
    chains.executor.careless = ("gguf",)
    chains.sandbox.spec(chain(types=THREE[1:2]))
    builds = len(chains.sandbox.entries("build"))
    chains.doit()
    assert len(chains.sandbox.entries("build")) == builds + 1
    found = receipts(chains.sandbox)
    assert found["s:gguf@Q4_0"]["inputs"]["model"]["digest"] == found["s:pruned"]["digest"]
    assert codes(chains.sandbox) == []


def test_what_flowed_without_a_file_is_no_artifact(chains: Chains, monkeypatch: pytest.MonkeyPatch) -> None:
    chains.sandbox.spec(chain())
    passed = chains.executor._passed

    def without(job: Mapping[str, Any]) -> dict[str, Any]:
        return {role: {**below, "files": []} for role, below in passed(job).items()}

    monkeypatch.setattr(chains.executor, "_passed", without)
    with pytest.raises(StageFailed, match="has no file"):
        chains.doit()
    assert "s:gguf@Q8_0" not in receipts(chains.sandbox)


def test_a_failed_stage_leaves_nothing_of_what_flowed(chains: Chains) -> None:
    chains.sandbox.spec(chain())

    def fail(job: Mapping[str, Any]) -> None:
        if job["kind"] == "gguf":
            raise StageFailed("E-STAGE", "no")

    chains.executor.before = fail
    with pytest.raises(StageFailed):
        chains.doit()
    assert receipts(chains.sandbox).keys() == {"s:base", "s:adapter"}
    assert list((chains.sandbox.root / "cache" / "staging").iterdir()) == []
    assert codes(chains.sandbox) == []


def test_inputs_of_what_flows_are_verified_as_the_targets_own(chains: Chains) -> None:
    chains.sandbox.spec(chain())
    chains.doit("s:base", "s:adapter")
    file = writable(object_of(chains.sandbox, "s:adapter") / "out.txt")
    status, same = file.stat(), b"x" * file.stat().st_size
    session = chains.session()
    assert session.up_to_date("s:base")
    assert session.up_to_date("s:adapter")
    # After it was looked at, under the same size and time.
    file.write_bytes(same)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(StoreDamaged, match="is damaged"):
        chains.doit("s:merged", "s:pruned", "s:gguf@Q8_0", session=session)
    assert "s:gguf@Q8_0" not in receipts(chains.sandbox)


def test_what_changed_while_it_flowed_is_not_published(chains: Chains) -> None:
    chains.sandbox.spec(chain())
    chains.doit("s:base", "s:adapter")
    file = object_of(chains.sandbox, "s:adapter") / "out.txt"

    def damage(job: Mapping[str, Any]) -> None:
        writable(file).write_bytes(b"y" * file.stat().st_size)

    chains.executor.before = damage
    with pytest.raises(StoreDamaged, match="is damaged"):
        chains.doit()
    assert "s:merged" not in receipts(chains.sandbox)


def test_always_measures_again_and_records_that_it_agrees(chains: Chains) -> None:
    chains.sandbox.spec(chain())
    chains.doit()
    chains.ran()
    session = chains.session()
    session.begin(force=False, parallel=1, always=True)
    for name in session.project.nodes:
        session.up_to_date(name)
        session.execute(name)
    session.close()
    assert chains.ran()[-1] == ("gguf", 1, ("merge", "prune"))
    assert receipts(chains.sandbox)["s:merged"]["observed"]["agrees"] is True
    assert codes(chains.sandbox) == []


# --- materialized ---------------------------------------------------------------------------------------------------


def materialized(chains: Chains, *names: str) -> None:
    """As ``doit materialize`` does."""
    from dataclasses import replace

    session = chains.session()
    for name in names:
        session.project.nodes[name] = replace(session.project.nodes[name], virtual=False)
    chains.doit(*names, session=session)


def test_what_was_materialized_is_read_and_not_streamed(chains: Chains) -> None:
    chains.sandbox.spec(chain())
    chains.doit()
    before = digests(chains.sandbox)
    materialized(chains, "s:merged")
    assert chains.ran()[-1] == ("merge", 1, ())
    assert receipts(chains.sandbox)["s:merged"]["observed"]["agrees"] is True
    assert chains.states()["merged"] == "fresh"
    chains.doit()
    assert chains.ran() == []
    assert digests(chains.sandbox) == before
    chains.sandbox.spec(chain(types=THREE[1:2]))
    chains.doit()
    assert chains.ran() == [("gguf", 1, ("prune",))], "merged is read, pruned flows"


def test_a_virtual_target_that_was_written_and_evicted_is_written_again(chains: Chains) -> None:
    from ingot.commands.materialize import _written

    chains.sandbox.spec(chain())
    chains.doit()
    materialized(chains, "s:merged")
    chains.sandbox.ok("gc", "--newest", "0", "--drop", "s:merged,s:base")
    assert not object_of(chains.sandbox, "s:merged").exists()
    chains.ran()
    session = chains.session()
    assert [node.id for node in _written(session, "s:merged")] == ["s:merged"]
    assert {name: reasons[0].detail for name, reasons in session.wanted.items()} == {
        "s:base": "evicted, and needed by merged",
        "s:merged": "evicted, and asked for",
    }
    chains.doit("s:base", "s:adapter", "s:merged", session=session)
    assert [name for name, _count, _flowed in chains.ran()] == ["command", "merge"]
    assert object_of(chains.sandbox, "s:merged").is_dir()


def test_no_link_leads_to_what_a_virtual_target_was_before(chains: Chains) -> None:
    chains.sandbox.spec(chain())
    chains.doit("s:base", "s:adapter")
    materialized(chains, "s:merged")
    link = chains.sandbox.root / "cache" / "latest" / "s" / "merged"
    assert link.is_symlink()
    chains.sandbox.spec(chain(adapter="b"))
    session = chains.doit("s:base", "s:adapter", "s:merged")
    assert not link.is_symlink()
    assert "s:merged" not in session.outcomes
    chains.ran()
    chains.doit()
    assert chains.ran() == [("gguf", 1, ("merge", "prune"))]


def test_a_damaged_object_of_a_virtual_target_is_set_aside_and_it_flows_again(chains: Chains) -> None:
    chains.sandbox.spec(chain())
    chains.doit("s:base", "s:adapter")
    materialized(chains, "s:merged")
    writable(object_of(chains.sandbox, "s:merged") / "out.txt").write_bytes(b"rotten")
    assert told(planned(chains)["merged"])[-1] == "streamed into gguf@Q8_0"
    chains.ran()
    chains.doit()
    assert chains.ran() == [("gguf", 1, ("merge", "prune"))]
    (kept,) = (chains.sandbox.root / "cache" / "quarantine").iterdir()
    assert (kept / "out.txt").read_bytes() == b"rotten"
    assert not (chains.sandbox.root / "cache" / "latest" / "s" / "merged").is_symlink()
    assert codes(chains.sandbox) == []


# --- scratch copies -------------------------------------------------------------------------------------------------


def test_what_cannot_be_streamed_is_copied_once_and_dropped(chains: Chains) -> None:
    chains.sandbox.spec(chain(more=REPORT))
    assert told(planned(chains)["pruned"])[1:] == [
        "streamed into gguf@Q8_0",
        "a scratch copy for report.pruned, report",
    ]
    seen: list[str] = []
    chains.executor.before = lambda job: seen.extend(
        path for role, paths in job["inputs"].items() for path in paths if "staging" in path and role == "candidate"
    )
    session = chains.doit()
    ran = chains.ran()
    assert ran.count(("prune", 1, ("merge",))) == 1, "merged flowed into the copy"
    assert seen
    assert len(set(seen)) == 1, "two that need it share it"
    assert not Path(seen[0]).exists()
    assert list((chains.sandbox.root / "cache" / "staging").iterdir()) == []
    assert session.project.current["s:pruned"]["stored"] is False
    assert codes(chains.sandbox) == []
    assert not store_of(chains.sandbox).object_path(digests(chains.sandbox)["s:pruned"]).exists()
    before = digests(chains.sandbox)
    chains.sandbox.spec(chain(merged=False, pruned=False, more=REPORT))
    chains.doit()
    assert chains.ran() == [("merge", 1, ()), ("prune", 1, ())]
    assert digests(chains.sandbox) == before


def test_a_copy_gives_a_digest_before_its_first_consumer_is_keyed(chains: Chains) -> None:
    only = REPORT.replace(", gguf]", "]")
    chains.sandbox.spec(chain(more=only))
    reports = ("report.base.logits", "report.base", "report.pruned")
    chains.doit(*[f"s:{name}" for name in ("base", "adapter", "merged", "pruned", *reports)])
    found = receipts(chains.sandbox)
    assert "shared_with" not in found["s:pruned"], "its time is its own"
    assert found["s:merged"]["shared_with"] == ["s:pruned"]
    assert found["s:report.pruned"]["key_parts"]["inputs"]["candidate"] == f"sha256:{found['s:pruned']['digest']}"
    assert "streamed" not in found["s:report.pruned"]
    assert codes(chains.sandbox) == []


def test_a_copy_may_need_a_copy(chains: Chains, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prune, "streams", ())
    chains.sandbox.spec(chain(more=REPORT))
    assert [said for said in told(planned(chains)["merged"]) if "copy" in said] == [
        "a scratch copy for gguf@Q8_0, report.pruned, report"
    ]
    chains.doit()
    assert [run for run in chains.ran() if run[0] in ("merge", "prune")] == [("merge", 1, ()), ("prune", 1, ())]
    assert codes(chains.sandbox) == []
    assert list((chains.sandbox.root / "cache" / "staging").iterdir()) == []


def test_a_copy_of_what_was_written_once_is_no_news(chains: Chains) -> None:
    chains.sandbox.spec(chain())
    chains.doit("s:base", "s:adapter")
    materialized(chains, "s:merged", "s:pruned")
    for name in ("s:merged", "s:pruned"):
        staging.remove_tree(object_of(chains.sandbox, name))
    builds = len(chains.sandbox.entries("build"))
    chains.sandbox.spec(chain(more=REPORT))
    chains.doit()
    new = [entry["target"] for entry in chains.sandbox.entries("build")[builds:]]
    assert "s:pruned" not in new
    assert "s:merged" not in new
    assert codes(chains.sandbox) == []


def test_a_copy_that_was_changed_is_not_used(chains: Chains) -> None:
    chains.sandbox.spec(chain(more=REPORT))

    def damage(job: Mapping[str, Any]) -> None:
        for path in job["inputs"].get("candidate", ()):
            if "staging" in path:
                file = writable(Path(path) / "out.txt")
                file.write_bytes(b"z" * file.stat().st_size)

    chains.executor.before = damage
    with pytest.raises(StoreDamaged, match=r"scratch copy of s:pruned is damaged") as caught:
        chains.doit()
    assert caught.value.facts == ("out.txt has other content",)
    assert "s:report.pruned" not in receipts(chains.sandbox)


@pytest.mark.parametrize("change", ["added", "removed", "folder", "link"])
def test_a_copy_is_compared_file_by_file(tmp_path: Path, change: str) -> None:
    from ingot.core.copies import Copy
    from virtualkit import record_of

    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "a").write_bytes(b"a")
    copy = Copy(folder, [record_of("a", b"a", tmp_path).to_dict()])
    assert copy.changed() == []
    if change == "added":
        (folder / "b").write_bytes(b"b")
    elif change == "link":
        (folder / "b").symlink_to("a")
    else:
        (folder / "a").unlink()
        if change == "folder":
            folder.rmdir()
    assert len(copy.changed()) == 1


def test_what_a_killed_run_left_of_a_copy_is_swept(chains: Chains) -> None:
    chains.sandbox.spec(chain(more=REPORT))
    base = chains.sandbox.root / "cache" / "staging"
    left: list[Path] = []

    class Killed(BaseException):
        """The process is gone."""

    def kill(job: Mapping[str, Any]) -> None:
        if job["kind"] == "evaluate" and any("staging" in path for path in job["inputs"]["candidate"]):
            # Its locks go with the process; its folders stay.
            left.extend(path for path in base.iterdir() if path.is_dir())
            raise Killed

    chains.executor.before = kill
    session = chains.session()
    with pytest.raises(Killed):
        chains.doit(session=session)
    assert left
    copies = session._builder._copies
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "remove_tree", lambda _path: False)
        copies.close()
    assert [path for path in base.iterdir() if path.is_dir()]
    chains.executor.before = lambda _job: None
    chains.doit()
    assert list(base.iterdir()) == []
    assert codes(chains.sandbox) == []


# --- one pass -------------------------------------------------------------------------------------------------------


def test_stale_instances_are_built_in_one_pass(chains: Chains, tmp_path: Path) -> None:
    chains.sandbox.spec(chain(types=THREE))
    session = chains.doit()
    assert [run for run in chains.ran() if run[0] == "gguf"] == [("gguf", 3, ("merge", "prune"))]
    found = receipts(chains.sandbox)
    names = [f"s:gguf@{kind}" for kind in THREE]
    assert {session.outcomes[name].fate for name in names} == {"built"}
    for name in names:
        assert set(found[name]["shared_with"]) == set(names) - {name}
        assert found[name]["timings"] == found[names[0]]["timings"]
        assert (chains.sandbox.root / "cache" / "latest" / "s" / name[2:] / "out.txt").is_file()
    alone = Chains(Sandbox.make(tmp_path / "alone", home=chains.sandbox.home))
    for kind in THREE:
        alone.sandbox.spec(chain(types=(kind,)))
        alone.doit()
        assert digests(alone.sandbox)[f"s:gguf@{kind}"] == found[f"s:gguf@{kind}"]["digest"]
    assert codes(chains.sandbox) == []


def test_a_pass_leaves_out_what_is_fresh_and_what_was_not_asked_for(chains: Chains) -> None:
    chains.sandbox.spec(chain(types=THREE[:1]))
    chains.doit()
    chains.ran()
    chains.sandbox.spec(chain(types=THREE))
    session = chains.session()
    session.selected = tuple(name for name in session.project.nodes if name != "s:gguf@F16")
    chains.doit(*session.selected, session=session)
    assert chains.ran() == [("gguf", 1, ("merge", "prune"))]
    assert session.outcomes["s:gguf@Q8_0"].fate == "fresh"
    chains.sandbox.spec(chain(types=THREE, adapter="b"))
    chains.doit()
    assert chains.ran()[-1] == ("gguf", 3, ("merge", "prune"))


def test_a_pass_that_fails_publishes_none_of_it_and_the_others_go_on_alone(chains: Chains) -> None:
    chains.sandbox.spec(chain(types=THREE))

    def fail(job: Mapping[str, Any]) -> None:
        if "Q8_0" in str(job["params"]):
            raise StageFailed("E-STAGE", "no")

    chains.executor.before = fail
    session = chains.session()
    with pytest.raises(StageFailed):
        chains.doit(session=session)
    assert "s:gguf@Q4_0" not in receipts(chains.sandbox)
    # As ``doit -c`` goes on: what failed is not taken along again.
    chains.doit("s:gguf@Q4_0", "s:gguf@F16", session=session)
    assert [run for run in chains.ran() if run[0] == "gguf"] == [("gguf", 2, ("merge", "prune"))]
    assert codes(chains.sandbox) == []


def test_two_at_a_time_build_one_pass(chains: Chains) -> None:
    chains.sandbox.spec(chain(types=THREE))
    chains.doit("s:base", "s:adapter")
    session = chains.session()
    messages: list[tuple[str, str]] = []
    session.listeners.append(lambda name, message: messages.append((name, str(message.get("name")))))
    names = [f"s:gguf@{kind}" for kind in THREE]
    for name in session.project.nodes:
        assert session.up_to_date(name) == (name not in names)
    running, go_on = threading.Event(), threading.Event()

    def wait(job: Mapping[str, Any]) -> None:
        running.set()
        assert go_on.wait(20)

    chains.executor.before = wait
    threads = [threading.Thread(target=session.execute, args=(name,)) for name in names]
    threads[0].start()
    assert running.wait(20)
    for thread in threads[1:]:
        thread.start()
    while len(messages) < 2:
        pass
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert [run for run in chains.ran() if run[0] == "gguf"] == [("gguf", 3, ("merge", "prune"))]
    assert {session.outcomes[name].fate for name in names} == {"built"}
    assert {message for _name, message in messages} == {"it is built in one pass with others"}
    session.close()


def test_equal_instances_of_two_specs_are_built_once(chains: Chains) -> None:
    chains.sandbox.spec(chain(types=THREE[:2]))
    chains.sandbox.spec(chain(types=THREE[:2]).replace("name: s", "name: t"), name="t")
    chains.doit()
    assert [run for run in chains.ran() if run[0] == "gguf"] == [("gguf", 2, ("merge", "prune"))]
    assert digests(chains.sandbox).keys() == {
        f"s:{n}" for n in ("base", "adapter", "merged", "pruned", "gguf@Q8_0", "gguf@Q4_0")
    }
    assert len(chains.sandbox.entries("selected")) == 6
    assert set(chains.states().values()) == {"fresh", "virtual"}


# --- gates, predictions, decisions ----------------------------------------------------------------------------------

GATE = "gates:\n  merged.weight_bytes: {max: %d}\n"


def test_gates_of_a_virtual_target_are_judged_when_it_has_flowed(chains: Chains) -> None:
    chains.sandbox.spec(chain(more=GATE % 1))
    session = chains.session()
    with pytest.raises(GateFailed, match="gates of s:merged do not pass"):
        chains.doit(session=session)
    assert [entry["target"] for entry in chains.sandbox.entries("gate-failed")] == ["s:merged"]
    with pytest.raises(GateFailed, match="gates of s:merged do not pass"):
        chains.doit()
    assert len(chains.sandbox.entries("gate-failed")) == 1
    chains.sandbox.spec(chain(more=GATE % 100_000))
    session = chains.doit()
    assert [verdict.passed for verdict in session.verdicts["s:merged"]] == [True]


def forecasts(chains: Chains) -> Callable[[], Any]:
    def found() -> Any:
        project = Project.open(chains.sandbox.root)
        plan = project.plan(project.nodes.values())
        return forecast(project, plan, list(plan))

    return found


def test_no_bytes_are_predicted_for_what_flows_and_those_of_a_copy_are(chains: Chains) -> None:
    chains.sandbox.spec(chain(more=REPORT))
    chains.doit()
    chains.sandbox.spec(chain(types=THREE[1:2]))
    found = forecasts(chains)()
    assert found.predictions.keys() == {"s:gguf@Q4_0"}
    size = found.predictions["s:gguf@Q4_0"].bytes
    assert found.disk.needed_bytes == size + (found.predictions["s:gguf@Q4_0"].scratch_bytes or 0)
    chains.sandbox.spec(chain(more=REPORT, adapter="b"))
    found = forecasts(chains)()
    assert "s:pruned" in found.predictions
    assert "s:merged" not in found.predictions
    assert "s:pruned" in found.work.names


def test_a_pass_counts_in_parts_that_add_up(chains: Chains) -> None:
    from ingot.core.past import History

    receipt = {
        "target": "s:a", "kind": "gguf", "digest": "d" * 64, "files": [{"size": 5}], "inputs": {},
        "key_parts": {"params": {}}, "timings": {"wall_s": 9.0, "peak_anon_bytes": 7, "peak_scratch_bytes": 1},
    }  # fmt: skip
    history = History()
    history.add({**receipt, "shared_with": ["s:b", "s:c"]})
    history.add({**receipt, "kind": "merge", "stored": False, "shared_with": ["s:a"]})
    history.add({**receipt, "kind": "prune", "stored": False})
    ((_target, shared),) = history.of_kind("gguf")
    ((_target, flowed),) = history.of_kind("merge")
    ((_target, copied),) = history.of_kind("prune")
    assert (shared.wall_s, shared.peak_anon_bytes, shared.bytes) == (3.0, 7, 5)
    assert (flowed.wall_s, flowed.peak_anon_bytes, flowed.scratch_bytes, flowed.bytes) == (None, None, None, 5)
    assert copied.wall_s == 9.0


def test_a_pass_is_predicted_as_a_whole_in_its_entries(chains: Chains) -> None:
    chains.sandbox.spec(chain(types=THREE))
    chains.doit()
    chains.sandbox.spec(chain(types=THREE, adapter="b"))
    single = forecasts(chains)().predictions["s:gguf@Q8_0"]
    chains.doit()
    predicted = receipts(chains.sandbox)["s:gguf@Q8_0"]["predicted"]
    assert predicted["bytes"] == single.bytes
    assert predicted["wall_s"] == pytest.approx(3 * single.wall_s, abs=0.01)


def test_the_digest_of_what_was_lost_still_says_what_is_fresh(chains: Chains) -> None:
    chains.sandbox.spec(chain(merged=False, pruned=False))
    chains.doit()
    chains.ran()
    staging.remove_tree(object_of(chains.sandbox, "s:merged"))
    assert chains.states() == {
        "base": "fresh", "adapter": "fresh", "merged": "stale", "pruned": "fresh", "gguf@Q8_0": "fresh",
    }  # fmt: skip
    chains.doit()
    assert chains.ran() == [("merge", 1, ())], "what is lost is built again, and nothing else"


def test_promotion_leaves_out_what_is_never_written(chains: Chains) -> None:
    from ingot.core.promotion import promote

    chains.sandbox.spec(chain())
    chains.doit()
    project = Project.open(chains.sandbox.root)
    steps = promote(project, list(project.nodes.values()), None, None)
    assert [step.target for step in steps] == ["s:base", "s:adapter", "s:gguf@Q8_0"]
    chains.sandbox.spec(chain(more=GATE % 1))
    failing = Project.open(chains.sandbox.root)
    with pytest.raises(GateFailed, match=r"a gate fails for s:merged"):
        promote(failing, list(failing.nodes.values()), None, None)
    with pytest.raises(UsageError) as caught:
        promote(project, [project.nodes["s:merged"]], None, None)
    assert "doit materialize s:merged" in str(caught.value)


def test_nothing_is_accepted_under_a_key_that_is_not_whole(chains: Chains) -> None:
    from ingot.core.accept import accept

    chains.sandbox.spec(chain())
    chains.doit("s:base", "s:adapter")
    project = Project.open(chains.sandbox.root)
    plan = project.plan(project.nodes.values())
    with pytest.raises(UsageError, match="never measured") as caught:
        accept(project, plan["s:gguf@Q8_0"], None, "why not")
    assert caught.value.code == "E-INPUT-STALE"


# --- audit ----------------------------------------------------------------------------------------------------------


def test_audit_says_what_was_never_written_and_what_it_cannot_derive(chains: Chains) -> None:
    chains.sandbox.spec(chain())
    chains.doit()
    found = audited(chains.sandbox)
    assert found.problems == []
    notes = [note.detail for note in found.notes]
    assert "the artifact of s:merged was streamed and never written" in notes
    assert "metrics of s:merged: it was streamed and never written, so they cannot be derived again" in notes
    materialized(chains, "s:merged")
    notes = [note.detail for note in audited(chains.sandbox).notes]
    assert "the artifact of s:merged was streamed and never written" not in notes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"streamed": {"model": "0" * 64}}, "no entry says that this gave it"),
        ({"streamed": {"other": "0" * 64}}, "has no such single input"),
    ],
)
def test_audit_finds_a_stream_that_no_entry_bears_out(chains: Chains, changes: dict[str, Any], words: str) -> None:
    chains.sandbox.spec(chain())
    chains.doit()
    append(chains.sandbox, "s:gguf@Q8_0", **changes)
    (problem,) = [problem for problem in audited(chains.sandbox).problems if problem.code == "stream_differs"]
    assert words in problem.detail
    append(chains.sandbox, "s:gguf@Q8_0", streamed=5)
    assert "entry_unreadable" in codes(chains.sandbox)


def test_lineage_through_what_flowed_is_proved(chains: Chains) -> None:
    chains.sandbox.spec(chain())
    chains.doit()
    merged = receipts(chains.sandbox)["s:merged"]
    append(chains.sandbox, "s:merged", inputs={**merged["inputs"], "adapter": {"target": "s:x", "digest": "e" * 64}})
    assert "lineage_broken" in codes(chains.sandbox)


# --- specs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("sparsity: 0.5, virtual: true", "method: wanda, sparsity: 0.5, virtual: true", "with these parameters"),
        ("command: [base]}", "command: [base], virtual: true}", "is written whole"),
        ("matrix: {type: [Q8_0]}}", "type: Q8_0, virtual: true}", "is written whole"),
    ],
)
def test_only_what_maps_weights_can_be_virtual(chains: Chains, old: str, new: str, words: str) -> None:
    text = chain()
    assert old in text
    chains.sandbox.spec(text.replace(old, new))
    with pytest.raises(IngotError) as caught:
        Project.open(chains.sandbox.root)
    assert words in str(caught.value)
    assert "specs/s.yaml:" in str(caught.value)


def test_every_variant_must_be_weight_wise(chains: Chains) -> None:
    both = "sparsity: 0.5, matrix: {method: [magnitude, wanda]}, virtual: true"
    chains.sandbox.spec(chain().replace("sparsity: 0.5, virtual: true", both))
    with pytest.raises(IngotError, match="with these parameters"):
        Project.open(chains.sandbox.root)


def test_virtual_is_in_no_key(chains: Chains) -> None:
    chains.sandbox.spec(chain(merged=False, pruned=False))
    chains.doit("s:base", "s:adapter")
    before = planned(chains)["merged"].key
    chains.sandbox.spec(chain())
    assert planned(chains)["merged"].key == before
