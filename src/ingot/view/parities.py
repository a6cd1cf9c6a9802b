"""How an export compares with its source, as ``doit show`` prints it: a row a way of running it, its limits below."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ingot.core.quantities import number_text

Json = Mapping[str, Any]

_TITLES = ("", "run", "lowest cosine", "mean cosine", "same likeliest", "KL", "largest difference")
_NONE = "–"


def compared(receipt: Json) -> tuple[Sequence[str], Sequence[Sequence[str]], Sequence[int]]:
    """Titles, rows and columns to align right; no row where nothing was compared, or by another version's notes."""
    told = (receipt.get("notes") or {}).get("parity")
    rows: list[tuple[str, ...]] = []
    for question, found in sorted(told.items(), reverse=True) if isinstance(told, Mapping) else ():
        if isinstance(found, Mapping) and isinstance(found.get("runs"), Mapping) and "limits" in found:
            rows += _rows(question, found)
    return _TITLES, rows, tuple(range(2, len(_TITLES)))


def _rows(question: str, found: Json) -> Iterator[tuple[str, ...]]:
    for way, run in sorted(found["runs"].items(), reverse=True):
        texts = run["texts"]
        yield (
            question,
            way,
            number_text(min(text["cosine"] for text in texts)),
            number_text(_mean(texts, "cosine_mean")),
            f"{_mean(texts, 'top1_agreement'):.1%}",
            number_text(_mean(texts, "kl")),
            number_text(max(text["max_difference"] for text in texts)),
        )
    yield "", "limit", *_limits(found["limits"])


def _mean(texts: Sequence[Json], name: str) -> float:
    """Over the positions of all texts."""
    return float(sum(text[name] * text["tokens"] for text in texts) / sum(text["tokens"] for text in texts))


def _limits(limits: Json) -> Iterator[str]:
    for name, sign in (("cosine", "≥"), ("cosine_mean", "≥"), ("top1", "≥"), ("kl", "≤"), ("max_difference", "≤")):
        limit = limits.get(name)
        # no mean is below -1: that is no limit
        if limit is None or limit == -1:
            yield _NONE
        else:
            yield f"{sign} {f'{limit:.1%}' if name == 'top1' else number_text(limit)}"
