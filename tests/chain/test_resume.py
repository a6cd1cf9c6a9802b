"""What an ended attempt leaves: the next one at the same key goes on from it, and no other attempt ever does."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingot.core import checkpoints
from ingot.core.staging import Staging
from ingot.errors import Busy
from projectkit import DOIT, Sandbox

#: Six steps, each noted when it is done; it stops after the third where the project holds a file ``stop``.
PROGRAM = """
cp=$1 root=$2
for step in 1 2 3 4 5 6; do
  if [ ! -e $cp/$step ]; then
    echo $step >> $root/ran.txt; echo $3$step > $cp/.new; mv $cp/.new $cp/$step
  fi
  if [ $step = 3 ] && [ -e $root/stop ]; then
    case $(cat $root/stop) in
      fail) exit 7;;
      worker) kill -9 $PPID; sleep 60;;
      wait) touch $root/there; sleep 60;;
    esac
  fi
done
cat $cp/? > $4/out.txt
"""
ALL = list("123456")


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    made = Sandbox.make(tmp_path)
    made.file("specs/steps.sh", PROGRAM)
    target(made)
    return made


def target(sandbox: Sandbox, word: str = "x") -> None:
    command = f'[sh, steps.sh, "{{checkpoints}}", {sandbox.root}, {word}, "{{out}}"]'
    sandbox.spec(f"targets:\n  long: {{kind: command, command: {command}, files: [steps.sh]}}\n")


def stop(sandbox: Sandbox, how: str | None) -> None:
    (sandbox.root / "stop").unlink(missing_ok=True)
    if how is not None:
        sandbox.file("stop", how)


def failed(sandbox: Sandbox, how: str, *arguments: str) -> str:
    """Run doit, whose target stops after its third step; what it printed."""
    stop(sandbox, how)
    done = sandbox.doit(*arguments)
    stop(sandbox, None)
    assert done.returncode != 0
    return done.stdout + done.stderr


def folders(sandbox: Sandbox) -> list[Path]:
    return sorted((sandbox.root / "cache" / "checkpoints").glob("*/*/"))


def result(sandbox: Sandbox, target: str = "long") -> str:
    return (sandbox.root / "cache" / "latest" / "s" / target / "out.txt").read_text()


@pytest.mark.parametrize("how", ["fail", "worker"])
def test_the_next_run_goes_on_and_leaves_nothing(sandbox: Sandbox, how: str) -> None:
    printed = failed(sandbox, how)
    assert sandbox.ran() == ["1", "2", "3"]
    assert "kept: 3 checkpoints, the newest of" in " ".join(printed.split())
    sandbox.ok()
    assert sandbox.ran() == ["4", "5", "6"]
    assert result(sandbox) == "".join(f"x{step}\n" for step in ALL)
    assert list((sandbox.root / "cache" / "checkpoints").iterdir()) == []
    assert sandbox.json("show", "s:long")["timings"]["resumed_checkpoints"] == 3
    assert "since its last checkpoint (3 were there)" in sandbox.ok("show", "s:long")
    sandbox.ok("forget")
    predicted = sandbox.json("plan")["targets"][0]["predicted"]
    assert (predicted["wall_s"], predicted["n"]) == (None, 1), "half a build says nothing of how long a whole one takes"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_doit_goes_on(sandbox: Sandbox, number: int) -> None:
    stop(sandbox, "wait")
    with subprocess.Popen([DOIT], cwd=sandbox.root, env=sandbox.env, stdout=subprocess.DEVNULL) as doit:
        until((sandbox.root / "there").exists)
        doit.send_signal(number)
    stop(sandbox, None)
    assert sandbox.ran() == ["1", "2", "3"]
    sandbox.ok()
    assert sandbox.ran() == ["4", "5", "6"]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_another_key_sees_nothing_and_takes_nothing_away(sandbox: Sandbox) -> None:
    failed(sandbox, "fail")
    target(sandbox, "y")
    sandbox.ran()
    sandbox.ok()
    assert sandbox.ran() == ALL
    assert result(sandbox) == "".join(f"y{step}\n" for step in ALL)
    target(sandbox, "x")
    sandbox.ok()
    assert sandbox.ran() == ["4", "5", "6"]


def test_a_build_that_is_wanted_again_begins_anew(sandbox: Sandbox) -> None:
    failed(sandbox, "fail")
    (folder,) = folders(sandbox)
    sandbox.ok()
    # As a crash between the commit and the drop leaves it.
    folder.mkdir(parents=True)
    for step in ALL:
        (folder / step).write_text(f"x{step}\n")
    sandbox.ran()
    sandbox.ok("-a")
    assert sandbox.ran() == ALL
    assert not folder.exists()


def test_what_a_recorded_build_left_is_dropped_by_a_run_that_builds_nothing(sandbox: Sandbox) -> None:
    failed(sandbox, "fail")
    (folder,) = folders(sandbox)
    sandbox.ok()
    folder.mkdir(parents=True)
    (folder / "1").write_text("rubbish")
    sandbox.ok()
    assert not folder.parent.exists()


def test_plan_and_doctor_tell_what_is_kept(sandbox: Sandbox) -> None:
    assert sandbox.json("plan")["targets"][0]["resumes"] is None
    failed(sandbox, "fail")
    (item,) = sandbox.json("plan")["targets"]
    assert (item["state"], item["resumes"]["checkpoints"]) == ("stale", 3)
    assert abs(item["resumes"]["written"] - time.time()) < 60
    assert "never built; resumes from 3 checkpoints, the newest of" in sandbox.ok("plan")
    assert "s:long goes on from 3 checkpoints" in sandbox.doit("doctor").stdout
    target(sandbox, "y")
    assert sandbox.json("plan")["targets"][0]["resumes"] is None
    told = sandbox.doit("doctor").stdout
    assert "of s:long as it was before its spec changed" in told
    assert "goes on from" not in told
    fix = next(line for line in told.splitlines() if "fix: rm -r cache/checkpoints/" in line).partition("fix: ")[2]
    subprocess.run(fix, shell=True, cwd=sandbox.root, check=True)
    assert folders(sandbox) == []
    assert "checkpoints" not in sandbox.doit("doctor").stdout


def test_a_forced_build_that_was_ended_goes_on(sandbox: Sandbox) -> None:
    sandbox.ok()
    sandbox.ran()
    sandbox.ok("forget", "s:long")
    failed(sandbox, "fail")
    assert sandbox.ran() == ["1", "2", "3"]
    sandbox.ok()
    assert sandbox.ran() == ["4", "5", "6"]
    assert sandbox.json("show", "s:long")["observed"]["agrees"] is True


# --- the folder itself -----------------------------------------------------------------------------------------------

KEY = "a" * 64


@pytest.fixture
def staging(tmp_path: Path) -> Iterator[Staging]:
    """A staging folder whose lock a process holds."""
    root = tmp_path / "staging" / "00aa"
    root.mkdir(parents=True)
    descriptor = os.open(root.with_suffix(".lock"), os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield Staging(root, descriptor)
    os.close(descriptor)


def test_nobody_is_given_the_folder_while_a_process_of_an_ended_attempt_lives(
    tmp_path: Path, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.begin(tmp_path, KEY, 0, staging, "s:t")
    monkeypatch.setattr(checkpoints, "_PATIENCE_S", 0.05)
    with pytest.raises(Busy, match="still runs"):
        checkpoints.begin(tmp_path, KEY, 0, Staging(tmp_path / "staging" / "00bb", -1), "s:t")
    fcntl.flock(staging.lock_fd, fcntl.LOCK_UN)
    checkpoints.begin(tmp_path, KEY, 0, Staging(tmp_path / "staging" / "00bb", -1), "s:t")


def test_links_in_its_place_lead_nowhere(tmp_path: Path, staging: Staging) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    place = tmp_path / "checkpoints" / KEY
    place.parent.mkdir()
    place.symlink_to(elsewhere)
    folder = checkpoints.begin(tmp_path, KEY, 0, staging, "s:t")
    assert folder.resolve().is_relative_to(tmp_path / "checkpoints")
    folder.rmdir()
    folder.symlink_to(elsewhere)
    staging_of_next = Staging(tmp_path / "staging" / "00bb", -1)
    fcntl.flock(staging.lock_fd, fcntl.LOCK_UN)
    assert not checkpoints.begin(tmp_path, KEY, 0, staging_of_next, "s:t").is_symlink()
    (place / "9").symlink_to(elsewhere)
    checkpoints.drop(tmp_path, KEY)
    assert (elsewhere / "precious").exists()
    assert not place.exists()


def test_what_is_unreadable_names_nobody(tmp_path: Path, staging: Staging) -> None:
    checkpoints.begin(tmp_path, KEY, 0, staging, "s:t")
    (tmp_path / "checkpoints" / KEY / "attempt.json").write_bytes(b"\0\0\0")
    folder = checkpoints.begin(tmp_path, KEY, 0, staging, "s:t")
    (folder / "step-1").mkdir()
    (folder / ".half").mkdir()
    found = checkpoints.kept(tmp_path, KEY, 0)
    assert found is not None
    assert (found.target, found.count) == ("s:t", 1)
    assert checkpoints.kept(tmp_path, KEY, 1) is None
