"""Ask a model questions and compare its answers: exactly, and with a pattern of what is right.

A question is a row's prompt, as the candidate's own template and tokenizer give it. Which are asked the data set alone
tells: scores of other questions do not compare, so what does not fit a candidate is refused. The answer is what greedy
decoding adds to it (``kit.generate``), until a token that ends a turn or ``max_tokens``. White space around an answer
does not count, and an answer of nothing else is never right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ingot.core.stage import Metric, Progress
from ingot.errors import RefusedInput
from ingot.kit.backends import Backend
from ingot.kit.bootstrap import share
from ingot.kit.chat import Row, wanted_text
from ingot.kit.generate import Decoding, Generation, generate
from ingot.kit.patterns import Matcher


@dataclass(frozen=True)
class Answer:
    """What a model answered; ``ended`` by itself, ``pattern`` None where nothing in the data set tells a pattern."""

    id: str
    answer: str
    tokens: int
    ended: bool
    exact: bool
    pattern: bool | None

    @property
    def right(self) -> bool:
        """Whether it matches its pattern or, where there is none, is exactly the answer of the data set."""
        return self.exact if self.pattern is None else self.pattern


@dataclass(frozen=True)
class Question:
    """A row that asks something; ``pattern`` is what every right answer matches, None: only ``wanted`` is right."""

    row: Row
    wanted: str
    pattern: str | None


@dataclass(frozen=True)
class Limits:
    """Tokens after which an answer is cut, and those of a question with its answer at the most."""

    max_tokens: int
    room: int


def questions(rows: Sequence[Row], pattern: str | None, matcher: Matcher) -> list[Question]:
    """The questions of rows; the row's own pattern goes before ``pattern``.

    RefusedInput: E-EVAL-ANSWERS for rows of plain text, E-EVAL-PATTERN where the row's own answer does not match,
    E-PATTERN and E-PATTERN-LIMIT for a pattern that cannot be used.
    """
    found = []
    for row in rows:
        if "messages" not in row and "prompt" not in row:
            raise RefusedInput(
                "E-EVAL-ANSWERS",
                "the rows of the data set are plain text, so there is nothing to ask",
                hint="leave 'answers' out, or use a data set of prompts and completions or of chats",
            )
        wanted = wanted_text(row)
        its = str(row["pattern"]) if row.get("pattern") is not None else pattern
        if its is not None and not matcher.matches(its, wanted):
            raise RefusedInput(
                "E-EVAL-PATTERN",
                f"the answer in row {row.get('id')} does not match its own pattern, so none could be right",
                hint="a pattern holds for the whole of every right answer (Python's re.fullmatch)",
            )
        found.append(Question(row, wanted, its))
    return found


def ask(
    backend: Backend, asked: Sequence[Question], limits: Limits, matcher: Matcher, progress: Progress
) -> list[Answer]:
    """The answers of a model, in the order of the questions.

    RefusedInput (E-EVAL-CONTEXT) where a question and an answer of ``max_tokens`` do not fit.
    """
    room = min(limits.room, backend.context)
    answers: list[Answer] = []
    right = 0
    for number, question in enumerate(asked, 1):
        ids = backend.question(question.row)
        if len(ids) + limits.max_tokens > room:
            raise RefusedInput(
                "E-EVAL-CONTEXT",
                f"question {question.row.get('id')} of {len(ids)} tokens and an answer of {limits.max_tokens} do not "
                f"fit {room}",
                facts=[f"the model's context: {backend.context}"],
                hint="raise max_length where the model's context allows it, else lower answers.max_tokens",
            )
        answers.append(_judged(question, generate(backend, ids, Decoding(limits.max_tokens)), matcher))
        right += answers[-1].right
        progress(number, len(asked), "questions", right=f"{100 * right / number:.0f} %")
    return answers


def _judged(question: Question, made: Generation, matcher: Matcher) -> Answer:
    said = made.text.strip()
    exact = bool(said) and said == question.wanted.strip()
    matched = None
    if question.pattern is not None:
        matched = bool(said) and matcher.matches(question.pattern, said)
    return Answer(str(question.row.get("id", "")), made.text, len(made.tokens), made.ended == "end", exact, matched)


def metrics(answers: Sequence[Answer], max_tokens: int) -> dict[str, Metric]:
    """The shares of right answers, each with its 95 % interval; that of patterns where a row has one."""
    how = f"greedy answers to held-out prompts, at most {max_tokens} tokens"

    def of_all(right: Callable[[Answer], bool], what: str) -> Metric:
        return share(sum(map(right, answers)), len(answers), f"share of {how}, {what}")

    found = {
        "exact_match": of_all(lambda answer: answer.exact, "that are the answer of the data set"),
        "answers_ended": of_all(lambda answer: answer.ended, "that the model ended by itself"),
    }
    if any(answer.pattern is not None for answer in answers):
        found["pattern_accuracy"] = of_all(
            lambda answer: answer.right,
            "that match the pattern of their row in full",
        )
    return found
