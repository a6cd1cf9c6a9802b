"""``doit plan``: fates, reasons, gates, and JSON that other programs rely on."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from ingot import registry
from ingot.core.locks import is_held
from projectkit import DOIT, Sandbox
from recordkit import append, copied, receipts, simple

ABC = "targets:\n" + simple("a") + simple("b", depends="a") + simple("c", content="c")


@pytest.fixture
def fresh(sandbox: Sandbox) -> Sandbox:
    """a → b, and c beside them; nothing is built."""
    sandbox.spec(ABC)
    return sandbox


@pytest.fixture(scope="module")
def all_built(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    sandbox = Sandbox.make(tmp_path_factory.mktemp("abc"))
    sandbox.spec(ABC)
    sandbox.ok()
    return sandbox


@pytest.fixture
def built(all_built: Sandbox, tmp_path: Path) -> Sandbox:
    """The same, built."""
    return copied(all_built, tmp_path)


def test_json_has_the_documented_fields(fresh: Sandbox) -> None:
    data = fresh.json("plan")
    assert data["format"] == 1
    a, b, c = data["targets"]
    assert a | {"key": None} == {
        "target": "s:a",
        "kind": "command",
        "state": "stale",
        "present": False,
        "reasons": [{"code": "never_built", "detail": "never built"}],
        "key": None,
        "digest": None,
        "gate": None,
        "gates": [],
        "resumes": None,
        "predicted": None,
        "at_least": None,
        "cost": None,
        "budget": None,
    }
    assert len(a["key"]) == 64
    assert (b["state"], b["key"], b["reasons"][0]["code"]) == ("waiting", None, "input_stale")
    assert c["state"] == "stale"


def test_what_is_built_is_present_with_key_and_digest(built: Sandbox) -> None:
    for item in built.json("plan")["targets"]:
        assert (item["state"], item["present"], item["reasons"]) == ("fresh", True, [])
        assert item["digest"] == registry.latest(item["target"], built.root)["digest"]
    assert "all 3 targets are fresh" in built.ok("plan")


def test_what_would_be_built_is_counted_in_words(fresh: Sandbox) -> None:
    assert "2 targets would be built; 1 waits for them and is built only if inputs change\n" in fresh.ok("plan")
    assert "1 target would be built\n" in fresh.ok("plan", "s:c")
    fresh.ok("s:c")
    assert "the target is fresh; doit would build nothing\n" in fresh.ok("plan", "s:c")


def test_planning_builds_nothing_and_begins_no_log(fresh: Sandbox) -> None:
    fresh.ok("plan")
    assert not (fresh.root / "cache" / "objects").exists()
    assert not (fresh.root / "registry").exists()


def test_a_name_means_the_target_and_what_it_is_built_from(fresh: Sandbox) -> None:
    assert [item["target"] for item in fresh.json("plan", "s:b")["targets"]] == ["s:a", "s:b"]
    assert [item["target"] for item in fresh.json("plan", "s:c", "s:a")["targets"]] == ["s:a", "s:c"]
    assert len(fresh.json("plan", "s")["targets"]) == 3
    assert [item["target"] for item in fresh.json("plan", "s:[ac]*")["targets"]] == ["s:a", "s:c"]


def test_a_matrix_is_named_as_a_whole(sandbox: Sandbox) -> None:
    sandbox.spec(
        "targets:\n  m: {kind: command, command: [sh, -c, 'echo $X > {out}/o'], "
        "matrix: {env: [{one: {X: '1'}}, {two: {X: '2'}}]}}\n"
    )
    names = [item["target"] for item in sandbox.json("plan", "s:m")["targets"]]
    assert len(names) == 2
    assert [item["target"] for item in sandbox.json("plan", names[1])["targets"]] == [names[1]]


def test_what_differs_is_named(built: Sandbox) -> None:
    built.spec(ABC.replace("echo x", "echo y", 1))
    text = built.ok("plan")
    assert "command[2] echo x" in text
    assert "waits for a" in text
    assert "1 target would be built; 1 waits for it and is built only if inputs change (1 fresh)\n" in text


def test_gates_are_judged_from_what_is_recorded(built: Sandbox) -> None:
    gates = "gates:\n  a.bytes: {max: 1}\n  b.bytes: {min: 4, max: 4}\n  c.bytes: {max: 9}\n"
    built.spec(ABC.replace("echo c", "echo cc") + gates)
    judged = {item["target"]: item["gate"] for item in built.json("plan")["targets"]}
    assert judged == {"s:a": "fail", "s:b": "pass", "s:c": "unknown"}, "c is stale: nothing is known of it as it is now"
    text = built.ok("plan")
    assert "gate: a.bytes ≤ 1: FAIL at 2" in text


def test_a_missing_program_is_named_before_anything_runs(sandbox: Sandbox) -> None:
    sandbox.spec(
        "targets:\n  a: {kind: command, command: [sh, -c, 'echo > {out}/o'], tools: {nope: [no-such-program-x, -v]}}\n"
    )
    text = sandbox.ok("plan")
    assert "doit would refuse: E-MISSING-TOOL: not everything that the stale targets need is installed" in text
    assert "nope" in text


def test_a_target_that_another_process_builds_is_building(fresh: Sandbox) -> None:
    (item, *_rest) = fresh.json("plan")["targets"]
    locks = fresh.root / "cache" / "locks"
    locks.mkdir(parents=True)
    with (locks / f"{item['key']}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (item, *_rest) = fresh.json("plan")["targets"]
        assert item["state"] == "building"
        assert "1 is being built by another process" in fresh.ok("plan")
    (item, *_rest) = fresh.json("plan")["targets"]
    assert item["state"] == "stale"


@pytest.fixture
def asked(built: Sandbox) -> Sandbox:
    """a stale, b waiting for it, and a target of which nothing is known; what a and b took is as the log says."""
    for target, seconds, memory, size in (("s:a", 100.0, 2 * 10**9, 40 * 10**6), ("s:b", 80.0, 10**9, 80 * 10**6)):
        like = receipts(built)[target]
        timings = like["timings"] | {"wall_s": seconds, "peak_anon_bytes": memory}
        for _ in range(3):
            append(built, target, timings=timings, files=[{**like["files"][0], "size": size}])
    built.spec(ABC.replace("echo x", "echo y", 1) + simple("unheard", content="of"))
    return built


def test_what_a_run_will_take_is_predicted(asked: Sandbox) -> None:
    data = asked.json("plan")
    predicted = {item["target"]: item["predicted"] for item in data["targets"]}
    assert predicted["s:c"] is None, "fresh"
    assert predicted["s:unheard"] is None, "no history yet"
    assert predicted["s:a"] == {
        "wall_s": 100.0, "peak_anon_bytes": 2 * 10**9, "bytes": 40 * 10**6, "scratch_bytes": 0, "n": 4,
        "basis": "same_target",
    }  # fmt: skip
    assert (predicted["s:b"]["basis"], predicted["s:b"]["n"]) == ("same_parameters", 4)
    assert data["totals"]["targets"] == 3
    assert data["totals"]["unknown"] == ["s:unheard"]
    assert data["totals"]["wall_s"] == 100.0 + predicted["s:b"]["wall_s"]
    assert data["memory"]["needed_bytes"] == 2 * 10**9
    assert data["memory"]["at"] == ["s:a"]
    assert data["disk"]["needed_bytes"] == 40 * 10**6 + predicted["s:b"]["bytes"]
    assert data["disk"]["free_bytes"] > data["disk"]["reserve_bytes"] > 0


def test_a_pipe_gets_all_columns_and_a_total(asked: Sandbox) -> None:
    lines = asked.ok("plan").splitlines()
    assert lines[0].split() == ["target", "kind", "state", "time", "memory", "disk", "builds", "why"]
    cells = {line.split()[0]: line for line in lines[1:5]}
    assert "~2 min  ~2.0 GB  ~40.0 MB       4  command[2] echo x" in cells["s:a"]
    assert cells["s:c"].split() == ["s:c", "command", "fresh"]
    assert cells["s:unheard"].split() == ["s:unheard", "command", "stale", "?", "?", "?", "?", "never", "built"]
    (total,) = [line for line in lines if line.startswith("predicted: ")]
    assert re.fullmatch(
        r"predicted: about 3 min, peak 2.0 GB, disk \+\d+.\d MB at least, .* free \(from 4 builds each\)", total
    )
    assert "no history yet, and not counted: s:unheard" in lines
    assert "3 min of work, peak 2.0 GB" in asked.ok("plan", "-n", "2")
    assert "at most" in asked.ok("plan", "s:b")


@pytest.mark.parametrize(("columns", "titles"), [(80, ["time"]), (130, ["time", "memory", "disk", "builds"])])
def test_a_terminal_gets_what_it_has_room_for(asked: Sandbox, columns: int, titles: list[str]) -> None:
    lines = on_terminal(asked, columns, "plan").splitlines()
    assert lines[0].split() == ["target", "kind", "state", *titles, "why"]
    assert max(len(line.rstrip()) for line in lines) <= columns
    assert any(line.startswith("s:a") and "~2 min" in line for line in lines)


def test_without_any_history_there_is_no_column_of_question_marks(fresh: Sandbox) -> None:
    text = fresh.ok("plan")
    assert text.splitlines()[0].split() == ["target", "kind", "state", "why"]
    assert "predicted: nothing, there is no history yet\n" in text
    assert "?" not in text


def test_what_is_fresh_is_not_predicted(built: Sandbox) -> None:
    assert "predicted" not in built.ok("plan")


def test_predicted_and_actual_stand_side_by_side(asked: Sandbox) -> None:
    asked.ok()
    (entry,) = [entry for entry in asked.entries("build") if entry["target"] == "s:a" and entry["predicted"]]
    assert entry["predicted"]["wall_s"] == 100.0
    assert entry["bytes"] == 2
    assert entry["wall_s"] < 100
    assert entry["peak_anon_bytes"] == receipts(asked)["s:a"]["timings"]["peak_anon_bytes"]
    text = asked.ok("history", "s:a")
    assert re.search(r"\d s \(predicted 1 min 40 s\)", text)
    assert "(predicted 2.0 GB)" in text
    assert "2 B (predicted 40.0 MB)" in text
    assert "(predicted 1 min 40 s)" in on_terminal(asked, 110, "history", "s:a")
    assert "predicted" not in on_terminal(asked, 80, "history", "s:a")
    shown = asked.ok("show", "s:a")
    assert "2 B (predicted 40.0 MB) in 1 file" in shown
    assert "(predicted 1 min 40 s)" in shown
    assert "(predicted 2.0 GB) anonymous" in shown
    assert "predicted from  4 builds of the same target" in shown
    assert asked.json("show", "s:a")["predicted"]["n"] == 4
    assert "predicted" not in asked.ok("show", "s:unheard")


def on_terminal(sandbox: Sandbox, columns: int, *arguments: str) -> str:
    """What a command prints on a terminal of that width, without its colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen([DOIT, *arguments], cwd=sandbox.root, env=sandbox.env, stdout=theirs, stderr=theirs)
    os.close(theirs)
    found = b""
    with suppress(OSError):
        while block := os.read(ours, 65536):
            found += block
    os.close(ours)
    assert process.wait() == 0, found
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", found.decode()).replace("\r\n", "\n")


def test_asking_for_a_lock_does_not_take_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_held(path)
    assert not path.exists()
    path.touch()
    assert not is_held(path)
    descriptor = os.open(path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert is_held(path)
    os.close(descriptor)
