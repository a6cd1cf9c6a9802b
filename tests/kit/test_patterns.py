"""Patterns of strangers: matched as Python's re does, and never for longer than they are given."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from ingot.errors import RefusedInput
from ingot.kit.patterns import MAX_TEXT, Matcher


@pytest.fixture(scope="module")
def matcher() -> Iterator[Matcher]:
    made = Matcher(cpu_seconds=1)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("pattern", "text", "right"),
    [
        ("Yes\\.|No\\.", " Yes.\n", True),
        ("Yes\\.|No\\.", "Yes. No.", False),
        ("Yes", "No, Yes", False),
        ("(?i)yes", "YES", True),
        ("ü+", "üü", True),
        (".*", "two\nlines", False),
        (".*", "", True),
    ],
)
def test_a_pattern_holds_for_the_whole_without_white_space_around(
    matcher: Matcher, pattern: str, text: str, right: bool
) -> None:
    assert matcher.matches(pattern, text) is right


def test_a_pattern_that_never_ends_is_stopped_and_the_next_is_matched(matcher: Matcher) -> None:
    started = time.monotonic()
    with pytest.raises(RefusedInput, match=r"1 s of CPU time") as refused:
        matcher.matches(r"(\w+\s?)+!", "never and never and never and never and never")
    assert refused.value.code == "E-PATTERN-LIMIT"
    assert time.monotonic() - started < 60
    assert matcher.matches("a", "a")


def test_what_is_no_pattern_or_too_long_is_refused(matcher: Matcher) -> None:
    for pattern in ("(a", "a{99999999999999}", "(" * 20_000 + ")" * 20_000):
        with pytest.raises(RefusedInput) as refused:
            matcher.matches(pattern, "a")
        assert refused.value.code == "E-PATTERN"
        assert len(refused.value.what) < 300
    for pattern, text in (("a" * 70_000, "a"), ("a", "a" * (MAX_TEXT + 1))):
        with pytest.raises(RefusedInput) as refused:
            matcher.matches(pattern, text)
        assert refused.value.code == "E-PATTERN-LIMIT"
