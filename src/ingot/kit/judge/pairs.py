"""Pairs of answers, the judgements of them, and judgements that were made elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

from ingot.core.digest import is_digest, read_json
from ingot.errors import RefusedInput
from ingot.kit.samples import Sample

Verdict = Literal["first", "second", "tie"]
Outcome = Literal["win", "tie", "loss"]
VERDICTS: tuple[Verdict, ...] = ("first", "second", "tie")
OUTCOMES: tuple[Outcome, ...] = ("win", "tie", "loss")
_KEYS = {"id", "first", "second", "verdict"}


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt."""

    candidate: Sample
    reference: Sample

    @property
    def same(self) -> bool:
        """Whether both said the same."""
        return self.candidate.answer == self.reference.answer

    def orders(self) -> tuple[tuple[Sample, Sample], tuple[Sample, Sample]]:
        """(first, second) as they are shown, the candidate first and then the reference."""
        return (self.candidate, self.reference), (self.reference, self.candidate)


@dataclass(frozen=True)
class Judged:
    """A pair and what was said of it: ``first_shown`` with the candidate first, ``second_shown`` with it second."""

    id: str
    candidate: str
    reference: str
    first_shown: Verdict | None
    second_shown: Verdict | None

    @property
    def outcomes(self) -> tuple[Outcome, Outcome] | None:
        """What each order says of the candidate; None where nobody was asked."""
        if self.first_shown is None or self.second_shown is None:
            return None
        straight: Mapping[Verdict, Outcome] = {"first": "win", "second": "loss", "tie": "tie"}
        swapped: Mapping[Verdict, Outcome] = {"first": "loss", "second": "win", "tie": "tie"}
        return straight[self.first_shown], swapped[self.second_shown]

    @property
    def outcome(self) -> Outcome:
        """What counts."""
        both = self.outcomes
        return both[0] if both is not None and both[0] == both[1] else "tie"

    @property
    def bias(self) -> int:
        """How much more often the answer shown first was called the better one: -2 to 2."""
        shown = (self.first_shown, self.second_shown)
        return shown.count("first") - shown.count("second")


def pairs(candidate: Sequence[Sample], reference: Sequence[Sample]) -> list[Pair]:
    """The answers to the same prompts. RefusedInput (E-JUDGE-PAIRS) where they answer others."""
    asked = [[(item.id, item.prompt) for item in said] for said in (candidate, reference)]
    if asked[0] != asked[1]:
        raise RefusedInput(
            "E-JUDGE-PAIRS",
            "the candidate and the reference did not answer the same prompts",
            hint="both are asked alike: the same data, the same 'documents' or 'prompts'",
        )
    return [Pair(*both) for both in zip(candidate, reference, strict=True)]


def given(folder: Path, found: Sequence[Pair]) -> list[Judged]:
    """The verdicts of a data set made elsewhere.

    RefusedInput: E-JUDGEMENTS-FILE for no such file, E-JUDGEMENTS-TWICE where it contradicts itself, E-JUDGEMENTS-OTHER
    where it judges other answers than these, E-JUDGEMENTS-MISSING where a pair was not judged in both orders.
    """
    known = _read_judgements(folder)
    judged = []
    for pair in found:
        said: list[Verdict | None] = [None, None]
        if not pair.same:
            said = [_known(known, first, second) for first, second in pair.orders()]
        judged.append(Judged(pair.candidate.id, pair.candidate.digest, pair.reference.digest, *said))
    return judged


def _known(known: Mapping[tuple[str, str, str], Verdict], first: Sample, second: Sample) -> Verdict:
    key = (first.id, first.digest, second.digest)
    if key in known:
        return known[key]
    others = [(one, two) for name, one, two in known if name == first.id]
    if (second.digest, first.digest) in others or not others:
        what = "in both orders" if others else "at all"
        raise RefusedInput(
            "E-JUDGEMENTS-MISSING",
            f"the answers to {first.id} were not judged {what}",
            facts=[f"needed: first {first.digest[:12]}, second {second.digest[:12]}"],
            hint="a pair is judged twice, with the answers swapped",
        )
    raise RefusedInput(
        "E-JUDGEMENTS-OTHER",
        f"the judgements of {first.id} are about other answers",
        facts=[
            f"needed: first {first.digest[:12]}, second {second.digest[:12]}",
            *(f"judged: first {one[:12]}, second {two[:12]}" for one, two in others[:4]),
        ],
        hint="a model answers otherwise now than when it was judged: let the new answers be judged",
    )


def _read_judgements(folder: Path) -> dict[tuple[str, str, str], Verdict]:
    path = folder / "judgements.jsonl"
    try:
        lines = [read_json(line) for line in path.read_bytes().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise RefusedInput("E-JUDGEMENTS-FILE", f"judgements cannot be read: {error}") from error
    known: dict[tuple[str, str, str], Verdict] = {}
    for number, line in enumerate(lines, 1):
        key, verdict = _judgement(line, f"{path.name} line {number}")
        if known.setdefault(key, verdict) != verdict:
            raise RefusedInput("E-JUDGEMENTS-TWICE", f"{path.name} line {number} contradicts an earlier one")
    return known


def _judgement(line: object, where: str) -> tuple[tuple[str, str, str], Verdict]:
    whole = isinstance(line, dict) and set(line) >= _KEYS and isinstance(line["id"], str)
    if not whole or not isinstance(line, dict) or line["verdict"] not in VERDICTS:
        raise RefusedInput("E-JUDGEMENTS-FILE", f"{where} is no judgement", hint="{id, first, second, verdict}")
    if not is_digest(line["first"]) or not is_digest(line["second"]):
        raise RefusedInput("E-JUDGEMENTS-FILE", f"{where}: 'first' and 'second' are the SHA-256 of two answers")
    return (line["id"], line["first"], line["second"]), cast("Verdict", line["verdict"])


def write(folder: Path, judged: Sequence[Judged]) -> None:
    """``judgements.jsonl`` as ``given`` reads it, one line a verdict; ``pairs.jsonl``, one line a pair."""
    said = "".join(json.dumps(line, sort_keys=True) + "\n" for item in judged for line in _lines(item))
    (folder / "judgements.jsonl").write_text(said, encoding="utf-8")
    rows = [json.dumps({**asdict(item), "outcome": item.outcome}, sort_keys=True) + "\n" for item in judged]
    (folder / "pairs.jsonl").write_text("".join(rows), encoding="utf-8")


def _lines(item: Judged) -> Iterator[dict[str, str]]:
    for first, second, verdict in (
        (item.candidate, item.reference, item.first_shown),
        (item.reference, item.candidate, item.second_shown),
    ):
        if verdict is not None:
            yield {"id": item.id, "first": first, "second": second, "verdict": verdict}
