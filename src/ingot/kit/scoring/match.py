"""Whether a candidate reads what the reference read, and what to do where its tokenizer is another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ingot.errors import RefusedInput
from ingot.kit.backends import Scorable
from ingot.kit.chat import Example, Row
from ingot.kit.scoring import units, widths
from ingot.kit.scoring.run import Reference
from ingot.kit.scoring.units import Unit, Windows

#: What says that bits per byte are wanted where tokens do not compare.
ALLOW = "set 'other_tokenizer: bits_per_byte' to compare bits per byte, which do"


def documents(backend: Scorable, reference: Reference, rows: Sequence[Row], length: int) -> tuple[list[Unit], str]:
    """The reference's documents as the candidate reads them, and where the first of them differs ("": nowhere).

    RefusedInput: E-EVAL-TEMPLATE when chat rows would be rendered by another template, so that other questions would
    be asked.
    """
    order = units.in_order(rows)
    chosen = [(order[unit.row], unit) for unit in reference.units]
    if any("messages" in row for row, _ in chosen) and backend.template.source != reference.template:
        raise RefusedInput(
            "E-EVAL-TEMPLATE",
            "the candidate's chat template is not the reference's, so they would be asked different questions",
            facts=[_first_difference(backend.template.source or "", reference.template or "")],
            hint="write the template of the reference into the candidate, or report it without this reference",
        )
    found, differs = [], ""
    for row, unit in chosen:
        example = backend.encode(row, length)
        if example == unit.example:
            found.append(unit)
            continue
        differs = differs or f"document {row.get('id')}: {_first_token(example, unit.example)}"
        example, size = widths.same_text(backend, row, example, unit.bytes)
        found.append(replace(unit, example=example, bytes=size))
    return found, differs


def windows(backend: Scorable, reference: Reference, rows: Sequence[Row], how: Windows) -> tuple[list[Unit], str]:
    """The windows as the candidate reads them, and where the first differs from the reference's."""
    found = units.windows(backend, rows, how)
    for ours, theirs in zip(found, reference.units, strict=False):
        if ours.example != theirs.example:
            return found, f"window {ours.row}: {_first_token(ours.example, theirs.example)}"
    return found, "" if len(found) == len(
        reference.units
    ) else f"{len(found)} windows instead of {len(reference.units)}"


def refuse(differs: str) -> RefusedInput:
    """E-EVAL-TOKENS."""
    return RefusedInput(
        "E-EVAL-TOKENS",
        "the candidate's tokenizer gives other tokens than the reference's",
        facts=[differs],
        hint=f"numbers per token of different tokenizers do not compare; report it without a reference, or {ALLOW}",
    )


def _first_difference(one: str, two: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    return f"first difference at character {at}: {one[at : at + 24]!r} instead of {two[at : at + 24]!r}"


def _first_token(found: Example, expected: Example) -> str:
    pairs = zip(found.ids, expected.ids, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found.ids), len(expected.ids)))
    if found.ids == expected.ids:
        return f"scoring starts at token {found.labels_from} instead of {expected.labels_from}"
    return f"first difference at token {at}: {found.ids[at : at + 4]} instead of {expected.ids[at : at + 4]}"
