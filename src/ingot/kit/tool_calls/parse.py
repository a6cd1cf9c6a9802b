"""The calls in what a model said: as JSON, in ``<tool_call>`` tags, or in the syntax of Python.

Laws. Nothing is ever evaluated: Python is read by ``ast`` and only literals are values. Either a text is meant as calls
or it is prose; what is meant as calls and cannot be read is kept as ``unreadable`` and is never mistaken for prose.
Text is meant as calls if, without thoughts (``<think>…</think>``) and the fence of a code block around it, it begins as
one of the forms does; tags may stand anywhere. A list of no calls is a way to say that none fits.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ingot.kit.tool_calls.calls import Call, leaves, read_value

Form = Literal["json", "tags", "python"]
FORMS: tuple[Form, ...] = ("json", "tags", "python")

_THOUGHT = re.compile(r"\A\s*<think>.*?(</think>|\Z)", re.DOTALL)
_FENCE = re.compile(r"```[a-z_]*[ \t]*\n(.*?)(```|\Z)", re.DOTALL)
_TAG = re.compile(r"<tool_call>(.*?)(</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
_PYTHON = re.compile(r"\[?\s*[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*\s*\(")
#: Words that stand between calls in some forms of JSON lines.
_BETWEEN = re.compile(r"[\s;,]*")


@dataclass(frozen=True)
class Said:
    """What was read of an answer: its calls in order, and the pieces that were meant as calls but are none."""

    calls: tuple[Call, ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def meant(self) -> bool:
        """Whether anything was meant as a call."""
        return bool(self.calls or self.unreadable)


def parse(text: str, forms: Sequence[Form] = FORMS) -> Said:
    """The calls of an answer."""
    text = _THOUGHT.sub("", text)
    if "tags" in forms and "<tool_call>" in text:
        return _joined(_piece(found[1].strip(), forms) for found in _TAG.finditer(text))
    if fenced := [block for found in _FENCE.finditer(text) if _begins(block := found[1].strip(), forms)]:
        return _joined(_piece(block, forms) for block in fenced)
    text = text.strip()
    return _piece(text, forms) if _begins(text, forms) else Said()


def _joined(parts: Iterator[Said]) -> Said:
    found = list(parts)
    return Said(
        tuple(call for part in found for call in part.calls), tuple(text for part in found for text in part.unreadable)
    )


def _begins(text: str, forms: Sequence[Form]) -> bool:
    """Whether a text begins as calls do."""
    return ("json" in forms and text[:1] in ("{", "[")) or ("python" in forms and _PYTHON.match(text) is not None)


def _piece(text: str, forms: Sequence[Form]) -> Said:
    """A text that is meant as calls from end to end."""
    try:
        if "python" in forms and _PYTHON.match(text):
            return Said(tuple(_python(text)))
        return Said(tuple(_json(text)))
    except (ValueError, RecursionError):
        return Said((), (text,))


def _json(text: str) -> Iterator[Call]:
    """The calls of a JSON array or object, or of several objects one after the other. ValueError."""
    try:
        value = read_value(text)
    except ValueError:
        # Llama writes one object after the other, others one a line.
        value = [read_value(part) for part in _objects(text)]
        if len(value) < 2:
            raise
    for item in value if isinstance(value, list) else [value]:
        yield _call(item)


def _objects(text: str) -> Iterator[str]:
    """The objects of a text that has nothing but such, apart by white space, commas or semicolons."""
    at, depth, start, quoted, escaped = 0, 0, 0, False, False
    for at, char in enumerate(text):
        if quoted:
            escaped, quoted = char == "\\" and not escaped, char != '"' or escaped
        elif char == '"':
            quoted = True
        elif char in "{}":
            if depth == 0 and (char == "}" or _BETWEEN.fullmatch(text[start:at]) is None):
                raise ValueError("something else between objects")
            start = at if char == "{" and depth == 0 else start
            depth += 1 if char == "{" else -1
            if depth == 0:
                yield text[start : at + 1]
                start = at + 1
    if depth or _BETWEEN.fullmatch(text[start:]) is None:
        raise ValueError("something after the last object")


def _call(item: Any) -> Call:
    """A call of the forms that models write. ValueError."""
    if not isinstance(item, dict):
        raise ValueError("a call is an object")
    if isinstance(item.get("function"), dict):
        item = item["function"]
    if isinstance(item.get("name"), str):
        given = [item[key] for key in ("arguments", "parameters") if key in item]
        arguments: Any = given[0] if given else {}
        if isinstance(arguments, str):  # OpenAI's form holds them as the text of a JSON object
            arguments = read_value(arguments)
        name = item["name"]
    elif len(item) == 1:
        ((name, arguments),) = item.items()
    else:
        raise ValueError("neither a name with arguments nor one function by its name")
    if not isinstance(arguments, dict):
        raise ValueError("arguments are an object")
    return Call(name, arguments)


def _python(text: str) -> Iterator[Call]:
    """The calls of a Python expression: one, or a list of them. ValueError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in texts
            body = ast.parse(text, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("no expression of Python") from error
    for node in body.elts if isinstance(body, ast.List | ast.Tuple) else [body]:
        yield _python_call(node)


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call whose arguments are all named")
    arguments: dict[str, Any] = {}
    for word in node.keywords:
        if word.arg is None or word.arg in arguments:
            raise ValueError("an argument without a name, or twice")
        arguments[word.arg] = _literal(word.value)
    for leaf in leaves(arguments):
        if isinstance(leaf, str):
            leaf.encode()
    return Call(_dotted(node.func), arguments)


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    raise ValueError("no name of a function")


def _literal(node: ast.expr) -> Any:
    """The JSON value of a literal; JSON's own words for true, false and null are read too."""
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_literal(key) if key is not None else None for key in node.keys]
        if not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
            raise ValueError("keys are texts, each once")
        return dict(zip(keys, map(_literal, node.values), strict=True))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _literal(node.operand)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("a sign before what is no number")
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool | int | float | str)):
        if isinstance(node.value, float) and node.value in (float("inf"), float("-inf")):
            raise ValueError("a number that no double holds")
        return node.value
    raise ValueError("not a literal")
