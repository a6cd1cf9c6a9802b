"""``doit registry`` as a person uses it, and as somebody who has nothing but a proof and a public key."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from projectkit import DOIT, Sandbox
from recordkit import copied, simple

SPEC = f"targets:\n{simple('one')}{simple('two', content='y', depends='one')}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    sandbox = Sandbox.make(tmp_path_factory.mktemp("registry"))
    sandbox.spec(SPEC)
    sandbox.ok("s")
    return sandbox


def key_of(sandbox: Sandbox) -> Path:
    (key,) = (sandbox.root / "registry").glob("*/log.vkey")
    return key


def test_a_proof_lies_beside_the_link_and_holds(built: Sandbox, tmp_path: Path) -> None:
    sandbox = copied(built, tmp_path)
    told = sandbox.json("registry", "proof", "s:two")
    assert told["file"] == "cache/latest/s/two.tlog-proof"
    assert told["digest"] == sandbox.json("show", "s:two")["digest"]
    said = sandbox.ok("registry", "verify", told["file"], "--artifact", "cache/latest/s/two")
    assert "cache/latest/s/two is that artifact" in said
    found = sandbox.json("registry", "verify", told["file"])
    assert (found["target"], found["digest"], found["artifact_equal"]) == ("s:two", told["digest"], None)
    assert found["statement"]["predicate"]["buildDefinition"]["externalParameters"]["kind"] == "command"
    assert "nothing to do" in sandbox.ok("s")
    assert "no problem found" in sandbox.ok("audit")


def test_another_artifact_is_told_apart(built: Sandbox, tmp_path: Path) -> None:
    sandbox = copied(built, tmp_path)
    sandbox.ok("registry", "proof", "s:two")
    done = sandbox.doit("registry", "verify", "cache/latest/s/two.tlog-proof", "--artifact", "cache/latest/s/one")
    assert done.returncode == 1
    assert "is NOT that artifact" in done.stdout


def test_it_verifies_offline_with_the_public_key_alone(built: Sandbox, tmp_path: Path) -> None:
    """An empty folder, an empty environment and, where the system allows it, no network at all."""
    empty = tmp_path / "empty"
    empty.mkdir()
    built.ok("registry", "proof", "s:two", "--output", str(empty / "two.tlog-proof"))
    shutil.copy(key_of(built), empty / "log.vkey")
    isolate = ["unshare", "-rn"] if subprocess.run(["unshare", "-rn", "true"], check=False).returncode == 0 else []
    command = [*isolate, sys.executable, DOIT, "registry", "verify", "two.tlog-proof", "--key", "log.vkey"]
    done = subprocess.run(command, cwd=empty, env={"HOME": str(empty)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("holds: entry ")
    assert sorted(os.listdir(empty)) == ["log.vkey", "two.tlog-proof"]
    given = [*command[:-1], (empty / "log.vkey").read_text().strip()]
    assert subprocess.run(given, cwd=empty, env={}, capture_output=True, check=False).returncode == 0
    without = subprocess.run(command[:-2], cwd=empty, env={}, capture_output=True, text=True, check=False)
    assert without.returncode == 2
    assert "the public key of" in without.stderr


def test_the_log_grew_from_an_earlier_checkpoint(built: Sandbox, tmp_path: Path) -> None:
    sandbox = copied(built, tmp_path)
    (checkpoint,) = (sandbox.root / "registry").glob("*/checkpoint")
    shutil.copy(checkpoint, sandbox.root / "earlier")
    sandbox.spec(SPEC.replace("y", "z"))
    sandbox.ok("s")
    told = sandbox.json("registry", "consistency", "earlier")
    assert told["size"] > told["old"]
    found = sandbox.json("registry", "verify", told["file"], "--since", "earlier")
    assert (found["old"], found["size"]) == (told["old"], told["size"])
    assert sandbox.doit("registry", "verify", told["file"]).returncode == 2
    done = sandbox.doit("registry", "verify", told["file"], "--since", str(checkpoint))
    assert (done.returncode, "entries on" in done.stderr) == (5, True)


def test_tiles(built: Sandbox, tmp_path: Path) -> None:
    sandbox = copied(built, tmp_path)
    (log,) = sandbox.json("registry", "export", "out")["logs"]
    assert (sandbox.root / log["folder"] / "checkpoint").is_file()
    assert "(0 new)" in sandbox.ok("registry", "export", "out")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("registry", "sing", "s:two"), 2, "does one of proof, verify, consistency, export"),
        (("registry", "proof"), 2, "needs 2 arguments"),
        (("registry", "proof", "s:to"), 2, "did you mean s:two"),
        (("registry", "verify", "nowhere"), 2, "cannot be read"),
        (("registry", "verify", "specs/s.yaml"), 5, "E-PROOF"),
        (("registry", "verify", "/dev/zero"), 2, "cannot be read"),
        (("registry", "consistency", "specs/s.yaml"), 5, "E-REG-NOTE"),
    ],
)
def test_wrong_use(built: Sandbox, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = built.doit(*arguments)
    assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr


def test_json_of_a_proof_says_where_it_is(built: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "proof"
    told = json.loads(built.ok("registry", "proof", "s:one", "--output", str(path), "--json"))
    assert (told["file"], told["target"]) == (str(path), "s:one")
    assert built.ok("registry", "proof", "s:one", "--output", "-").startswith("c2sp.org/tlog-proof@v1\n")
