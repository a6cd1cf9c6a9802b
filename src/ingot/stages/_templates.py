"""``templates``: questions and answers made from templates, slots and a seed; a source of ``dataset``.

Rows are drawn by SHA-256 and nothing else, so that every machine, Python and version of a library draws the same
ones. Draw number n of a case is

    SHA-256(``ingot-templates-1`` LF seed LF case LF n) as a big-endian number, modulo the questions of the case,

and a question is the number of its template and of its fillers in mixed radix: the templates in their order, the
fillers of a template's slots in the order in which it names them, the last one fastest. A question that was drawn is
not drawn again, so a larger ``count`` keeps the rows of a smaller one.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from ingot.core.digest import canonical_json
from ingot.core.stage import Frozen
from ingot.errors import RefusedInput

_TAG = "ingot-templates-1"
#: A slot, a field of one, or a brace that is meant.
_PART = re.compile(r"\{\{|\}\}|\{([a-z][a-z0-9_]*)(?:\.([a-z][a-z0-9_]*))?\}|[{}]")
_SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()]")

_Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
_Text = Annotated[str, StringConstraints(min_length=1)]
Filler = str | Mapping[_Name, str]
Slots = Mapping[_Name, Annotated[tuple[Filler, ...], Field(min_length=1)]]


@dataclass(frozen=True)
class Pair:
    """A question with its answer; ``group`` must not straddle the split; ``pattern`` holds for every right answer."""

    prompt: str
    completion: str
    group: str
    pattern: str | None


class Case(Frozen):
    """Questions of one sort, and the answers that are right for each of them."""

    prompts: tuple[_Text, ...] = Field(min_length=1, description="templates of the question, such as Will I {deed}?")
    completions: tuple[_Text, ...] = Field(
        min_length=1, description="templates of the answer, of which one is drawn; their slots are the question's"
    )
    slots: Slots = Field(default={}, description="more slots, or others of the same names, for this case")
    pattern: str | None = Field(
        default=None,
        max_length=2000,
        description="regular expression that every right answer matches in full; by default that of all completions, "
        "where there are several",
    )


class Templates(Frozen):
    """Rows made from templates: as many of each case, no question twice."""

    count: int = Field(ge=1, le=1_000_000, description="rows to draw, shared out evenly among the cases")
    seed: int = Field(default=0, ge=0, le=2**53 - 1, description="seed of the draw, apart from that of the spec")
    slots: Slots = Field(default={}, description="slot → fillers: texts for {slot}, or mappings for {slot.field}")
    cases: Mapping[str, Case] = Field(min_length=1, description="name → a sort of question with its answers")
    apart: tuple[str, ...] = Field(
        default=(),
        description="slots by whose fillers rows are held out: no combination of them is in both train and eval; "
        "by default the whole question",
    )

    @model_validator(mode="after")
    def _fits(self) -> Templates:
        for name, case, wanted in self._shares():
            slots = {**self.slots, **case.slots}
            for fillers in slots.values():
                if any(filler in fillers[:index] for index, filler in enumerate(fillers)):
                    raise ValueError("a slot has the same filler twice")
            _check(case, slots, self.apart)
            if wanted > (most := sum(_ways(prompt, slots) for prompt in case.prompts)):
                raise ValueError(f"the case {name!r} has {most} different questions, fewer than its {wanted} rows")
        return self

    def pairs(self) -> Iterator[Pair]:
        """The rows, case by case. RefusedInput (E-DATASET-TEMPLATES) where two cases ask the same question."""
        asked: dict[str, str] = {}
        for name, case, wanted in self._shares():
            slots = {**self.slots, **case.slots}
            for question, chosen in self._drawn(name, case, slots, wanted):
                if asked.setdefault(question, name) != name:
                    raise _refused(f"the cases {asked[question]!r} and {name!r} both ask {question!r}")
                number = _number(f"{self.seed}\n{name}\n{question}") % len(case.completions)
                answers = [_filled(completion, chosen) for completion in case.completions]
                group = _canonical([chosen[slot] for slot in self.apart]) if self.apart else question
                yield Pair(question, answers[number], group, case.pattern or _any_of(answers))

    def _shares(self) -> Iterator[tuple[str, Case, int]]:
        """Each case and how many rows it gives, by name: in the key, and so in the rows, their order means nothing.

        The first ones give one more where the rows cannot be shared out evenly.
        """
        least, more = divmod(self.count, len(self.cases))
        for index, name in enumerate(sorted(self.cases)):
            yield name, self.cases[name], least + (index < more)

    def _drawn(
        self, name: str, case: Case, slots: Mapping[str, tuple[Filler, ...]], wanted: int
    ) -> Iterator[tuple[str, Mapping[str, Filler]]]:
        """``wanted`` different questions of a case, each with its fillers."""
        most = sum(_ways(prompt, slots) for prompt in case.prompts)
        numbers: set[int] = set()
        texts: set[str] = set()
        draw = 0
        while len(texts) < wanted:
            if len(numbers) == most:
                raise _refused(f"the case {name!r} has {len(texts)} different questions, fewer than its {wanted} rows")
            number = _number(f"{self.seed}\n{name}\n{draw}") % most
            draw += 1
            if number in numbers:
                continue
            numbers.add(number)
            template, chosen = _unranked(number, case.prompts, slots)
            text = _filled(template, chosen)
            if text not in texts:
                texts.add(text)
                yield text, chosen


def _check(case: Case, slots: Mapping[str, tuple[Filler, ...]], apart: Iterable[str]) -> None:
    """ValueError where a template names what is not there, or an answer what the question does not say."""
    for template in (*case.prompts, *case.completions):
        for name, field in _named(template):
            if name not in slots:
                raise ValueError(f"there is no slot {name!r} for {template!r}")
            if not all(field in filler if isinstance(filler, Mapping) else not field for filler in slots[name]):
                written = f"{name}.{field}" if field else name
                raise ValueError(f"not every filler of {name!r} can stand for {{{written}}} in {template!r}")
    for prompt in case.prompts:
        said = {name for name, _ in _named(prompt)}
        for completion in case.completions:
            if missing := [name for name, _ in _named(completion) if name not in said]:
                raise ValueError(f"the answer {completion!r} names {missing[0]!r}, and {prompt!r} does not")
        if missing := [name for name in apart if name not in said]:
            raise ValueError(f"'apart' names {missing[0]!r}, and {prompt!r} does not")
    if case.pattern is not None:
        try:
            re.compile(case.pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"the pattern {case.pattern!r} is no regular expression: {error}") from error


def _named(template: str) -> Iterator[tuple[str, str]]:
    """(slot, field or nothing) in the order of the template; ValueError for a brace that stands alone."""
    for found in _PART.finditer(template):
        if found[1]:
            yield found[1], found[2] or ""
        elif len(found[0]) == 1:
            raise ValueError(f"a brace stands alone in {template!r}: {{{{ and }}}} are braces, {{name}} is a slot")


def _order(template: str) -> list[str]:
    return list(dict.fromkeys(name for name, _ in _named(template)))


def _ways(template: str, slots: Mapping[str, tuple[Filler, ...]]) -> int:
    return math.prod(len(slots[name]) for name in _order(template))


def _unranked(
    number: int, templates: Iterable[str], slots: Mapping[str, tuple[Filler, ...]]
) -> tuple[str, Mapping[str, Filler]]:
    """The template and the fillers that a number below the count of all questions stands for."""
    for template in templates:
        if number < (ways := _ways(template, slots)):
            chosen: dict[str, Filler] = {}
            for name in reversed(_order(template)):
                number, index = divmod(number, len(slots[name]))
                chosen[name] = slots[name][index]
            return template, chosen
        number -= ways
    raise IndexError(number)


def _filled(template: str, chosen: Mapping[str, Filler]) -> str:
    def part(found: re.Match[str]) -> str:
        if not found[1]:
            return found[0][0]
        filler = chosen[found[1]]
        return filler if isinstance(filler, str) else filler[found[2]]

    return _PART.sub(part, template)


def _any_of(answers: list[str]) -> str | None:
    """The pattern of several answers; one alone needs none: it is compared as it stands."""
    different = list(dict.fromkeys(answer.strip() for answer in answers))
    return "|".join(_SPECIAL.sub(r"\\\g<0>", answer) for answer in different) if len(different) > 1 else None


def _canonical(fillers: list[Filler]) -> str:
    return canonical_json([dict(filler) if isinstance(filler, Mapping) else filler for filler in fillers]).decode()


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{_TAG}\n{text}".encode()).digest(), "big")


def _refused(what: str) -> RefusedInput:
    return RefusedInput("E-DATASET-TEMPLATES", what, hint="each question belongs to one case and is asked once")
