"""Exactly what was stale runs, and nothing else: ``doit`` as a person uses it, over ``command`` targets."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from projectkit import Sandbox, counted


@pytest.fixture
def chain(sandbox: Sandbox) -> Sandbox:
    """a → b → c, and d beside them; a and d read a file each."""
    sandbox.file("specs/a.txt", "1\n")
    sandbox.file("specs/d.txt", "1\n")
    write_chain(sandbox)
    return sandbox


def write_chain(sandbox: Sandbox, *, b: str = "b", comment: str = "") -> None:
    root = sandbox.root
    sandbox.spec(
        f"targets:\n{comment}"
        + counted(root, "a", source="a.txt", content="a")
        + counted(root, "b", depends="a", content=b)
        + counted(root, "c", depends="b", content="c")
        + counted(root, "d", source="d.txt", content="d")
    )


def test_the_first_run_builds_all_and_the_second_nothing(chain: Sandbox) -> None:
    chain.ok()
    assert chain.ran() == ["a", "b", "c", "d"]
    entries = len(chain.entries())
    chain.ok()
    assert chain.ran() == []
    assert len(chain.entries()) == entries, "a run that changes nothing appends nothing"
    assert set(chain.states().values()) == {"fresh"}


def test_an_edited_parameter_rebuilds_what_depends_on_it(chain: Sandbox) -> None:
    chain.ok()
    chain.ran()
    write_chain(chain, b="other")
    assert chain.states() == {"s:a": "fresh", "s:b": "stale", "s:c": "waiting", "s:d": "fresh"}
    assert chain.reasons("s:b") == ["params_changed"]
    chain.ok()
    assert chain.ran() == ["b", "c"]


def test_going_back_finds_the_old_results_again(chain: Sandbox) -> None:
    chain.ok()
    write_chain(chain, b="other")
    chain.ok()
    chain.ran()
    write_chain(chain)
    assert chain.states()["s:b"] == "fresh"
    assert chain.reasons("s:b") == ["found_again"]
    before = len(chain.entries())
    chain.ok()
    assert chain.ran() == []
    assert [entry["type"] for entry in chain.entries()[before:]] == ["selected", "selected"]
    assert (chain.root / "cache/latest/s/b/out.txt").read_text() == "b\na\n1\n"


def test_comments_key_order_touching_and_moving_rebuild_nothing(chain: Sandbox, tmp_path: Path) -> None:
    chain.ok()
    chain.ran()
    write_chain(chain, comment="  # a remark\n")
    os.utime(chain.root / "specs/a.txt", (1, 1))
    assert set(chain.states().values()) == {"fresh"}
    moved = Sandbox(tmp_path / "moved", chain.home)
    shutil.move(chain.root, moved.root)
    assert set(moved.states().values()) == {"fresh"}


def test_an_edited_source_is_stale_and_a_restored_one_fresh(chain: Sandbox) -> None:
    chain.ok()
    chain.file("specs/a.txt", "2\n")
    assert chain.states() == {"s:a": "stale", "s:b": "waiting", "s:c": "waiting", "s:d": "fresh"}
    assert chain.reasons("s:a") == ["source_changed"]
    chain.file("specs/a.txt", "1\n")
    assert set(chain.states().values()) == {"fresh"}


def test_a_rebuild_with_equal_bytes_stops_the_cascade(sandbox: Sandbox) -> None:
    def write(first: str) -> None:
        fixed = f"sh, -c, 'echo a >> {sandbox.root}/ran.txt; echo same > {{out}}/out.txt', {first}"
        a = f"  a: {{kind: command, command: [{fixed}]}}\n"
        sandbox.spec("targets:\n" + a + counted(sandbox.root, "b", depends="a"))

    write("one")
    sandbox.ok()
    sandbox.ran()
    write("two")
    assert sandbox.states() == {"s:a": "stale", "s:b": "waiting"}
    sandbox.ok()
    assert sandbox.ran() == ["a"]


def test_equal_targets_of_two_specs_are_built_once(sandbox: Sandbox) -> None:
    text = "targets:\n" + counted(sandbox.root, "a") + counted(sandbox.root, "b", depends="a")
    sandbox.spec(text, "one")
    sandbox.spec(text, "two")
    sandbox.ok()
    assert sandbox.ran() == ["a", "b"]
    assert sandbox.ok("plan").count("fresh") >= 4


def test_outputs_deleted_or_damaged_by_hand_come_back(chain: Sandbox) -> None:
    chain.ok()
    chain.ran()
    link = chain.root / "cache/latest/s/b"
    target = link.resolve()
    os.chmod(target, 0o755)
    (target / "out.txt").unlink()
    assert chain.states()["s:b"] == "stale"
    assert chain.reasons("s:b") == ["artifact_damaged"]
    chain.ok()
    assert chain.ran() == ["b"]
    shutil.rmtree(chain.root / "cache/latest")
    chain.ok()
    assert chain.ran() == []
    assert (link / "out.txt").exists()


def test_without_its_cache_a_project_builds_again_and_keeps_its_log(chain: Sandbox) -> None:
    chain.ok()
    chain.ran()
    for folder, _names, _files in os.walk(chain.root / "cache"):
        os.chmod(folder, 0o755)
    shutil.rmtree(chain.root / "cache")
    assert chain.states()["s:a"] == "stale"
    assert chain.reasons("s:a") == ["artifact_missing"]
    chain.ok()
    assert chain.ran() == ["a", "b", "c", "d"]
    assert len(chain.entries("build")) == 8


def test_selecting_targets_forgetting_and_forcing(chain: Sandbox) -> None:
    chain.ok("s:b")
    assert chain.ran() == ["a", "b"]
    chain.ok("s")
    assert chain.ran() == ["c", "d"]
    chain.ok("forget", "s:b")
    assert chain.reasons("s:b") == ["forgotten"]
    chain.ok()
    assert chain.ran() == ["b"], "the same bytes again: c stays fresh"
    chain.ok("-a", "s:b")
    assert chain.ran() == ["a", "b"]
    chain.ok("clean", "s:d")
    assert not (chain.root / "cache/latest/s/d").exists()


def test_a_failed_target_is_tried_again_and_leaves_its_log(sandbox: Sandbox) -> None:
    sandbox.file("specs/flag", "no\n")
    script = "grep -q yes flag || { echo not yet >&2; exit 4; }; echo done > {out}/out.txt"
    bad = f"  bad: {{kind: command, command: [sh, -c, '{script}'], files: [flag]}}\n"
    sandbox.spec("targets:\n" + bad + counted(sandbox.root, "after", depends="bad") + counted(sandbox.root, "beside"))
    done = sandbox.doit("-c")
    assert done.returncode == 2, "doit counts a target whose input failed as an error"
    output = done.stdout + done.stderr
    assert output.count("E-COMMAND") == 1
    assert "Traceback" not in output
    assert sandbox.ran() == ["beside"]
    assert (sandbox.root / "cache/logs/s/bad.log").read_text() == "not yet\n"
    assert "cache/logs/s/bad.log" in output
    assert [entry["target"] for entry in sandbox.entries("build")] == ["s:beside"]
    sandbox.file("specs/flag", "yes\n")
    sandbox.ok()
    assert sandbox.ran() == ["after"]
    assert not (sandbox.root / "cache/logs/s/bad.log").exists()


def test_two_doits_in_one_folder_build_each_target_once(sandbox: Sandbox) -> None:
    text = "targets:\n"
    for number in range(6):
        script = f"echo t{number} >> {sandbox.root}/ran.txt; sleep 0.2; echo {number} > {{out}}/x"
        text += f"  t{number}: {{kind: command, command: [sh, -c, '{script}']}}\n"
    sandbox.spec(text)
    threads = [threading.Thread(target=sandbox.ok) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sandbox.ran() == [f"t{number}" for number in range(6)]
    assert len(sandbox.entries("build")) == 6
    assert sandbox.json("audit")["ok"]


def test_a_matrix_builds_its_variants_and_a_new_one_alone(sandbox: Sandbox) -> None:
    def write(values: str) -> None:
        sandbox.spec(
            "targets:\n"
            + counted(sandbox.root, "a")
            + f"  m: {{kind: command, command: [sh, -c, 'echo m >> {sandbox.root}/ran.txt; echo $V > {{out}}/out.txt'],"
            + f" from: {{data: a}}, matrix: {{env: [{values}]}}}}\n"
            + "  all: {kind: command, command: [sh, -c, 'for d; do cat $d/out.txt; done > {out}/all', x, '{data}'],"
            + " from: {data: [m]}}\n"
        )

    write("{one: {V: first}}, {two: {V: second}}")
    sandbox.ok("-n", "2")
    assert sandbox.ran() == ["a", "m", "m"]
    assert (sandbox.root / "cache/latest/s/m@two/out.txt").read_text() == "second\n"
    assert (sandbox.root / "cache/latest/s/all/all").read_text() == "first\nsecond\n"
    write("{one: {V: first}}, {two: {V: second}}, {three: {V: third}}")
    sandbox.ok("s:m@three")
    assert sandbox.ran() == ["m"]
    sandbox.ok("s:m")
    assert sandbox.ran() == []


def test_an_artifact_of_many_files_is_recorded_whole(sandbox: Sandbox) -> None:
    script = "for n in $(seq 600); do echo $n > {out}/file-with-a-rather-long-name-$n.txt; done"
    sandbox.spec(f"targets:\n  many: {{kind: command, command: [bash, -c, '{script}']}}\n")
    sandbox.ok()
    assert len(sandbox.json("show", "s:many")["files"]) == 600
    assert sandbox.states() == {"s:many": "fresh"}
    assert sandbox.json("audit")["ok"]


def test_a_script_a_row_and_a_name(sandbox: Sandbox) -> None:
    def write(rows: str) -> None:
        command = "{kind: command, command: [sh, make.sh, '{out}'], files: [make.sh]}"
        data = f"{{kind: dataset, sources: [{{path: {rows}}}], split: {{eval: 0.4}}, min_chars: 1}}"
        sandbox.spec(f"targets:\n  made: {command}\n  data: {data}\n")

    sandbox.file("specs/make.sh", "echo 1 > $1/x\n")
    rows = sandbox.file("specs/rows.jsonl", "".join(f'{{"text": "row number {n} of the file"}}\n' for n in range(12)))
    write("rows.jsonl")
    sandbox.ok()
    sandbox.file("specs/make.sh", "echo 2 > $1/x\n")
    assert sandbox.states() == {"s:made": "stale", "s:data": "fresh"}
    text = rows.read_text()
    rows.write_text(text.replace("number 3", "number three"))
    assert sandbox.states() == {"s:made": "stale", "s:data": "stale"}
    rows.write_text(text)
    rows.rename(rows.with_name("renamed.jsonl"))
    write("renamed.jsonl")
    assert sandbox.states() == {"s:made": "stale", "s:data": "fresh"}
