"""``doit unpack`` as a person uses it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ingot.core import plan
from ingot.core.key import NOT_INSTALLED
from ingot.core.plan import tool_version
from projectkit import Sandbox
from recordkit import copied
from stagekit import digest_of

SPEC = """\
targets:
  files: {kind: fetch, path: ../data}
  packed: {kind: pack, from: {artifact: files}}
  level: {kind: pack, from: {artifact: files}, matrix: {level: [1, 3]}}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    sandbox = Sandbox.make(tmp_path_factory.mktemp("unpack"))
    sandbox.file("data/a/text.txt", "what is said again and again " * 200)
    sandbox.file("data/b.txt", "b")
    sandbox.spec(SPEC)
    sandbox.ok("s:packed")
    return sandbox


def test_a_target_and_a_folder(built: Sandbox, tmp_path: Path) -> None:
    sandbox = copied(built, tmp_path)
    said = sandbox.ok("unpack", "s:packed", "back")
    digest = digest_of(sandbox.root / "data")
    assert said.splitlines() == [
        "unpacked 2 files into back: 5.8 kB out of 46 B",
        f"digest {digest}, every file verified",
    ]
    assert digest_of(sandbox.root / "back") == digest
    told = sandbox.json("unpack", "cache/latest/s/packed", "again")
    expected = {"format": 1, "folder": "again", "artifact": digest, "files": 2, "bytes": 5801, "packed_bytes": 46}
    assert told == expected
    assert digest_of(sandbox.root / "again") == digest
    assert "verdict  saves 8" in sandbox.ok("show", "s:packed")
    assert "no problem found" in sandbox.ok("audit")


def test_it_works_outside_a_project(built: Sandbox, tmp_path: Path) -> None:
    packed = (built.root / "cache/latest/s/packed").resolve()
    outside = Sandbox(tmp_path, tmp_path / "home")
    outside.ok("unpack", str(packed), str(tmp_path / "back"))
    assert digest_of(tmp_path / "back") == digest_of(built.root / "data")


def test_wrong_use(built: Sandbox, tmp_path: Path) -> None:
    sandbox = copied(built, tmp_path)
    (sandbox.root / "full").mkdir()
    sandbox.file("full/mine", "x")
    for arguments, code in (
        (("s:packed",), "E-USAGE"),
        (("s:packed", "full"), "E-UNPACK-TARGET"),
        (("s:files", "back"), "E-UNPACK-KIND"),
        (("s:level@3", "back"), "E-NOT-BUILT"),
        (("s:nothing", "back"), "E-TARGET"),
        (("no/such/folder", "back"), "E-UNPACK-SOURCE"),
    ):
        done = sandbox.doit("unpack", *arguments)
        assert (done.returncode, done.stdout, done.stderr.partition(":")[0]) == (2, "", code)
    done = sandbox.doit("unpack", "data", "back")
    assert (done.returncode, done.stderr.partition(":")[0]) == (3, "E-NOT-PACKED")
    assert not (sandbox.root / "back").exists()


@pytest.mark.fault("B3", "a packed artifact is damaged in the store: it is not unpacked")
@pytest.mark.parametrize("name", ["pack.json", "zstd/a/text.txt.zst", "stored/b.txt"])
def test_what_is_damaged_in_the_store(name: str, built: Sandbox, tmp_path: Path) -> None:
    sandbox = copied(built, tmp_path)
    path = (sandbox.root / "cache/latest/s/packed").resolve() / name
    os.chmod(path, 0o644)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = sandbox.doit("unpack", "s:packed", "back")
    assert (done.returncode, done.stderr.partition(":")[0]) == (4, "E-OBJECT-DAMAGED")
    assert "build it again: doit s:packed" in done.stderr
    os.chmod(path.parent, 0o755)
    path.unlink()
    assert sandbox.doit("unpack", "s:packed", "back").returncode == 4
    assert sorted(it.name for it in sandbox.root.iterdir() if "back" in it.name) == []


def test_an_evicted_artifact(built: Sandbox, tmp_path: Path) -> None:
    sandbox = copied(built, tmp_path)
    folder = (sandbox.root / "cache/latest/s/packed").resolve()
    os.chmod(folder.parent, 0o755)
    folder.rename(tmp_path / "elsewhere")
    done = sandbox.doit("unpack", "s:packed", "back")
    assert (done.returncode, done.stderr.partition(":")[0]) == (4, "E-OBJECT-MISSING")


def test_the_library_inside_of_a_distribution_is_in_the_key(built: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = built.json("show", "s:packed")["key_parts"]["tools"]
    assert set(tools) == {"libzstd", "zstandard"}
    assert tools["libzstd"] == tool_version("libzstd")
    assert tools["libzstd"].count(".") == 2
    monkeypatch.setitem(plan._LIBRARIES, "libnone", ("no_such_module", "VERSION"))
    assert tool_version("libnone") == NOT_INSTALLED
