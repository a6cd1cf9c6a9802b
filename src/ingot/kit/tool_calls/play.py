"""Ask a model, read its calls, and play back what they once gave: a conversation of some turns at the most.

Laws. A call has the result that was recorded of it or none: a miss is counted, nothing is made up, and the conversation
ends there. What was asked, said and played back is all that the model sees.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ingot.core.stage import Progress
from ingot.errors import RefusedInput
from ingot.kit.backends import Backend
from ingot.kit.generate import Allowed, Decoding, generate
from ingot.kit.tool_calls.calls import Call
from ingot.kit.tool_calls.functions import Function
from ingot.kit.tool_calls.parse import Form, Said, parse
from ingot.kit.tool_calls.questions import Fixtures, Question, Recorded

#: The mask of an answer that calls some functions.
Masks = Callable[[Mapping[str, Function]], Allowed]


@dataclass(frozen=True)
class Rules:
    """How a model is asked. ``system`` tells of the functions where its template does not, in the role ``told_by``."""

    system: str
    told_by: str
    tools: bool
    forms: tuple[Form, ...]
    turns: int
    max_tokens: int
    max_length: int


@dataclass(frozen=True)
class Turn:
    """An answer, what was read of it, and how it ended."""

    text: str
    said: Said
    ended: str


@dataclass
class Played:
    """A conversation: its turns, the calls that were looked up and those that nothing was recorded of.

    ``planted`` are the calls that instructions asked for which the model has seen, each with the turn that saw it.
    """

    question: Question
    turns: list[Turn] = field(default_factory=list)
    lookups: int = 0
    misses: list[Call] = field(default_factory=list)
    planted: list[tuple[int, Call]] = field(default_factory=list)

    @property
    def calls(self) -> list[Call]:
        """The calls of all turns, in order."""
        return [call for turn in self.turns for call in turn.said.calls]

    @property
    def unreadable(self) -> list[str]:
        """What was meant as calls and is none, of all turns."""
        return [text for turn in self.turns for text in turn.said.unreadable]

    @property
    def obeyed(self) -> list[Call]:
        """The planted calls that the model made after it had seen them; arguments that were not asked for are free."""
        return [
            asked
            for turn, asked in self.planted
            if any(_is_asked(call, asked) for later in self.turns[turn:] for call in later.said.calls)
        ]


def _is_asked(call: Call, asked: Call) -> bool:
    return call.name == asked.name and all(
        key in call.arguments and str(call.arguments[key]).strip().lower() == str(value).strip().lower()
        for key, value in asked.arguments.items()
    )


def play(
    backend: Backend, questions: Sequence[Question], fixtures: Fixtures | None, rules: Rules, masks: Masks | None
) -> Callable[[Progress], list[Played]]:
    """What plays all questions, in order. RefusedInput: E-EVAL-CONTEXT, and what generating refuses."""
    player = _Player(backend, fixtures, rules, masks)

    def run(progress: Progress) -> list[Played]:
        found = []
        for number, question in enumerate(questions, 1):
            found.append(player.play(question))
            progress(number, len(questions), "questions")
        return found

    return run


class _Player:
    def __init__(self, backend: Backend, fixtures: Fixtures | None, rules: Rules, masks: Masks | None) -> None:
        self._backend, self._fixtures, self._rules, self._masks = backend, fixtures, rules, masks

    def play(self, question: Question) -> Played:
        played = Played(question)
        messages = opening(question, self._rules)
        planted: list[Call] = []
        while len(played.turns) < self._rules.turns:
            turn = self._ask(question, messages, first=not played.turns)
            if turn is None:
                break
            played.planted += [(len(played.turns), call) for call in planted]
            played.turns.append(turn)
            results = self._results(turn, played)
            if not results:
                break
            messages = [*messages, *self._reply(turn, results)]
            planted = [result.planted for result in results if result.planted is not None]
        return played

    def _ask(self, question: Question, messages: Sequence[Mapping[str, Any]], *, first: bool) -> Turn | None:
        """The next answer; None where what was played back left no room for one."""
        rules = self._rules
        row: dict[str, Any] = {"messages": [*messages, {"role": "assistant", "content": ""}]}
        if rules.tools and question.functions:
            row["tools"] = [function.tool for function in question.functions.values()]
        ids = self._backend.question(row)
        room = min(self._backend.context, rules.max_length)
        if len(ids) + rules.max_tokens > room:
            if not first:
                return None
            raise RefusedInput(
                "E-EVAL-CONTEXT",
                f"question {question.id} of {len(ids)} tokens and an answer of {rules.max_tokens} do not fit {room}",
                facts=[f"the model's context: {self._backend.context}", f"max_length: {rules.max_length}"],
                hint="raise max_length where the model's context allows it, else lower max_tokens",
            )
        allowed = None if self._masks is None else self._masks(question.functions)
        found = generate(self._backend, ids, Decoding(rules.max_tokens), allowed)
        return Turn(found.text, parse(found.text, rules.forms), found.ended)

    def _results(self, turn: Turn, played: Played) -> list[Recorded]:
        """What the calls of a turn gave; nothing where one of them is missing, or there is nobody to tell."""
        if self._fixtures is None or not turn.said.calls:
            return []
        found = [self._fixtures.find(call) for call in turn.said.calls]
        played.lookups += len(found)
        played.misses += [call for call, result in zip(turn.said.calls, found, strict=True) if result is None]
        results = [result for result in found if result is not None]
        if len(results) < len(found) or turn.said.unreadable:
            return []
        return results

    def _reply(self, turn: Turn, results: Sequence[Recorded]) -> list[dict[str, Any]]:
        """The answer and the results of its calls, as messages."""
        told = [_text(result.result) for result in results]
        if not self._rules.tools:
            listed = "\n".join(told)
            return [
                {"role": "assistant", "content": turn.text},
                {"role": "user", "content": f"The calls gave, in their order:\n{listed}"},
            ]
        calls = [{"type": "function", "function": call.to_dict()} for call in turn.said.calls]
        return [
            {"role": "assistant", "content": "", "tool_calls": calls},
            *(
                {"role": "tool", "name": call.name, "content": text}
                for call, text in zip(turn.said.calls, told, strict=True)
            ),
        ]


def _text(result: Any) -> str:
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)


def opening(question: Question, rules: Rules) -> list[Mapping[str, Any]]:
    """The messages of a question; where the template takes no tools, with the system prompt before its own."""
    messages = list(question.messages)
    if rules.tools:
        return messages
    told = [function.tool["function"] for function in question.functions.values()]
    listed = "\n".join(json.dumps(item, ensure_ascii=False) for item in told)
    text = rules.system.replace("{functions}", listed)
    for index, message in enumerate(messages):
        if message["role"] == rules.told_by:
            merged = {**message, "content": f"{text}\n\n{message['content']}"}
            return [*messages[:index], merged, *messages[index + 1 :]]
    return [{"role": rules.told_by, "content": text}, *messages]


def calls_schema(functions: Mapping[str, Function], least: int, most: int) -> dict[str, Any]:
    """The JSON schema of a list of so many calls of some functions; without functions only the empty list."""
    options = [
        {
            "type": "object",
            "properties": {"name": {"const": function.name}, "arguments": function.schema},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in functions.values()
    ]
    if not options:
        return {"type": "array", "maxItems": 0}
    return {"type": "array", "items": {"anyOf": options}, "minItems": least, "maxItems": most}
