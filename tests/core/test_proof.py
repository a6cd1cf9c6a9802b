"""Proofs that stand alone: every entry, every earlier size, every changed byte; and a verifier that is not ours."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ingot.core.log import Log
from ingot.core.merkle import leaf_hash, root_of
from ingot.core.note import Checkpoint, SigningKey
from ingot.core.proof import ConsistencyProof, InclusionProof
from ingot.errors import RegistryDamaged
from registrykit import Project, project, selected

SIZE = 11


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, list[bytes]]:
    """A log of some entries, and the checkpoint that it had at each size."""
    made = project(tmp_path_factory.mktemp("proof"))
    checkpoints = [b""]
    for number in range(SIZE):
        made.registry().append([selected(number)])
        checkpoints.append(made.checkpoint().read_bytes())
    return made, checkpoints


def log_of(made: Project) -> Log:
    return Log(made.folder())


def verified_by_hand(data: bytes, vkey: str) -> bytes:
    """The entry that a ``.tlog-proof`` proves, by the words of the two RFCs and nothing of ingot's."""
    head, _, note = data.decode().partition("\n\n")
    header, extra, index_line, *steps = head.split("\n")
    assert header == "c2sp.org/tlog-proof@v1"
    entry, index = base64.b64decode(extra.split(" ")[1]), int(index_line.split(" ")[1])
    text, _, signature = note.rpartition("\n\n")
    name, _, encoded = vkey.split("+", 2)
    _dash, signer, blob = signature.strip().split(" ")
    assert signer == name
    public = Ed25519PublicKey.from_public_bytes(base64.b64decode(encoded)[1:])
    public.verify(base64.b64decode(blob)[4:], f"{text}\n".encode())
    origin, size, root = text.split("\n")
    assert origin == name
    node, last = hashlib.sha256(b"\x00" + entry).digest(), int(size) - 1
    for step in map(base64.b64decode, steps):
        if index & 1 or index == last:
            node = hashlib.sha256(b"\x01" + step + node).digest()
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            node = hashlib.sha256(b"\x01" + node + step).digest()
        index, last = index >> 1, last >> 1
    assert (last, node) == (0, base64.b64decode(root))
    return entry


def test_every_entry_is_proven_to_a_verifier_that_is_not_ours(grown: tuple[Project, list[bytes]]) -> None:
    log = log_of(grown[0])
    vkey, lines = log.vkey_path.read_text().strip(), log.lines_path.read_bytes().splitlines()
    assert len(lines) > SIZE  # the log's own first entry is one too
    for index, line in enumerate(lines):
        data = InclusionProof.of(log, index).to_bytes()
        assert verified_by_hand(data, vkey) == line
        parsed = InclusionProof.parse(data)
        assert parsed.to_bytes() == data
        assert parsed.verify(log.vkey())["_type"].endswith("/Statement/v1")


@pytest.mark.fault("T1", "any byte of a proof changed")
def test_no_changed_byte_of_a_proof_is_taken(grown: tuple[Project, list[bytes]]) -> None:
    log = log_of(grown[0])
    key, data = log.vkey(), InclusionProof.of(log, 4).to_bytes()
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(RegistryDamaged):
            InclusionProof.parse(changed).verify(key)


def test_another_key_proves_nothing(grown: tuple[Project, list[bytes]]) -> None:
    log = log_of(grown[0])
    proof = InclusionProof.of(log, 3)
    with pytest.raises(RegistryDamaged, match="bears no signature"):
        proof.verify(SigningKey.generate(log.origin).verifier())
    # A key that signs for another log must not vouch for this one.
    other = SigningKey.generate("elsewhere.example/log")
    text = proof.note.decode().rpartition("\n\n")[0] + "\n"
    forged = InclusionProof(proof.entry, proof.index, proof.hashes, other.sign(text))
    with pytest.raises(RegistryDamaged, match="and the key of"):
        forged.verify(other.verifier())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("@v1", "@v2", "no proof of the form"),
        ("extra ", "more ", "does not carry its entry"),
        ("index 4", "index 04", "index NUMBER"),
        ("index 4", "index -4", "index NUMBER"),
        ("index 4", "index 5", "not in that log"),
        ("index 4", "index 9999999", "not in that log"),
        ("\n\n", "\n", "after an empty line"),
    ],
)
def test_a_proof_has_one_spelling(grown: tuple[Project, list[bytes]], old: str, new: str, said: str) -> None:
    log = log_of(grown[0])
    data = InclusionProof.of(log, 4).to_bytes().replace(old.encode(), new.encode())
    with pytest.raises(RegistryDamaged, match=said):
        InclusionProof.parse(data).verify(log.vkey())


def test_too_many_hashes_and_hashes_of_another_length(grown: tuple[Project, list[bytes]]) -> None:
    proof = InclusionProof.of(log_of(grown[0]), 4)
    for hashes in ((b"x" * 32,) * 65, (b"x" * 31,)):
        with pytest.raises(RegistryDamaged, match="hash"):
            InclusionProof.parse(InclusionProof(proof.entry, 4, hashes, proof.note).to_bytes())


def test_the_log_grew_from_each_earlier_checkpoint(grown: tuple[Project, list[bytes]]) -> None:
    log, checkpoints = log_of(grown[0]), grown[1]
    key = log.vkey()
    for earlier in checkpoints[1:]:
        size = int(earlier.split(b"\n")[1])
        data = ConsistencyProof.of(log, size).to_bytes()
        before, after = ConsistencyProof.parse(data).verify(key, earlier)
        assert (before.size, after.size) == (size, SIZE + 1)
        for other in checkpoints[1:]:
            if other != earlier:
                with pytest.raises(RegistryDamaged, match="entries on"):
                    ConsistencyProof.parse(data).verify(key, other)


@pytest.mark.fault("T5", "two histories signed with one key, against a proof of consistency")
def test_a_rewritten_history_has_no_proof_of_consistency(grown: tuple[Project, list[bytes]], tmp_path: Path) -> None:
    """Whoever holds the key signs another history of the same name: no proof leads from the old one to it."""
    lines = log_of(grown[0]).lines_path.read_bytes().splitlines()
    key = SigningKey.generate("ingot.local/" + "a" * 12)

    def signed(name: str, entries: list[bytes]) -> Log:
        folder = tmp_path / name / ("a" * 12)
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_bytes(b"".join(line + b"\n" for line in entries))
        root = root_of([leaf_hash(line) for line in entries])
        (folder / "checkpoint").write_bytes(key.sign(Checkpoint(key.name, len(entries), root).text()))
        (folder / "log.vkey").write_text(f"{key.verifier()}\n")
        return Log(folder)

    honest, rewritten = signed("old", lines[:6]), signed("new", [*lines[:3], lines[6], *lines[4:9]])
    proof = ConsistencyProof.of(rewritten, 6)
    with pytest.raises(RegistryDamaged, match="two histories"):
        proof.verify(key.verifier(), honest.signed_note())
    whole = signed("longer", lines[:9])
    before, after = ConsistencyProof.of(whole, 6).verify(key.verifier(), honest.signed_note())
    assert (before.size, after.size) == (6, 9)


def test_a_size_that_the_log_never_had(grown: tuple[Project, list[bytes]]) -> None:
    for size in (0, SIZE + 2):
        with pytest.raises(RegistryDamaged, match="did not grow"):
            ConsistencyProof.of(log_of(grown[0]), size)


def test_lines_that_are_not_those_signed_give_no_proof(tmp_path: Path) -> None:
    made = project(tmp_path)
    made.registry().append([selected(1), selected(2)])
    made.log().write_bytes(made.log().read_bytes().replace(b'"2026', b'"2025', 1))
    with pytest.raises(RegistryDamaged):
        InclusionProof.of(log_of(made), 1)
