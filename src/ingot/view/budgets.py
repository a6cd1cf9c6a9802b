"""What exports take where they run, as a table: see ``ingot.core.budgets``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ingot.core.budgets import Budget
from ingot.core.quantities import size_text

#: The columns that are numbers.
RIGHT = (1, 2, 3, 4)
TITLES = ("export", "weights", "a token", "tokens", "a session", "sessions")


def rows(found: Mapping[str, Budget]) -> Sequence[Sequence[str]]:
    """A row for each export, under ``TITLES``; a question mark for what is not known before its model is built."""
    return [(name, *_numbers(budget), _sessions(budget)) for name, budget in found.items()]


def _numbers(budget: Budget) -> tuple[str, str, str, str]:
    weights = "?" if budget.weights_bytes is None else size_text(budget.weights_bytes)
    bound = "≥ " if budget.weights_bytes is not None and not budget.measured else ""
    if budget.token_bytes == 0:
        return bound + weights, "", "", ""
    each, whole = ("?" if size is None else size_text(size) for size in (budget.token_bytes, budget.session_bytes))
    return bound + weights, each, "?" if budget.context is None else f"{budget.context:,}", whole


def _sessions(budget: Budget) -> str:
    """How many fit, or why that is not said."""
    memory = "" if budget.memory_bytes is None else f"in {size_text(budget.memory_bytes)}"
    if budget.fits is False:
        return f"does not fit {memory}"
    if budget.weights_bytes is None or budget.session_bytes is None:
        return "not known before its model is built"
    if budget.sessions is not None:
        return f"≤ {budget.sessions:,} {memory}"
    kept = "" if budget.token_bytes else "keeps nothing between calls"
    return "; ".join(part for part in (f"fits {memory}" if memory else "", kept) if part)
