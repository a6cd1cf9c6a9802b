"""The golden vectors: formats as published in docs/formats.md, computed again with and without ingot."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ingot.core.digest import canonical_json, record_files, tree_digest, tree_preimage
from ingot.core.log import decode_line, encode_line, is_canonical
from ingot.core.merkle import leaf_hash, root_of
from ingot.core.note import Checkpoint, Note, SigningKey, VerifierKey
from ingot.core.statement import build_statement, decision_of, receipt_of, type_of

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden"
DIGESTS: dict[str, Any] = json.loads((GOLDEN / "digest.json").read_text(encoding="utf-8"))
ENTRIES: dict[str, Any] = json.loads((GOLDEN / "entry.json").read_text(encoding="utf-8"))
PAGE = (HERE.parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")
COMMAND = r"find . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0r sha256sum"


def each(vectors: dict[str, Any]) -> pytest.MarkDecorator:
    assert len(vectors["vectors"]) >= 5
    return pytest.mark.parametrize("vector", vectors["vectors"], ids=lambda vector: str(vector["name"]))


@each(DIGESTS)
def test_digest(tmp_path: Path, vector: dict[str, Any]) -> None:
    for name, text in vector["files"].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    records = record_files(tmp_path)
    assert tree_preimage((record.path, record.sha256) for record in records).decode() == vector["preimage"]
    assert tree_digest(records) == vector["digest"]
    assert hashlib.sha256(vector["preimage"].encode()).hexdigest() == vector["digest"]


@each(DIGESTS)
def test_digest_by_the_published_command(tmp_path: Path, vector: dict[str, Any]) -> None:
    if subprocess.run(["find", ".", "-maxdepth", "0", "-printf", ""], capture_output=True, check=False).returncode:
        pytest.skip("needs GNU find (the command uses -printf)")
    assert COMMAND in PAGE
    for name, text in vector["files"].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = subprocess.run(["bash", "-c", COMMAND], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.decode() == vector["preimage"]


@each(ENTRIES)
def test_entry(vector: dict[str, Any]) -> None:
    line = vector["line"].encode()
    assert encode_line(vector["statement"]) == line
    assert decode_line(line) == vector["statement"]
    assert is_canonical(line)
    assert leaf_hash(line).hex() == vector["leaf"] == hashlib.sha256(b"\0" + line).hexdigest()


@each(ENTRIES)
def test_entries_of_the_first_format_are_still_understood(vector: dict[str, Any]) -> None:
    statement = decode_line(vector["line"].encode())
    kind = type_of(statement)
    assert kind == vector["name"].split(",")[0].split(" ")[0]
    if kind == "build":
        assert canonical_json(build_statement(receipt_of(statement))).decode() == vector["line"]
    else:
        assert decision_of(statement)["time"].startswith("2026-11-20T")


def test_checkpoint() -> None:
    golden = ENTRIES["checkpoint"]
    root = root_of([leaf_hash(vector["line"].encode()) for vector in ENTRIES["vectors"][: golden["size"]]])
    assert root.hex() == golden["root"]
    note = Note.parse(golden["note"].encode())
    key = VerifierKey.parse(golden["vkey"])
    note.verify(key)
    point = Checkpoint.parse(note.text)
    assert (point.size, point.root) == (golden["size"], root)
    signing = SigningKey(key.name, bytes.fromhex(golden["seed"]))
    assert signing.sign(point.text()).decode() == golden["note"]


def test_the_page_shows_every_vector() -> None:
    for vector in DIGESTS["vectors"]:
        assert vector["digest"] in PAGE
        assert all(line in PAGE for line in vector["preimage"].splitlines())
    for vector in ENTRIES["vectors"]:
        assert vector["leaf"] in PAGE
        assert vector["line"] in PAGE
    for name in ("vkey", "root", "note"):
        assert ENTRIES["checkpoint"][name] in PAGE
