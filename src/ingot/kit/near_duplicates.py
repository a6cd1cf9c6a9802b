"""Near-duplicates among texts: found by MinHash, decided by the exact Jaccard similarity.

Two texts are near-duplicates when the Jaccard similarity of their sets of character 3-grams (after case folding and
collapsing white space) is at least the threshold. MinHash with 128 permutations (rensa, a fixed seed) and banding
only propose pairs; each is then computed exactly, so nothing is dropped that is not a near-duplicate. The bands are
chosen so that a pair at the threshold is proposed with a probability of at least 0.995, a more similar one with more.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

PERMUTATIONS = 128
_SEED = 42
_RECALL = 0.995
_CHUNK = 4096

Grams = npt.NDArray[np.uint64]


def shingles(text: str) -> Grams:
    """The sorted set of a text's character 3-grams, each packed exactly into 63 bits; shorter text is padded."""
    points = np.frombuffer(" ".join(text.casefold().split()).ljust(3, "\0").encode("utf-32-le"), dtype=np.uint32)
    wide = points.astype(np.uint64)
    return np.unique((wide[:-2] << np.uint64(42)) | (wide[1:-1] << np.uint64(21)) | wide[2:])


def jaccard(left: Grams, right: Grams) -> float:
    """Shared 3-grams over all 3-grams of two sets as ``shingles`` gives them."""
    shared = int(np.intersect1d(left, right, assume_unique=True).size)
    return shared / (left.size + right.size - shared)


def bands(threshold: float) -> tuple[int, int]:
    """(bands, rows a band): the longest rows that still propose a pair at the threshold with enough probability."""
    for rows in range(PERMUTATIONS, 1, -1):
        count = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** count >= _RECALL:
            return count, rows
    return PERMUTATIONS, 1


def signatures(grams: Sequence[Grams]) -> npt.NDArray[np.uint32]:
    """MinHash signatures, one row of 128 a set."""
    offsets = np.concatenate(([0], np.cumsum([item.size for item in grams]))).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(grams), offsets, PERMUTATIONS, _SEED)
    return np.asarray(matrix.to_rows(), dtype=np.uint32)


def duplicates_of_earlier(
    texts: Sequence[str], threshold: float, report: Callable[[int], None]
) -> dict[int, tuple[int, float]]:
    """Index of each text that is a near-duplicate of an earlier kept one → (index of that one, their similarity).

    Texts are kept in order: one that is dropped drops no others. ``report`` is told how many are done.
    """
    count, rows = bands(threshold)
    found: dict[int, tuple[int, float]] = {}
    buckets: list[dict[bytes, list[int]]] = [defaultdict(list) for _ in range(count)]
    grams: list[Grams] = []
    signed = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    # a similarity s is estimated with a standard deviation of sqrt(s (1 - s) / 128); five of them are allowed for
    floor = threshold - 5 * math.sqrt(threshold * (1 - threshold) / PERMUTATIONS)
    for start in range(0, len(texts), _CHUNK):
        chunk = [shingles(text) for text in texts[start : start + _CHUNK]]
        grams += chunk
        signed[start : start + len(chunk)] = signatures(chunk)
        for index in range(start, start + len(chunk)):
            row = signed[index].tobytes()
            keys = [row[4 * rows * band : 4 * rows * (band + 1)] for band in range(count)]
            near = sorted({other for bucket, key in zip(buckets, keys, strict=True) for other in bucket.get(key, ())})
            match = _first_match(index, near, grams, signed, (threshold, floor))
            if match is not None:
                found[index] = match
            else:
                for bucket, key in zip(buckets, keys, strict=True):
                    bucket[key].append(index)
        report(start + len(chunk))
    return found


def _first_match(
    index: int,
    near: Sequence[int],
    grams: Sequence[Grams],
    signed: npt.NDArray[np.uint32],
    limits: tuple[float, float],
) -> tuple[int, float] | None:
    if not near:
        return None
    threshold, floor = limits
    alike = (signed[list(near)] == signed[index]).mean(axis=1)
    for other, estimate in zip(near, alike, strict=True):
        small, large = sorted((grams[other].size, grams[index].size))
        if estimate >= floor and small >= threshold * large:
            similarity = jaccard(grams[other], grams[index])
            if similarity >= threshold:
                return other, similarity
    return None
