"""Near-duplicates found equal those of comparing every pair."""

from __future__ import annotations

import json
import random

import pytest

from ingot.core import stdlib_text
from ingot.kit.near_duplicates import bands, duplicates_of_earlier, jaccard, shingles


def grams(text: str) -> set[str]:
    text = " ".join(text.casefold().split()).ljust(3, "\0")
    return {text[i : i + 3] for i in range(len(text) - 2)}


def similarity(left: set[str], right: set[str]) -> float:
    return len(left & right) / len(left | right)


def edited(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    for _ in range(rng.randrange(1, max(2, len(words) // 5))):
        words[rng.randrange(len(words))] = rng.choice(["changed", "word", "", "other"])
    return " ".join(words)


@pytest.fixture(scope="module")
def docs() -> list[str]:
    """A sample of Python's docstrings."""
    return [json.loads(line)["doc"] for line in stdlib_text.extract("docstrings").splitlines()[::60]]


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_equal_to_comparing_every_pair(docs: list[str], threshold: float) -> None:
    rng = random.Random(3)
    texts = list(dict.fromkeys(docs + [edited(doc, rng) for doc in docs]))
    found = duplicates_of_earlier(texts, threshold, lambda _: None)
    sets = [grams(text) for text in texts]
    kept: list[int] = []
    expected = set()
    for index, mine in enumerate(sets):
        if any(similarity(mine, sets[other]) >= threshold for other in kept):
            expected.add(index)
        else:
            kept.append(index)
    assert expected
    assert set(found) == expected
    for index, (other, value) in found.items():
        assert value == pytest.approx(similarity(sets[index], sets[other]))


@pytest.mark.parametrize("text", ["", "a", "ab", "abc", "Größe  UND\nSTRASSE", "漢字 😀 mixed"])
def test_shingles_are_the_exact_set(text: str) -> None:
    assert len(shingles(text)) == len(grams(text))
    assert jaccard(shingles(text), shingles(text)) == 1


@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.5, 0.8, 0.9, 0.99, 1.0])
def test_bands_propose_what_is_at_the_threshold(threshold: float) -> None:
    count, rows = bands(threshold)
    assert count * rows <= 128
    # below 0.04 even single rows cannot reach it with 128 permutations
    assert 1 - (1 - threshold**rows) ** count >= 0.995 or rows == 1
