"""A model as the judge: how it is asked, and how its verdict is read.

Constrained greedy decoding (``kit.generate``): at each token only those are allowed that go on to spell a verdict, and
the answer ends once only one verdict is left.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ingot.core.stage import Progress
from ingot.errors import RefusedInput
from ingot.kit.backends import Backend
from ingot.kit.chat import Row
from ingot.kit.generate import Decoding, generate
from ingot.kit.judge.pairs import Judged, Pair, Verdict


@dataclass(frozen=True)
class Questions:
    """How a judge is asked: a text with ``{criteria}``, ``{prompt}``, ``{first}`` and ``{second}``, and its words."""

    template: str
    criteria: str
    words: Mapping[Verdict, str]

    def text(self, prompt: str, first: str, second: str) -> str:
        """The question; what stands in for a placeholder is not read again."""
        known = {"criteria": self.criteria, "prompt": prompt, "first": first, "second": second}
        return re.sub(r"\{(criteria|prompt|first|second)\}", lambda found: known[found[1]], self.template)

    def rows(self, backend: Backend, text: str) -> dict[Verdict, Row]:
        """The row of each verdict: the question, and the word as its answer."""
        if backend.template.source is None:
            return {name: {"prompt": text, "completion": f" {word}"} for name, word in self.words.items()}
        asked = {"role": "user", "content": text}
        return {
            name: {"messages": [asked, {"role": "assistant", "content": word}]} for name, word in self.words.items()
        }


def ask(
    backend: Backend, questions: Questions, found: Sequence[Pair], context: int, progress: Progress
) -> list[Judged]:
    """The verdicts of a model, each pair in both orders. RefusedInput: E-JUDGE-CONTEXT, E-JUDGE-WORDS, E-EVAL-NAN."""
    context, judged = min(context, backend.context), []
    for number, pair in enumerate(found, 1):
        said: list[Verdict | None] = [None, None]
        if not pair.same:
            said = [
                _verdict(backend, questions, pair.candidate.prompt, (first.answer, second.answer), context)
                for first, second in pair.orders()
            ]
        judged.append(Judged(pair.candidate.id, pair.candidate.digest, pair.reference.digest, *said))
        progress(number, len(found), "pairs")
    return judged


def _verdict(backend: Backend, questions: Questions, prompt: str, shown: tuple[str, str], context: int) -> Verdict:
    rows = questions.rows(backend, questions.text(prompt, *shown))
    ways = {name: tuple(backend.encode(row, 1 << 40).ids) for name, row in rows.items()}
    start, rests = _branches(ways)
    longest = max(map(len, rests.values()))
    if len(start) + longest > context:
        raise RefusedInput(
            "E-JUDGE-CONTEXT",
            f"a question to the judge has {len(start)} tokens, and it reads {context}",
            hint="set 'samples.max_tokens' to less, or where the judge reads more, 'context' to more",
        )
    spelled = Spelled(tuple(rests.values()))
    made = generate(backend, start, Decoding(longest), spelled)
    return next(name for name, rest in rests.items() if rest[: len(made.tokens)] == made.tokens)


def _branches(ways: Mapping[Verdict, tuple[int, ...]]) -> tuple[list[int], dict[Verdict, tuple[int, ...]]]:
    """The tokens that all begin with, and how each verdict goes on. E-JUDGE-WORDS where they cannot be told apart."""
    shared = 0
    while all(len(way) > shared for way in ways.values()) and len({way[shared] for way in ways.values()}) == 1:
        shared += 1
    rests = {name: way[shared:] for name, way in ways.items()}
    for name, rest in rests.items():
        if any(other[: len(rest)] == rest for key, other in rests.items() if key != name):
            raise RefusedInput(
                "E-JUDGE-WORDS",
                f"to the judge's tokenizer the verdict {name!r} is the beginning of another one",
                hint="choose verdicts that are single letters or short words",
            )
    return list(next(iter(ways.values()))[:shared]), rests


class Spelled:
    """The mask that allows what spells one of several texts; once only one is left, nothing more."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        """``texts``: token ids, none the beginning of another."""
        self._texts = [tuple(text) for text in texts]

    def __call__(self, tokens: Sequence[int]) -> npt.NDArray[np.bool_]:
        """One truth value for each token up to the highest that is spelled with."""
        mask = np.zeros(1 + max(token for text in self._texts for token in text), np.bool_)
        at = len(tokens)
        left = [text for text in self._texts if text[:at] == tuple(tokens)]
        if len(left) > 1:
            mask[[text[at] for text in left]] = True
        return mask
