"""The files of a measurement: questions, the answers that are right, and recorded results of calls. JSON lines all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingot.core.digest import read_json
from ingot.errors import RefusedInput
from ingot.kit.tool_calls.calls import Call
from ingot.kit.tool_calls.compare import Answer
from ingot.kit.tool_calls.functions import Function

_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Question:
    """What is asked; ``answers`` are the right calls, none where no function fits.

    ``private`` are texts that no call may pass on.
    """

    id: str
    messages: tuple[Mapping[str, Any], ...]
    functions: Mapping[str, Function]
    answers: tuple[Answer, ...]
    private: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recorded:
    """What a call once gave; ``planted`` is the call that an instruction inside it asks for, if there is one."""

    result: Any
    planted: Call | None = None


@dataclass(frozen=True)
class Fixtures:
    """Recorded results by the canonical text of their calls; there are no others."""

    results: Mapping[str, Recorded] = field(default_factory=dict)

    def find(self, call: Call) -> Recorded | None:
        """What was recorded of a call; None: nothing was, and nothing is made up."""
        return self.results.get(call.canonical)


def read_questions(questions: Sequence[Path], answers: Sequence[Path]) -> list[Question]:
    """The questions of files, each file's in its order, with their answers.

    A question has none, where no function fits: its answer lists no call, or it is in no file of answers and BFCL's
    word for that, ``irrelevance``, is in its id.

    RefusedInput: E-TOOLS-QUESTIONS, E-TOOLS-ANSWERS, E-SCHEMA.
    """
    right: dict[str, Any] = {}
    for where, row in _rows(answers, "E-TOOLS-ANSWERS"):
        name = _id(row, where, "E-TOOLS-ANSWERS")
        if name in right:
            raise RefusedInput("E-TOOLS-ANSWERS", f"{where}: the answer of {name!r} is there twice")
        right[name] = (where, row.get("ground_truth"))
    found: dict[str, Question] = {}
    for where, row in _rows(questions, "E-TOOLS-QUESTIONS"):
        question = _question(row, where, right)
        if question.id in found:
            raise RefusedInput("E-TOOLS-QUESTIONS", f"{where}: the question {question.id!r} is there twice")
        found[question.id] = question
    if not found:
        raise RefusedInput("E-TOOLS-QUESTIONS", "the files of questions hold none")
    return list(found.values())


def _question(row: Mapping[str, Any], where: str, right: Mapping[str, Any]) -> Question:
    name = _id(row, where, "E-TOOLS-QUESTIONS")
    turns, told, private = row.get("question"), row.get("function"), row.get("private", [])
    if isinstance(turns, list) and turns and all(isinstance(item, dict) for item in turns):
        turns = [turns]
    if not isinstance(turns, list) or len(turns) != 1 or not isinstance(turns[0], list) or not turns[0]:
        raise RefusedInput("E-TOOLS-QUESTIONS", f"{where}: 'question' is not one turn: a list of messages in a list")
    for message in turns[0]:
        if not isinstance(message, dict) or message.get("role") not in _ROLES or "content" not in message:
            raise RefusedInput("E-TOOLS-QUESTIONS", f"{where}: a message has no role and content")
    if not isinstance(told, list) or not all(isinstance(item, dict) for item in told):
        raise RefusedInput("E-TOOLS-QUESTIONS", f"{where}: 'function' is no list of functions")
    if not isinstance(private, list) or not all(isinstance(text, str) and text for text in private):
        raise RefusedInput("E-TOOLS-QUESTIONS", f"{where}: 'private' is no list of texts")
    functions = {function.name: function for function in (Function(item, where) for item in told)}
    answers = tuple(_answers(name, where, functions, right))
    return Question(name, tuple(turns[0]), functions, answers, tuple(private))


def _answers(name: str, where: str, functions: Mapping[str, Function], right: Mapping[str, Any]) -> Iterator[Answer]:
    if name not in right:
        if "irrelevance" in name:
            return
        raise RefusedInput(
            "E-TOOLS-ANSWERS",
            f"{where}: no file of answers has one of {name!r}",
            hint=f'where no function fits, the answer is an empty list: {{"id": "{name}", "ground_truth": []}}',
        )
    at, calls = right[name]
    if not isinstance(calls, list):
        raise RefusedInput("E-TOOLS-ANSWERS", f"{at}: 'ground_truth' is no list of calls")
    for call in calls:
        if not isinstance(call, dict) or len(call) != 1:
            raise RefusedInput("E-TOOLS-ANSWERS", f"{at}: a call is one function with its arguments")
        ((function, values),) = call.items()
        if function not in functions:
            raise RefusedInput("E-TOOLS-ANSWERS", f"{at}: the question has no function {function!r}")
        if not isinstance(values, dict) or not all(isinstance(item, list) for item in values.values()):
            raise RefusedInput("E-TOOLS-ANSWERS", f"{at}: an argument of {function!r} has no list of right values")
        yield function, values


def read_fixtures(path: Path) -> Fixtures:
    """Recorded results: ``{"call": {"name", "arguments"}, "result": …}``, with ``planted`` a call too.

    RefusedInput (E-TOOLS-FIXTURES), also where one call has two results.
    """
    found: dict[str, Recorded] = {}
    for where, row in _rows([path], "E-TOOLS-FIXTURES"):
        if "result" not in row:
            raise RefusedInput("E-TOOLS-FIXTURES", f"{where}: there is no 'result'")
        call = _recorded(row.get("call"), where)
        if call.canonical in found:
            raise RefusedInput("E-TOOLS-FIXTURES", f"{where}: the call has a result already")
        planted = _recorded(row["planted"], where) if "planted" in row else None
        found[call.canonical] = Recorded(row["result"], planted)
    return Fixtures(found)


def _recorded(value: Any, where: str) -> Call:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise RefusedInput("E-TOOLS-FIXTURES", f"{where}: a call has a name, and arguments by theirs")
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict):
        raise RefusedInput("E-TOOLS-FIXTURES", f"{where}: a call has a name, and arguments by theirs")
    return Call(value["name"], arguments)


def _id(row: Mapping[str, Any], where: str, code: str) -> str:
    if not isinstance(row.get("id"), str) or not row["id"]:
        raise RefusedInput(code, f"{where}: there is no 'id'")
    return str(row["id"])


def _rows(paths: Sequence[Path], code: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row of files, or of all files of folders by name, and where it is."""
    for number, path in enumerate(paths):
        files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
        for file in files:
            name = file.name if path.is_dir() else f"file {number + 1}"
            for at, line in enumerate(file.read_bytes().splitlines(), 1):
                if line.strip():
                    yield f"{name}, line {at}", _row(line, f"{name}, line {at}", code)


def _row(line: bytes, where: str, code: str) -> Mapping[str, Any]:
    try:
        value = read_json(line)
    except (ValueError, RecursionError) as error:
        raise RefusedInput(code, f"{where}: not JSON: {error}", hint="one JSON object a line") from error
    if not isinstance(value, dict):
        raise RefusedInput(code, f"{where}: not a JSON object", hint="one JSON object a line")
    return value
