"""``doit reproduce`` and ``audit --sample``: what comes out again is compared and recorded; nothing else changes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ingot.core.statement import decision_of, decision_statement
from projectkit import DOIT, Sandbox
from recordkit import append, codes, copied, publish, receipts, registry_of

SPEC = """\
targets:
  files: {kind: fetch, path: ../data}
  packed: {kind: pack, from: {artifact: files}}
  noise:
    kind: command
    command: [python3, -c, "import json, random; json.dump({'n': random.random(), 's': 1}, open('{out}/n.json', 'w'))"]
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    sandbox = Sandbox.make(tmp_path_factory.mktemp("reproduce"))
    sandbox.file("data/text.txt", "said again " * 50)
    sandbox.spec(SPEC)
    sandbox.ok("s")
    return sandbox


@pytest.fixture
def built(template: Sandbox, tmp_path: Path) -> Sandbox:
    return copied(template, tmp_path)


def reproduced(sandbox: Sandbox) -> list[dict[str, Any]]:
    return [decision_of(entry.statement) for entry in registry_of(sandbox).entries() if entry.type == "reproduced"]


def test_the_same_bytes_and_how_far_others_are_apart(built: Sandbox) -> None:
    before = receipts(built)
    told = built.json("reproduce", "s")
    same = {it["target"]: it["agrees"] for it in told["targets"]}
    assert same == {"s:files": True, "s:packed": True, "s:noise": False}
    (noise,) = [it for it in told["targets"] if it["target"] == "s:noise"]
    assert noise["promised"] == "device_dependent"
    assert (noise["apart"]["n.json"]["values"], noise["apart"]["n.json"]["of"]) == (1, 2)
    assert noise["apart"]["n.json"]["where"] == "/n"
    assert 0 < noise["apart"]["n.json"]["relative"] <= 1
    # What came out is recorded and nothing is in force that was not: no target is stale, every artifact is what it was.
    assert [(it["target"], it["agrees"]) for it in reproduced(built)] == list(same.items())
    assert reproduced(built)[2]["found"] == noise["found"] != noise["digest"]
    assert receipts(built) == before
    assert "nothing to do" in built.ok("s")
    assert codes(built) == []
    assert "built again beside it: the same bytes" in built.ok("history", "s:packed")
    assert "1 of its files differs" in built.ok("history", "s:noise")


@pytest.mark.fault("G1", "a deterministic kind gives other bytes than are on record for its key")
def test_a_broken_promise_is_exit_code_1(built: Sandbox) -> None:
    digest, files = publish(built, {"pack.json": b"{}", "b.zst": b"x"})
    append(built, "s:packed", digest=digest, files=[record.to_dict() for record in files])
    done = built.doit("reproduce", "s:packed")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "DIFFERS" in done.stdout
    assert "promise the same bytes" in done.stdout
    assert "b.zst: did not come out again" in done.stdout
    assert reproduced(built)[-1]["agrees"] is False
    sampled = built.doit("audit", "--sample", "100%")
    # The artifact that was planted is no pack: audit says so first, and samples nothing of a damaged project.
    assert sampled.returncode == 5


def test_keep_leaves_what_came_out_differently(built: Sandbox, tmp_path: Path) -> None:
    built.ok("reproduce", "s:noise", "s:files", "--keep", str(tmp_path / "kept"))
    assert [str(path.relative_to(tmp_path / "kept")) for path in (tmp_path / "kept").rglob("*") if path.is_file()] == [
        "s/noise/n.json"
    ]


def test_a_place_that_cannot_keep_is_refused_before_anything_is_built(built: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "kept" / "s" / "noise").mkdir(parents=True)
    before = len(reproduced(built))
    for keep, said in ((tmp_path / "kept", "is there already"), (built.root / "dodo.py", "is not a folder")):
        done = built.doit("reproduce", "s:noise", "--keep", str(keep))
        assert (done.returncode, done.stderr.startswith("E-FILE: "), said in done.stderr) == (2, True, True)
    assert len(reproduced(built)) == before


@pytest.mark.parametrize("command", [("reproduce", "s:files"), ("audit", "--sample", "1%")])
def test_a_log_that_cannot_be_written_is_found_before_anything_is_built(
    built: Sandbox, command: tuple[str, ...]
) -> None:
    (log,) = (built.root / "registry").glob("*/log.jsonl")
    log.chmod(0o444)
    drop = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []
    if drop and subprocess.run([*drop, "true"], check=False, capture_output=True).returncode:
        pytest.skip("root writes to what is read-only, and setpriv is not there to forbid it")
    call = [*drop, DOIT, *command]
    done = subprocess.run(call, cwd=built.root, env=built.env, capture_output=True, text=True, check=False)
    assert (done.returncode, f"permission denied: {log}" in done.stderr) == (7, True)
    assert "what is built could not be recorded" in done.stderr


def test_where_two_files_are_apart_is_said(built: Sandbox) -> None:
    said = built.ok("reproduce", "s:noise")
    assert "n.json: 1 of 2 values differ, relative " in said
    assert " (/n)\n" in said


def test_a_sample_is_built_again_and_recorded(built: Sandbox) -> None:
    told = built.json("audit", "--sample", "34%")
    assert len(told["reproduced"]) == 2
    assert len(reproduced(built)) == 2
    assert "2 of 2 sampled" in built.ok("audit", "--sample", "34%") or "of 2 sampled" in built.ok(
        "audit", "--sample=34"
    )
    (path,) = (built.root / "cache/objects").glob(f"*/{built.json('show', 's:noise')['digest']}/*")
    path.chmod(0o644)
    path.write_text("other")
    done = built.doit("audit", "--sample", "100%")
    assert (done.returncode, done.stdout.endswith("no result was sampled: what is wrong comes first\n")) == (4, True)
    built.spec("targets: [\n", "bad")
    done = built.doit("audit", "--sample", "100%")
    assert (done.returncode, done.stdout, "specs/bad.yaml" in done.stderr) == (2, "", True)
    for wrong in ("0%", "101%", "some", "-5%"):
        done = built.doit("audit", f"--sample={wrong}")
        assert (done.returncode, "a share such as 5%" in done.stderr) == (2, True)


def test_what_is_not_up_to_date_is_not_compared(built: Sandbox) -> None:
    built.spec(SPEC.replace("{kind: pack,", "{kind: pack, level: 3,"))
    done = built.doit("reproduce", "s:packed")
    assert (done.returncode, "s:packed is stale: doit s:packed builds it" in done.stderr) == (2, True)
    told = built.json("reproduce", "s")
    assert told["left_out"] == [{"target": "s:packed", "state": "stale"}]
    assert built.doit("reproduce").returncode == 2
    assert built.doit("reproduce", "s:no").returncode == 2


@pytest.mark.fault("T5", "a reproduced entry signed with the key that is not true of its digests or its key")
@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"agrees": False}, "reproduced_differs"),
        ({"found": "a" * 64}, "reproduced_differs"),
        ({"key": "b" * 64}, "reproduced_differs"),
        ({"digest": "c" * 64}, "lineage_broken"),
        ({"found": 7}, "entry_unreadable"),
    ],
)
def test_a_lie_about_a_reproduction_is_found(built: Sandbox, change: dict[str, Any], code: str) -> None:
    built.ok("reproduce", "s:packed")
    assert codes(built) == []
    (entry,) = reproduced(built)
    rest = {name: value for name, value in entry.items() if name != "type"} | change
    registry_of(built).append([decision_statement("reproduced", rest)])
    assert code in codes(built)
