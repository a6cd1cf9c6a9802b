"""The Merkle tree of a log, as RFC 6962 and RFC 9162 (section 2.1) define it: roots and proofs.

A leaf hashes as SHA-256(0x00 ‖ data), a node as SHA-256(0x01 ‖ left ‖ right); the left subtree of n leaves
has the largest power of two below n. Pure functions over hashes: nothing here opens a file. Hashes are
32 bytes; proofs are lists of hashes from the leaves up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: The root of the tree without leaves.
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """The hash of one entry."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True)
class Frontier:
    """The right edge of a tree: all that is needed to append to it and to know its root.

    ``peaks`` are the roots of the perfect subtrees from left to right, one for each bit set in ``size``.
    """

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def extended(self, leaves: Iterable[bytes]) -> Frontier:
        """The frontier after appending leaf hashes, in O(1) amortised hashes a leaf."""
        size, peaks = self.size, list(self.peaks)
        for leaf in leaves:
            peaks.append(leaf)
            size += 1
            # As many carries as trailing zero bits of the new size.
            for _ in range((size & -size).bit_length() - 1):
                right = peaks.pop()
                peaks.append(node_hash(peaks.pop(), right))
        return Frontier(size, tuple(peaks))

    def root(self) -> bytes:
        """The root hash of the tree."""
        if not self.peaks:
            return EMPTY_ROOT
        *rest, result = self.peaks
        for peak in reversed(rest):
            result = node_hash(peak, result)
        return result


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root of the tree over leaf hashes."""
    return Frontier().extended(leaves).root()


def _split(size: int) -> int:
    """The largest power of two below ``size`` (which is at least 2)."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The proof that leaf ``index`` is in the tree over ``leaves`` (RFC 9162, 2.1.3.1)."""
    if not 0 <= index < len(leaves):
        raise ValueError(f"no leaf {index} in a tree of {len(leaves)}")
    if len(leaves) == 1:
        return []
    split = _split(len(leaves))
    if index < split:
        return [*inclusion_proof(leaves[:split], index), root_of(leaves[split:])]
    return [*inclusion_proof(leaves[split:], index - split), root_of(leaves[:split])]


def consistency_proof(leaves: Sequence[bytes], size: int) -> list[bytes]:
    """The proof that the tree over the first ``size`` leaves is a prefix of the tree over all (2.1.4.1)."""
    if not 0 < size <= len(leaves):
        raise ValueError(f"no tree of {size} inside a tree of {len(leaves)}")
    return _subproof(leaves, size, known=True)


def _subproof(leaves: Sequence[bytes], size: int, *, known: bool) -> list[bytes]:
    """SUBPROOF of the RFC; ``known``: the verifier has this subtree's root already, it being the old root."""
    if size == len(leaves):
        return [] if known else [root_of(leaves)]
    split = _split(len(leaves))
    if size <= split:
        return [*_subproof(leaves[:split], size, known=known), root_of(leaves[split:])]
    return [*_subproof(leaves[split:], size - split, known=False), root_of(leaves[:split])]


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether ``proof`` shows that the tree of ``size`` and ``root`` holds ``leaf`` at ``index`` (2.1.3.2)."""
    if not 0 <= index < size or not _hashes([leaf, root, *proof]):
        return False
    fn, sn, result = index, size - 1, leaf
    for step in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            result = node_hash(step, result)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            result = node_hash(result, step)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and result == root


def verify_consistency(sizes: tuple[int, int], roots: tuple[bytes, bytes], proof: Sequence[bytes]) -> bool:
    """Whether ``proof`` shows that the old tree is a prefix of the new one (2.1.4.2).

    ``sizes`` and ``roots`` are (old, new). Of an old tree without leaves nothing can be shown: only (0, 0) holds.
    """
    old, new = sizes
    if not 0 <= old <= new or not _hashes(proof):
        return False
    if old == new:
        return not proof and roots[0] == roots[1] and (old > 0 or roots[0] == EMPTY_ROOT)
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, roots[0])
    return old > 0 and bool(path) and _walk(old - 1, new - 1, path) == roots


def _walk(fn: int, sn: int, path: Sequence[bytes]) -> tuple[bytes, bytes] | None:
    """The two roots that a consistency path leads to; None when its length is wrong."""
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    first = second = path[0]
    for step in path[1:]:
        if sn == 0:
            return None
        if fn & 1 or fn == sn:
            first, second = node_hash(step, first), node_hash(step, second)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            second = node_hash(second, step)
        fn, sn = fn >> 1, sn >> 1
    return (first, second) if sn == 0 else None


def _hashes(values: Iterable[bytes]) -> bool:
    return all(len(value) == 32 for value in values)
