"""Merkle trees against the public vectors, a naive model, and exhaustive small proofs."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingot.core import merkle
from ingot.core.merkle import Frontier, leaf_hash, node_hash

LEAVES = [leaf_hash(bytes([number])) for number in range(70)]


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, word for word."""
    if not leaves:
        return merkle.EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(naive_root(leaves[:split]), naive_root(leaves[split:]))


def decode(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def vectors(shared_data: Path, kind: str) -> list[tuple[str, dict[str, object]]]:
    found = sorted((shared_data / "tlog-vectors" / "testdata" / kind).rglob("*.json"))
    return [(str(path), json.loads(path.read_bytes())) for path in found]


def test_inclusion_vectors(shared_data: Path) -> None:
    cases = vectors(shared_data, "inclusion")
    assert len(cases) == 98
    for name, case in cases:
        proof = [decode(step) for step in case["proof"] or []]  # type: ignore[attr-defined]
        leaf, root = decode(case["leafHash"]), decode(case["root"])  # type: ignore[arg-type]
        held = merkle.verify_inclusion(case["leafIdx"], case["treeSize"], leaf, proof, root)  # type: ignore[arg-type]
        assert held is not case["wantErr"], name


def test_consistency_vectors(shared_data: Path) -> None:
    cases = vectors(shared_data, "consistency")
    assert len(cases) == 98
    for name, case in cases:
        proof = [decode(step) for step in case["proof"] or []]  # type: ignore[attr-defined]
        sizes = (case["size1"], case["size2"])
        roots = (decode(case["root1"]), decode(case["root2"]))  # type: ignore[arg-type]
        held = merkle.verify_consistency(sizes, roots, proof)  # type: ignore[arg-type]
        assert held is not case["wantErr"], name


def test_known_roots() -> None:
    assert merkle.EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert leaf_hash(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"


def test_all_proofs_of_small_trees() -> None:
    for size in range(1, 40):
        leaves = LEAVES[:size]
        root = naive_root(leaves)
        assert merkle.root_of(leaves) == root
        for index in range(size):
            proof = merkle.inclusion_proof(leaves, index)
            assert merkle.verify_inclusion(index, size, leaves[index], proof, root)
            assert not merkle.verify_inclusion(index, size, LEAVES[-1], proof, root)
            assert not merkle.verify_inclusion(index, size, leaves[index], [*proof, root], root)
        for old in range(1, size + 1):
            proof = merkle.consistency_proof(leaves, old)
            roots = (naive_root(leaves[:old]), root)
            assert merkle.verify_consistency((old, size), roots, proof)
            assert not merkle.verify_consistency((old, size), (LEAVES[-1], root), proof)


def test_a_proof_outside_the_tree_is_refused() -> None:
    with pytest.raises(ValueError, match="no leaf 3"):
        merkle.inclusion_proof(LEAVES[:3], 3)
    for size in (0, 4):
        with pytest.raises(ValueError, match=f"no tree of {size}"):
            merkle.consistency_proof(LEAVES[:3], size)
    assert not merkle.verify_consistency((2, 1), (LEAVES[0], LEAVES[1]), [])
    assert not merkle.verify_consistency((1, 2), (LEAVES[0], LEAVES[1]), [b"short"])


@given(st.lists(st.binary(max_size=8), max_size=70), st.data())
def test_a_frontier_extended_in_parts_is_the_whole_tree(entries: list[bytes], data: st.DataObject) -> None:
    leaves = [leaf_hash(entry) for entry in entries]
    cut = data.draw(st.integers(0, len(leaves)))
    frontier = Frontier().extended(leaves[:cut]).extended(leaves[cut:])
    assert (frontier.size, frontier.root()) == (len(leaves), naive_root(leaves))
    assert len(frontier.peaks) == len(leaves).bit_count()


@given(st.integers(2, 64), st.data())
def test_a_changed_proof_does_not_hold(size: int, data: st.DataObject) -> None:
    leaves, index = LEAVES[:size], data.draw(st.integers(0, size - 1))
    proof, root = merkle.inclusion_proof(leaves, index), merkle.root_of(leaves)
    place, bit = data.draw(st.integers(0, len(proof) - 1)), data.draw(st.integers(0, 255))
    changed = list(proof)
    changed[place] = (int.from_bytes(proof[place]) ^ (1 << bit)).to_bytes(32)
    assert not merkle.verify_inclusion(index, size, leaves[index], changed, root)
