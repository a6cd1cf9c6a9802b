"""``doit registry`` as a person uses it, and as somebody who has nothing but a proof and a public key."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from projectkit import DOIT, REPO, Sandbox
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


def test_the_lines_of_the_page_on_proofs_give_the_digest_without_ingot(built: Sandbox, tmp_path: Path) -> None:
    page = (REPO / "docs/proofs.md").read_text()
    entry, folder = re.findall(r"```\n(sed .*)\n(cd .*)\n```", page)[0]
    built.ok("registry", "proof", "s:two", "--output", str(tmp_path / "gguf@Q4_0.tlog-proof"))
    shutil.copytree(built.root / "cache/latest/s/two", tmp_path / "gguf")
    said = [subprocess.check_output(["sh", "-c", line], cwd=tmp_path, text=True) for line in (entry, folder)]
    digest = json.loads(said[0])["subject"][0]["digest"]["dirHash1"]
    assert said[1].split()[0] == digest == built.json("show", "s:two")["digest"]


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


def test_a_checkpoint_that_came_by_mail_is_the_same(built: Sandbox, tmp_path: Path) -> None:
    sandbox = copied(built, tmp_path)
    text = key_of(sandbox).with_name("checkpoint").read_text()
    (sandbox.root / "mailed").write_bytes(b"\r\n" + text.strip().replace("\n", "\r\n").encode() + b"  \r\n\r\n")
    told = sandbox.json("registry", "consistency", "mailed")
    sandbox.ok("registry", "verify", told["file"], "--since", "mailed")
    (sandbox.root / "mailed").write_bytes(text.replace("\n3\n", "\n2\n").encode())
    assert sandbox.doit("registry", "consistency", "mailed").returncode == 5


def test_tiles(built: Sandbox, tmp_path: Path) -> None:
    sandbox = copied(built, tmp_path)
    (log,) = sandbox.json("registry", "export", "out")["logs"]
    assert (sandbox.root / log["folder"] / "checkpoint").is_file()
    assert "3 entries as 2 tiles (0 new) and its checkpoint in out/" in sandbox.ok("registry", "export", "out")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("registry", "sing", "s:two"), 2, "does one of proof, verify, consistency, export"),
        (("registry",), 2, "usage: doit registry export FOLDER [--json]"),
        (("registry", "proof"), 2, "usage: doit registry proof SPEC:TARGET [--output FILE] [--json]"),
        (("registry", "proof", "s:two", "s:one"), 2, "takes one SPEC:TARGET, not 2"),
        (("registry", "proof", "s:two", "--key", "k"), 2, "doit registry proof has no option --key"),
        (("registry", "verify", "f", "--output", "k"), 2, "doit registry verify has no option --output"),
        (("registry", "proof", "s:two", "--output", "cache"), 2, "E-FILE: 'cache' is a folder"),
        (("registry", "proof", "s:two", "--output", "-", "--json"), 2, "both write to standard output"),
        (("registry", "export", "dodo.py"), 2, "E-FILE: 'dodo.py' is not a folder"),
        (("registry", "proof", "s:to"), 2, "did you mean s:two"),
        (("registry", "verify", "nowhere"), 2, "cannot be read"),
        (("registry", "verify", "specs/s.yaml"), 5, "E-PROOF: 'specs/s.yaml' is no proof: it begins neither"),
        (("registry", "verify", "/dev/zero"), 2, "cannot be read"),
        (("registry", "consistency", "specs/s.yaml"), 5, "E-REG-NOTE: 'specs/s.yaml' is not the signed checkpoint"),
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


def test_what_was_written_can_be_verified_by_the_line_that_is_shown(built: Sandbox, tmp_path: Path) -> None:
    sandbox = copied(built, tmp_path)
    shutil.copy(key_of(sandbox).with_name("checkpoint"), sandbox.root / "earlier one")
    for arguments in (("proof", "s:two"), ("consistency", "earlier one", "--output", "grown")):
        said = sandbox.ok("registry", *arguments)
        command = shlex.split(said.splitlines()[-1].removeprefix("  doit "))
        assert sandbox.ok(*command).startswith("holds: ")
        assert "--key" in command


def test_an_option_that_would_check_nothing_is_refused(built: Sandbox, tmp_path: Path) -> None:
    """A proof of the other kind must not pass for one that looked at the artifact, or at the earlier checkpoint."""
    sandbox = copied(built, tmp_path)
    checkpoint = key_of(sandbox).with_name("checkpoint")
    sandbox.ok("registry", "proof", "s:two", "--output", "one")
    sandbox.ok("registry", "consistency", str(checkpoint), "--output", "grown")
    for arguments in (
        ("one", "--since", str(checkpoint)),
        ("grown", "--since", str(checkpoint), "--artifact", "specs"),
    ):
        done = sandbox.doit("registry", "verify", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"E-USAGE: '{arguments[0]}' proves that ")


def test_a_key_that_is_none_is_said_and_never_repeated(built: Sandbox, tmp_path: Path) -> None:
    sandbox = copied(built, tmp_path)
    sandbox.ok("registry", "proof", "s:two", "--output", "one")
    (secret,) = (path for path in (built.home / "config").rglob("*") if path.is_file())
    text = secret.read_text().strip()
    for given in (str(secret), text, "a+b+c", "specs/s.yaml"):
        done = sandbox.doit("registry", "verify", "one", "--key", given)
        assert (done.returncode, done.stderr.startswith("E-KEY: ")) == (2, True)
        assert ("the SECRET key" in done.stderr) == (given in (str(secret), text))
        assert text[-12:] not in done.stderr
    plus = sandbox.root / "c++"
    plus.mkdir()
    shutil.copy(key_of(sandbox), plus)
    sandbox.ok("registry", "verify", "one", "--key", "c++/log.vkey")


def test_a_proof_of_another_log_names_both(built: Sandbox, tmp_path: Path) -> None:
    other = Sandbox.make(tmp_path)
    other.spec(SPEC)
    other.ok("s")
    other.ok("registry", "proof", "s:two", "--output", "one")
    mine, theirs = (f"ingot.local/{key_of(sandbox).parent.name}" for sandbox in (built, other))
    done = built.doit("registry", "verify", str(other.root / "one"), "--key", str(key_of(built)))
    assert done.returncode == 5
    assert f"E-REG-SIGNATURE: this is of the log {theirs}, and the key is that of {mine}" in done.stderr
    theirs_then = key_of(other).with_name("checkpoint")
    built.ok("registry", "consistency", str(key_of(built).with_name("checkpoint")), "--output", str(tmp_path / "grown"))
    done = built.doit("registry", "verify", str(tmp_path / "grown"), "--since", str(theirs_then))
    assert (done.returncode, f"in {theirs_then}\n" in done.stderr) == (5, True)
    done = built.doit("registry", "consistency", str(theirs_then))
    assert (done.returncode, f"here is {mine}" in done.stderr) == (2, True)


def test_what_a_file_is_instead_of_a_proof(built: Sandbox, tmp_path: Path) -> None:
    sandbox = copied(built, tmp_path)
    sandbox.ok("registry", "proof", "s:two", "--output", "one")
    whole = (sandbox.root / "one").read_bytes()
    for data, said in (
        (whole.replace(b"\n", b"\r\n"), "its line ends were changed on the way"),
        (key_of(sandbox).with_name("checkpoint").read_bytes(), "it is a checkpoint: doit registry consistency bad"),
        (b"", "is no proof"),
        (whole[:-20], "  in bad\n"),
        (whole.partition(b"\n\n")[0], "  in bad\n"),
    ):
        (sandbox.root / "bad").write_bytes(data)
        done = sandbox.doit("registry", "verify", "bad")
        assert (done.returncode, said in done.stderr) == (5, True), done.stderr


def test_a_proof_holds_although_the_log_here_was_changed_since(built: Sandbox, tmp_path: Path) -> None:
    sandbox = copied(built, tmp_path)
    sandbox.ok("registry", "proof", "s:two", "--output", "one")
    lines = key_of(sandbox).with_name("log.jsonl")
    lines.write_text(lines.read_text().replace("s:one", "s:eno"))
    assert sandbox.ok("registry", "verify", "one").startswith("holds: ")
    assert sandbox.doit("registry", "proof", "s:two").returncode == 5


def test_a_file_is_no_artifact(built: Sandbox, tmp_path: Path) -> None:
    sandbox = copied(built, tmp_path)
    sandbox.ok("registry", "proof", "s:two", "--output", "one")
    done = sandbox.doit("registry", "verify", "one", "--artifact", "cache/latest/s/two/out.txt")
    assert (done.returncode, "is a file, and an artifact is a folder" in done.stderr) == (2, True)


def test_without_a_log_there_is_nothing_to_export(sandbox: Sandbox) -> None:
    assert sandbox.ok("registry", "export", "out") == "nothing to export: this project has no log yet\n"
