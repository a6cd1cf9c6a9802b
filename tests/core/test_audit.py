"""Every fault that ``audit`` looks for, planted; and a whole project in which it finds none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ingot.core.digest import record_files, tree_digest
from ingot.core.statement import build_statement, decision_statement
from projectkit import Sandbox
from recordkit import (
    append,
    audited,
    codes,
    copied,
    object_of,
    publish,
    receipts,
    registry_of,
    simple,
    store_of,
    writable,
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """a → b, built once for all tests."""
    sandbox = Sandbox.make(tmp_path_factory.mktemp("template"))
    sandbox.spec("targets:\n" + simple("a", content="a") + simple("b", depends="a"))
    sandbox.ok()
    return sandbox


@pytest.fixture
def built(template: Sandbox, tmp_path: Path) -> Sandbox:
    """A copy of it, keys and pins included, that a test may damage."""
    return copied(template, tmp_path)


def out(built: Sandbox) -> Path:
    """The one file of a's artifact, writable."""
    writable(object_of(built, "s:a"))
    return writable(object_of(built, "s:a") / "out.txt")


def test_a_whole_project_is_clean(built: Sandbox) -> None:
    result = audited(built)
    assert (result.problems, result.notes, result.exit_code) == ([], [], 0)
    assert (result.entries, result.objects, result.absent) == (3, 2, 0)
    assert result.bytes == sum(file["size"] for item in receipts(built).values() for file in item["files"])
    assert result.metrics == 2


def test_a_long_chain_is_clean_in_whatever_order_it_was_logged(built: Sandbox) -> None:
    registry, previous, statements = registry_of(built), receipts(built)["s:b"], []
    for step in range(5):
        digest, files = publish(built, {"step": str(step).encode()})
        inputs = {"data": {"target": "s:a", "digest": previous["digest"]}}
        listed = [record.to_dict() for record in files]
        previous = previous | {"digest": digest, "files": listed, "inputs": inputs, "metrics": {}}
        statements.append(build_statement(previous))
    registry.append(statements[::-1])
    assert audited(built).problems == []


def test_a_flipped_bit_is_found_although_size_and_time_are_kept(built: Sandbox) -> None:
    path = out(built)
    before = path.stat()
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    result = audited(built)
    (problem,) = result.problems
    assert problem.code == "artifact_damaged"
    assert problem.where.endswith("/out.txt")
    assert "other content" in problem.detail
    assert "s:a" in problem.detail
    assert result.exit_code == 4


def test_a_longer_file_is_found(built: Sandbox) -> None:
    out(built).write_bytes(b"a\nb")
    (problem,) = audited(built).problems
    assert "has 3 bytes, not 2" in problem.detail


def test_a_missing_file_is_found(built: Sandbox) -> None:
    out(built).unlink()
    (problem,) = audited(built).problems
    assert problem.code == "artifact_damaged"
    assert "is missing" in problem.detail


def test_a_file_too_many_is_found(built: Sandbox) -> None:
    (out(built).parent / "more.txt").write_text("x")
    (problem,) = audited(built).problems
    assert "is in no file list" in problem.detail


def test_a_link_in_place_of_a_file_is_found(built: Sandbox) -> None:
    path = out(built)
    path.rename(built.root / "elsewhere")
    path.symlink_to(built.root / "elsewhere")
    assert codes(built) == ["artifact_damaged"]


def test_two_files_that_changed_places_are_found(built: Sandbox) -> None:
    digest, records = publish(built, {"one": b"1", "two": b"2"})
    append(built, "s:a", digest=digest, files=[record.to_dict() for record in records], metrics={})
    folder = writable(built.root / "cache" / "objects" / digest[:2] / digest)
    (folder / "one").rename(folder / "three")
    (folder / "two").rename(folder / "one")
    (folder / "three").rename(folder / "two")
    assert codes(built) == ["artifact_damaged"]


def test_an_absent_artifact_is_counted_and_no_damage(built: Sandbox) -> None:
    shutil.rmtree(writable(object_of(built, "s:a")))
    result = audited(built)
    assert (result.problems, result.objects, result.absent) == ([], 1, 1)
    assert [note.code for note in result.notes] == ["artifact_absent"]


def test_an_object_that_no_entry_names_is_noted(built: Sandbox) -> None:
    publish(built, {"stray": b"x"})
    result = audited(built)
    assert result.problems == []
    assert [note.code for note in result.notes] == ["object_unnamed"]


def test_an_altered_entry_is_found(built: Sandbox) -> None:
    (log,) = (built.root / "registry").glob("*/log.jsonl")
    log.write_bytes(log.read_bytes().replace(b'"value":2', b'"value":3', 1))
    result = audited(built)
    assert "root_mismatch" in {problem.code for problem in result.problems}
    assert result.exit_code == 5


def test_a_log_cut_to_an_older_signed_state_is_found(built: Sandbox) -> None:
    (folder,) = (built.root / "registry").iterdir()
    old = built.root.parent / "old"
    shutil.copytree(folder, old)
    built.ok("forget", "s:b")
    built.ok("s:b")
    shutil.rmtree(folder)
    shutil.copytree(old, folder)
    assert "log_truncated" in codes(built), "ingot.lock pins the longer log"


def test_damage_of_both_is_reported_as_the_registrys(built: Sandbox) -> None:
    out(built).unlink()
    append(built, "s:b", metrics={"bytes": {"value": 1, "unit": "B", "method": "typed in"}})
    assert codes(built) == ["artifact_damaged", "metric_differs"]
    assert audited(built).exit_code == 5


def test_a_metric_that_the_bytes_contradict_is_found(built: Sandbox) -> None:
    append(
        built, "s:a", metrics={"bytes": {"value": 3, "unit": "B", "method": "sum of the sizes of the files written"}}
    )
    (problem,) = audited(built).problems
    assert problem.code == "metric_differs"
    assert "bytes is recorded as 3, the bytes say 2" in problem.detail


def test_a_metric_that_is_no_number_is_found(built: Sandbox) -> None:
    append(built, "s:a", metrics={"bytes": {"value": True, "unit": "B", "method": "m"}})
    assert codes(built) == ["metric_differs"]


def test_an_input_that_nobody_built_is_found(built: Sandbox) -> None:
    made_up = {"data": {"target": "s:a", "digest": "0" * 64}}
    append(built, "s:b", inputs=made_up)
    (problem,) = audited(built).problems
    assert problem.code == "lineage_broken"
    assert "was built by no entry" in problem.detail


def test_a_lineage_that_goes_in_a_circle_is_found(built: Sandbox) -> None:
    one, first = publish(built, {"one": b"1"})
    two, second = publish(built, {"two": b"2"})
    for digest, files, other in ((one, first, two), (two, second, one)):
        listed = [record.to_dict() for record in files]
        inputs = {"data": {"target": "s:a", "digest": other}}
        append(built, "s:a", digest=digest, files=listed, inputs=inputs, metrics={})
    result = audited(built)
    assert {problem.code for problem in result.problems} == {"lineage_broken"}
    assert all("reaches no pinned source" in problem.detail for problem in result.problems)


def test_a_decision_about_what_nobody_built_is_found(built: Sandbox) -> None:
    fields = {"target": "s:a", "spec": "s", "key": "1" * 64, "digest": "2" * 64}
    registry_of(built).append([decision_statement("selected", fields)])
    assert codes(built) == ["lineage_broken"]


def test_a_file_list_of_another_digest_is_found(built: Sandbox) -> None:
    files = receipts(built)["s:b"]["files"]
    append(built, "s:a", files=files)
    assert "digest_differs" in codes(built)


def test_key_parts_of_another_key_are_found(built: Sandbox) -> None:
    append(built, "s:a", key="3" * 64)
    assert codes(built) == ["key_differs"]


def test_results_that_differ_from_the_log_are_found(built: Sandbox) -> None:
    receipt, store = receipts(built)["s:a"], store_of(built)
    (build,) = store.read_result(receipt["key"])
    build["metrics"]["bytes"]["value"] = 7
    store.file_results({receipt["key"]: [build]})
    result = audited(built)
    assert [problem.code for problem in result.problems] == ["results_differ"]
    assert result.exit_code == 4


def test_an_entry_that_is_no_build_of_ours_is_found(built: Sandbox) -> None:
    registry = registry_of(built)
    (statement, *_rest) = [entry.statement for entry in registry.entries() if entry.type == "build"]
    del statement["predicate"]["runDetails"]["metadata"]
    registry.append([statement])
    assert codes(built) == ["entry_unreadable"]


def test_names_that_lead_out_of_the_store_are_never_followed(built: Sandbox) -> None:
    (built.root / "cache" / "secret").mkdir()
    inputs = {"model": {"target": "s:a", "digest": "../../secret"}}
    append(built, "s:a", kind="quantize", inputs=inputs, metrics={})
    assert "lineage_broken" in codes(built)


def test_an_audit_changes_nothing(built: Sandbox) -> None:
    out(built).write_bytes(b"x")
    before = tree_digest(record_files(built.root / "registry"))
    files = sorted(path for path in (built.root / "cache").rglob("*") if path.is_file())
    audited(built)
    assert tree_digest(record_files(built.root / "registry")) == before
    assert sorted(path for path in (built.root / "cache").rglob("*") if path.is_file()) == files
