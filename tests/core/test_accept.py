"""accept: an artifact becomes the result of another key by decision, and every reader of the log agrees."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from decisionkit import clone, fill, merge, opened, own_keys, plan, report_spec, size
from ingot import registry
from ingot.core import plan as planner
from ingot.core.accept import Accepted, accept
from ingot.core.explain import Explainer
from ingot.core.given_reason import checked
from ingot.core.store import Store
from ingot.errors import Busy, IngotError, MissingTool, RefusedInput, StoreDamaged, UsageError
from projectkit import Sandbox, counted
from recordkit import codes, writable

REASON = "the new version writes the same file"


@pytest.fixture(autouse=True)
def _keys(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    own_keys(sandbox, monkeypatch)


@pytest.fixture(autouse=True)
def _versions_are_asked_again() -> Iterator[None]:
    """One process stands for many here, and each asks a program for its version once."""
    yield
    planner._program_output.cache_clear()


def spec(sandbox: Sandbox, version: str = "1", word: str = "x", name: str = "s") -> None:
    """a → b, where a is made with a program of some version."""
    a = f"  a: {{kind: command, command: [echo, {word}], tools: {{tool: [cat, {sandbox.root}/version]}}}}\n"
    sandbox.spec("targets:\n" + a + "  b: {kind: command, command: [echo, b], from: {data: a}}\n", name=name)
    sandbox.file("version", version)
    planner._program_output.cache_clear()


@pytest.fixture
def upgraded(sandbox: Sandbox) -> Sandbox:
    """A built chain whose first target is stale since a tool was upgraded."""
    spec(sandbox, "1")
    fill(sandbox)
    spec(sandbox, "2")
    assert states(sandbox) == {"s:a": "stale", "s:b": "waiting"}
    return sandbox


def states(sandbox: Sandbox) -> dict[str, str]:
    return {name: item.state for name, item in plan(opened(sandbox)).items()}


def accepted(sandbox: Sandbox, target: str = "s:a", digest: str | None = None) -> Accepted:
    project = opened(sandbox)
    done = accept(project, plan(project)[target], digest, REASON)
    project.save()
    return done


def refused(sandbox: Sandbox, error: type[IngotError], target: str = "s:a", digest: str | None = None) -> IngotError:
    before, was = size(sandbox), states(sandbox)
    with pytest.raises(error) as caught:
        accepted(sandbox, target, digest)
    assert (size(sandbox), states(sandbox)) == (before, was)
    return caught.value


FRESH = {"s:a": "fresh", "s:b": "fresh"}


def test_what_was_stale_is_fresh_and_its_consumers_stay(upgraded: Sandbox) -> None:
    before = opened(upgraded).index.latest
    done = accepted(upgraded)
    assert [change.name for change in done.changes] == ["tool"]
    assert done.recorded is not None
    after = opened(upgraded).index.latest
    assert after["s:a"]["digest"] == before["s:a"]["digest"]
    assert after["s:a"]["key"] == done.key != before["s:a"]["key"]
    assert after["s:b"] == before["s:b"]
    assert states(upgraded) == FRESH
    assert codes(upgraded) == []


def test_the_receipt_is_that_of_the_build_under_the_accepted_key(upgraded: Sandbox) -> None:
    built = registry.latest("s:a", upgraded.root)
    done = accepted(upgraded)
    receipt = registry.latest("s:a", upgraded.root)
    assert (receipt["key"], receipt["key_parts"]["programs"]) == (done.key, {"tool": "2"})
    for name in ("metrics", "timings", "environment", "files", "digest", "origin", "index", "built_at"):
        assert receipt[name] == built[name]
    assert receipt["accepted"] | {"time": ""} == {
        "target": "s:a",
        "reason": REASON,
        "time": "",
        **(done.recorded or {}),
    }


@pytest.mark.parametrize("lost", [["results"], ["index.json"], ["results", "index.json"], ["results", "stat.json"]])
def test_it_is_derived_from_the_log_again(upgraded: Sandbox, lost: list[str]) -> None:
    accepted(upgraded)
    for name in lost:
        path = upgraded.root / "cache" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    assert states(upgraded) == FRESH


def test_a_lost_result_of_the_build_comes_back(upgraded: Sandbox) -> None:
    """An accepted result is read from two files of cache/results: either may be lost in a power cut."""
    built = str(opened(upgraded).index.latest["s:a"]["key"])
    done = accepted(upgraded)
    for key in (built, done.key):
        (upgraded.root / "cache" / "results" / f"{key}.json").unlink()
        assert states(upgraded) == FRESH
        (upgraded.root / "cache" / "results" / f"{key}.json").write_text("")
        assert states(upgraded) == FRESH


def test_another_clone_and_a_merge_in_either_order_see_it(
    upgraded: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = clone(upgraded, tmp_path / "second")
    own_keys(second, monkeypatch)
    accepted(second)
    merge(upgraded, second)
    assert states(upgraded) == FRESH
    # The log of the acceptance alone: without the build it gives nothing, and it does once the build arrives.
    third = clone(second, tmp_path / "third")
    (first_log,) = (path for path in (third.root / "registry").iterdir() if "origin" in key_of_log(upgraded, path))
    shutil.move(first_log, tmp_path / "kept")
    for name in ("results", "index.json"):
        path = third.root / "cache" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert states(third) == {"s:a": "stale", "s:b": "waiting"}
    opened(third).save()
    shutil.move(tmp_path / "kept", first_log)
    assert states(third) == FRESH


def key_of_log(sandbox: Sandbox, log: Path) -> str:
    """``origin`` when a log was written with the key of this sandbox."""
    return "origin" if (sandbox.home / "config" / "ingot" / "keys" / log.name).exists() else ""


def test_an_equal_target_of_another_spec_takes_it_too(upgraded: Sandbox) -> None:
    accepted(upgraded)
    spec(upgraded, "2", name="twin")
    assert states(upgraded)["twin:a"] == "fresh"


def test_what_was_built_goes_before_what_was_accepted(upgraded: Sandbox) -> None:
    """For a target whose entries name neither."""
    accepted(upgraded)
    project = opened(upgraded)
    project.store.forget("s:a")
    fill(upgraded, "built for real")
    spec(upgraded, "2", name="twin")
    found = plan(opened(upgraded))
    assert found["s:a"].digest == found["twin:a"].digest
    assert found["twin:a"].receipt is not None
    assert "accepted" not in found["twin:a"].receipt


def test_it_is_found_again_with_its_parameters(upgraded: Sandbox) -> None:
    accepted(upgraded)
    spec(upgraded, "2", word="y")
    fill(upgraded, "y")
    spec(upgraded, "2")
    item = plan(opened(upgraded))["s:a"]
    assert (item.state, item.restored) == ("fresh", True)
    assert item.reasons[0].detail.endswith(REASON)
    fill(upgraded)
    assert states(upgraded) == FRESH
    assert registry.latest("s:a", upgraded.root)["accepted"]["reason"] == REASON


def test_accepted_twice_the_build_stays_the_one_that_wrote_it(upgraded: Sandbox) -> None:
    built = registry.latest("s:a", upgraded.root)
    accepted(upgraded)
    spec(upgraded, "3")
    accepted(upgraded)
    entries = [entry for entry in opened(upgraded).registry.entries() if entry.type == "accept"]
    builds = [entry.statement["predicate"]["build"] for entry in entries]
    assert builds == [{name: built[name] for name in ("origin", "index", "key")}] * 2
    assert states(upgraded) == FRESH
    assert codes(upgraded) == []


def test_what_is_fresh_needs_no_acceptance(upgraded: Sandbox) -> None:
    accepted(upgraded)
    before = size(upgraded)
    assert accepted(upgraded).recorded is None
    assert accepted(upgraded, digest=str(opened(upgraded).index.latest["s:a"]["digest"])).recorded is None
    assert size(upgraded) == before


def test_a_wish_for_a_new_build_from_before_is_taken_back(upgraded: Sandbox) -> None:
    opened(upgraded).store.forget("s:a")
    accepted(upgraded)
    assert states(upgraded) == FRESH


def test_why_tells_of_the_decision(upgraded: Sandbox) -> None:
    accepted(upgraded)
    project = opened(upgraded)
    found = Explainer(project, plan(project)).explain("s:a")
    (cause,) = found.causes
    assert cause.code == "accepted"
    assert REASON in cause.words
    assert "tool tool 1 → 2" in str(cause.note)
    assert found.to_dict()["result"]["accepted"]["reason"] == REASON
    spec(upgraded, "3")
    project = opened(upgraded)
    (cause,) = Explainer(project, plan(project)).explain("s:a").causes
    assert cause.words == "tool tool 2 → 3", "compared with the key that it was accepted under"


# --- refused -------------------------------------------------------------------------------------------------


def test_another_kind_or_other_roles_are_refused(upgraded: Sandbox) -> None:
    b = str(opened(upgraded).index.latest["s:b"]["digest"])
    error = refused(upgraded, RefusedInput, "s:a", b[:12])
    assert (error.code, error.exit_code) == ("E-ACCEPT", 3)
    assert error.facts == ("it was built from: data", "s:a is built from: nothing")
    report_spec(upgraded)
    found = fill(upgraded)
    report_spec(upgraded, word="two")
    error = refused(upgraded, RefusedInput, "s:gguf", found["s:report.gguf"])
    assert "is of kind evaluate; s:gguf is of kind command" in error.what


def test_other_inputs_are_recorded_for_an_artifact_and_refused_for_a_measurement(sandbox: Sandbox) -> None:
    report_spec(sandbox)
    first = fill(sandbox, "1")
    report_spec(sandbox, word="two")
    project = opened(sandbox)
    assert plan(project)["s:gguf"].state == "stale"
    second = fill(sandbox, "new", only="s:gguf")["s:gguf"]
    error = refused(sandbox, RefusedInput, "s:report.gguf")
    assert "a measurement is of what it measured" in error.what
    text = (sandbox.root / "specs/s.yaml").read_text()
    sandbox.spec(text.replace("[echo, base]", "[echo, another]"))
    fill(sandbox, "other", only="s:base")
    done = accepted(sandbox, "s:gguf", second)
    assert "input_changed" in {change.code for change in done.changes}
    (entry,) = [entry for entry in opened(sandbox).registry.entries() if entry.type == "accept"]
    assert entry.statement["predicate"]["inputs"]["model"]["digest"] != first["s:base"]
    assert codes(sandbox) == []


def test_a_target_whose_inputs_are_not_up_to_date_has_no_key(upgraded: Sandbox) -> None:
    error = refused(upgraded, UsageError, "s:b")
    assert error.code == "E-INPUT-STALE"
    assert error.facts == ("waits for a",)


def test_never_built_and_unknown_digests(upgraded: Sandbox) -> None:
    assert refused(upgraded, UsageError, "s:a", "f" * 64).code == "E-DIGEST"
    assert refused(upgraded, UsageError, "s:a", "12").code == "E-DIGEST"
    upgraded.spec("targets:\n  new: {kind: command, command: [echo, new]}\n", name="n")
    assert refused(upgraded, UsageError, "n:new").code == "E-NOT-BUILT"


def test_a_source_that_cannot_be_read_gives_no_key(sandbox: Sandbox) -> None:
    sandbox.file("specs/in.txt", "1")
    sandbox.spec("targets:\n" + counted(sandbox.root, "a", source="in.txt"))
    fill(sandbox)
    (sandbox.root / "specs/in.txt").unlink()
    assert refused(sandbox, RefusedInput).code == "E-SOURCE"


def test_a_tool_that_is_not_installed_gives_no_key(upgraded: Sandbox) -> None:
    text = (upgraded.root / "specs/s.yaml").read_text()
    upgraded.spec(text.replace("[cat,", "[no-such-program,"))
    error = refused(upgraded, MissingTool)
    assert "the version of tool, not installed" in error.what


def test_missing_and_damaged_bytes_are_refused(upgraded: Sandbox) -> None:
    path = Store(upgraded.root / "cache").object_path(str(opened(upgraded).index.latest["s:a"]["digest"]))
    writable(path / "out.txt").write_text("other")
    assert refused(upgraded, StoreDamaged).code == "E-OBJECT-DAMAGED"
    shutil.rmtree(writable(path))
    assert refused(upgraded, StoreDamaged).code == "E-OBJECT-MISSING"


def test_a_target_that_is_being_built_is_busy(upgraded: Sandbox) -> None:
    project = opened(upgraded)
    with project.store.exclusive(str(plan(project)["s:a"].key)):
        error = refused(upgraded, Busy)
    assert error.exit_code == 6


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "x" * 501, "see {root}/notes.txt", "tab\there"])
def test_a_reason_is_one_line_without_paths(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        checked(text.replace("{root}", str(tmp_path)), tmp_path)
    assert caught.value.code == "E-REASON"


@pytest.mark.fault("S1", "an access key in the reason of a decision")
def test_a_secret_in_a_reason_is_refused_and_not_echoed(tmp_path: Path) -> None:
    secret = "hf_" + "a1B2" * 8
    with pytest.raises(UsageError) as caught:
        checked(f"token {secret}", tmp_path)
    assert caught.value.code == "E-SECRET-LITERAL"
    assert secret not in str(caught.value)
    assert checked("  größer, besser 🦙 ", tmp_path) == "größer, besser 🦙"
