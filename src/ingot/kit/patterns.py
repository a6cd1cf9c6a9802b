"""Regular expressions of strangers, matched in a process of their own: some run for ever on a short text.

An answer matches a pattern if, without the white space around it, the whole of it does (Python's ``re``). One match
gets two seconds of CPU time and the process 512 MiB (``kit.bounded``). What took longer has not been answered, so it
is refused and never counted as a mismatch: how far a machine gets in two seconds must not show in a figure.
"""

from __future__ import annotations

import re
from functools import lru_cache

from ingot.errors import RefusedInput
from ingot.kit.bounded import CPU_SECONDS, Bounded, serve

MAX_PATTERN = 65_536
MAX_TEXT = 1 << 20


class Matcher:
    """The process that matches; started when it is first needed."""

    def __init__(self, cpu_seconds: int = CPU_SECONDS) -> None:
        self._process = Bounded(__name__, cpu_seconds)

    def matches(self, pattern: str, text: str) -> bool:
        """Whether the text is, from end to end, what the pattern says.

        RefusedInput: E-PATTERN (no regular expression), E-PATTERN-LIMIT (too long, or it takes too long).
        """
        if len(pattern) > MAX_PATTERN or len(text) > MAX_TEXT:
            raise _limit(pattern, f"patterns have at most {MAX_PATTERN:,} characters and texts {MAX_TEXT:,}")
        answer = self._process.ask({"pattern": pattern, "text": text.strip()})
        if answer is None:
            raise _limit(pattern, f"one match gets {self._process.limits}")
        if "why" in answer:
            what = f"{_shown(pattern)} is no regular expression: {answer['why']}"
            raise RefusedInput("E-PATTERN", what, hint="it is one of Python's (re)")
        return bool(answer["matches"])

    def close(self) -> None:
        """End the process."""
        self._process.close()


def _limit(pattern: str, why: str) -> RefusedInput:
    return RefusedInput(
        "E-PATTERN-LIMIT",
        f"{_shown(pattern)} was stopped: {why}",
        hint="repetitions inside repetitions, such as (a+)+, try every way to divide a text: write it without",
    )


def _shown(pattern: str) -> str:
    return f"the pattern {pattern if len(pattern) <= 80 else pattern[:77] + '…'!r}"


def _answer(pattern: str, text: str) -> dict[str, object]:
    try:
        return {"matches": _compiled(pattern).fullmatch(text) is not None}
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        return {"why": str(error) or type(error).__name__}


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


if __name__ == "__main__":
    serve(_answer)
