"""Answers of a model to prompts: which are asked, what is kept of each, and how much they repeat themselves.

``samples.jsonl`` has one line a prompt, in the order of their ids or of the spec:
``{"id", "prompt", "answer", "tokens", "ended"}``. ``prompt`` is a text to be read by people and judges: what the user
said, or the turns of a longer conversation. White space around an answer is no part of it: runtimes do not agree
whether the text of a first token begins with a space. ``ended`` is one of ``kit.generate.Ended``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ingot.core.digest import read_json, sha256_bytes
from ingot.core.stage import Metric, Progress
from ingot.errors import RefusedInput
from ingot.kit.backends import Backend
from ingot.kit.bootstrap import RESAMPLES, ratio_interval, share
from ingot.kit.chat import Row, answered, read_rows, wanted_text
from ingot.kit.generate import Allowed, Decoding, generate
from ingot.kit.scoring.units import in_order

#: Words of a window in which distinct ones are counted: shares in texts of unlike length do not compare.
WINDOW = 25
#: Words that together are a repetition when they stand in an answer again.
_GRAM = 4
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Prompt:
    """What is asked: a row without its answer, and the text that it shows. ``row`` None: a prompt of the spec."""

    id: str
    text: str
    row: Row | None = None

    def asked_of(self, backend: Backend) -> Row:
        """The row as this model gets it: a text of the spec by its chat template, if it has one."""
        if self.row is not None:
            return self.row
        if backend.template.source is None:
            return {"prompt": self.text, "completion": ""}
        return {"messages": [{"role": "user", "content": self.text}, {"role": "assistant", "content": ""}]}


@dataclass(frozen=True)
class Sample:
    """A prompt and what was answered; ``tokens``: how many were generated."""

    id: str
    prompt: str
    answer: str
    tokens: int
    ended: str

    @property
    def digest(self) -> str:
        """SHA-256 of the answer's text."""
        return sha256_bytes(self.answer.encode())


def held_out(folder: Path, limit: int) -> list[Prompt]:
    """The first ``limit`` held-out rows, in the order of their ids (content). RefusedInput (E-SAMPLES-PROMPTS)."""
    rows = in_order(read_rows(folder, "eval"))
    if not rows or not all("messages" in row or "prompt" in row for row in rows):
        raise RefusedInput(
            "E-SAMPLES-PROMPTS",
            "the rows held out are plain text, so there is nothing to ask" if rows else "no row is held out",
            hint="give 'prompts', or a data set of prompts and completions or of chats with a 'split.eval'",
        )
    return [Prompt(str(row.get("id", "")), prompt_text(row), row) for row in rows[:limit]]


def written(prompts: Sequence[str]) -> list[Prompt]:
    """Prompts of a spec; the id is of the text."""
    return [Prompt(sha256_bytes(text.encode())[:16], text) for text in prompts]


def prompt_text(row: Row) -> str:
    """What a row asks, to be read: one message alone, several with who says them."""
    row = answered(row)
    if "messages" not in row:
        return str(row["prompt"])
    asked = row["messages"][:-1]
    if len(asked) == 1:
        return str(asked[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in asked)


@dataclass(frozen=True)
class How:
    """How prompts are answered, in a context of so many tokens; ``masks`` gives each answer one of its own."""

    decoding: Decoding
    context: int
    masks: Callable[[], Allowed] | None = None


def answer(backend: Backend, prompts: Sequence[Prompt], how: How, progress: Progress) -> list[Sample]:
    """The answers of a model, in the order of the prompts, each with draws of its own.

    RefusedInput: E-SAMPLES-CONTEXT where a prompt and its answer do not fit the context, and those of ``generate``.
    """
    decoding, context = how.decoding, min(how.context, backend.context)
    found: list[Sample] = []
    for number, prompt in enumerate(prompts, 1):
        ids = backend.question(prompt.asked_of(backend))
        if len(ids) + decoding.max_tokens > context:
            raise RefusedInput(
                "E-SAMPLES-CONTEXT",
                f"prompt {prompt.id} of {len(ids)} tokens and an answer of {decoding.max_tokens} do not fit "
                f"the context of {context}",
                hint="set 'max_tokens' to less, or where the model reads more, 'context' to more",
            )
        allowed = None if how.masks is None else how.masks()
        made = generate(backend, ids, replace(decoding, seed=_seed(decoding.seed, prompt.id)), allowed)
        found.append(Sample(prompt.id, prompt.text, made.text.strip(), len(made.tokens), made.ended))
        progress(number, len(prompts), "answers")
    return found


def _seed(seed: int, prompt: str) -> int:
    """The same for a prompt whichever others are asked."""
    return int(sha256_bytes(f"{seed}\n{prompt}".encode())[:15], 16)


def write(path: Path, found: Sequence[Sample]) -> None:
    """One line a prompt."""
    lines = [json.dumps(asdict(item), sort_keys=True, ensure_ascii=False) + "\n" for item in found]
    path.write_text("".join(lines), encoding="utf-8")


def read(folder: Path) -> list[Sample]:
    """What ``write`` wrote; RefusedInput (E-SAMPLES-FILE) where it is not that."""
    try:
        lines = [read_json(line) for line in (folder / "samples.jsonl").read_bytes().splitlines()]
        found = [Sample(**line) for line in lines if isinstance(line, dict)]
    except (OSError, ValueError, TypeError) as error:
        raise RefusedInput("E-SAMPLES-FILE", f"samples cannot be read: {error}") from error
    whole = all(isinstance(item.answer, str) and isinstance(item.prompt, str) for item in found)
    if not found or not whole or len(found) != len(lines) or len({item.id for item in found}) != len(found):
        raise RefusedInput("E-SAMPLES-FILE", "samples.jsonl does not have one answer a prompt")
    return found


def words(text: str) -> list[str]:
    """The words of a text: runs of letters and digits, in small letters."""
    return _WORD.findall(text.casefold())


def distinct_words(said: Sequence[str]) -> float | None:
    """The share of distinct words, averaged over every window of ``WINDOW`` words; None for fewer.

    The moving-average type-token ratio (Covington and McFall 2010), which does not fall with the length of a text.
    """
    counts = [len(set(said[at : at + WINDOW])) for at in range(len(said) - WINDOW + 1)]
    return sum(counts) / (WINDOW * len(counts)) if counts else None


def repetition(said: Sequence[str]) -> float | None:
    """The share of an answer's runs of four words that stood in it before (https://arxiv.org/abs/1908.04319)."""
    grams = [tuple(said[at : at + _GRAM]) for at in range(len(said) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def valid(found: Sequence[Sample], schema: Mapping[str, Any]) -> Metric:
    """The share of answers that are JSON of a schema."""
    from ingot.kit.schemas import Schema

    checked, right = Schema(schema, "json_schema"), 0
    for item in found:
        with suppress(ValueError, RecursionError):
            right += not checked.faults(read_json(item.answer.encode()))
    return share(right, len(found), "share of answers that are JSON of `json_schema`")


def metrics(found: Sequence[Sample], max_tokens: int) -> tuple[dict[str, Metric], dict[str, str]]:
    """What is measured of answers, and why the rest is not."""
    count, ended = len(found), sum(item.ended in {"end", "stop"} for item in found)
    tokens = sum(item.tokens for item in found)
    how = f"share of answers, at most {max_tokens} tokens each"
    measured = {
        "samples": Metric(count, "answers", "prompts answered"),
        "tokens": Metric(tokens, "tokens", "tokens generated, those that end an answer left out"),
        "ended": share(ended, count, f"{how}, that the model or a stop text ended"),
        "distinct_answers": Metric(
            len({" ".join(item.answer.split()) for item in found}) / count,
            "1",
            "distinct answers by answers; white space does not count",
            count,
        ),
    }
    missing = {}
    for name, measure, least, what in (
        ("distinct_words", distinct_words, WINDOW, f"share of distinct words in windows of {WINDOW} words"),
        ("repetition", repetition, _GRAM, f"share of an answer's runs of {_GRAM} words that stood in it before"),
    ):
        metric = _mean(found, measure, f"{what}, mean over answers of at least {least} words")
        if metric is None:
            missing[name] = f"no answer has {least} words"
        else:
            measured[name] = metric
    return measured, missing


def _mean(found: Sequence[Sample], measure: Callable[[Sequence[str]], float | None], what: str) -> Metric | None:
    values = [value for item in found if (value := measure(words(item.answer))) is not None]
    if not values:
        return None
    interval = ratio_interval(values, [1] * len(values), RESAMPLES)
    method = f"{what}; 95 % interval: percentile bootstrap over answers"
    return Metric(sum(values) / len(values), "1", method, len(values), interval)


def matched(found: Sequence[Sample], rows: Sequence[Row]) -> list[tuple[Sample, str]]:
    """Each sample with the answer of its row. RefusedInput (E-SAMPLES-ROWS) where a sample is of no row held out."""
    by_id: Mapping[str, Row] = {str(row.get("id", "")): row for row in rows}
    pairs = []
    for item in found:
        row = by_id.get(item.id)
        if row is None or prompt_text(row) != item.prompt:
            raise RefusedInput(
                "E-SAMPLES-ROWS",
                f"the answer {item.id} is to no prompt that the data set holds out",
                hint="the samples are those of another data set, or of prompts in a spec, which have no answer",
            )
        pairs.append((item, wanted_text(row)))
    return pairs
