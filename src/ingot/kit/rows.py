"""Rows of JSON, in the spellings that data sets commonly have, as documents; and files of text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ingot.core.digest import read_json
from ingot.errors import RefusedInput
from ingot.kit.documents import Document, chunks

_ROLES = frozenset({"system", "user", "assistant", "tool"})
_SHAREGPT = {"human": "user", "gpt": "assistant", "system": "system", "tool": "tool"}

#: Names that fields of rows commonly have, tried in this order when the spec names none.
_USUAL: tuple[Mapping[str, str], ...] = (
    {"messages": "messages", "chosen": "chosen", "rejected": "rejected"},
    {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    {"prompt": "question", "chosen": "chosen", "rejected": "rejected"},
    {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"},
    {"chosen": "chosen", "rejected": "rejected"},
    {"messages": "messages"},
    {"messages": "conversations"},
    {"prompt": "prompt", "completion": "completion"},
    {"instruction": "instruction", "input": "input", "output": "output"},
    {"instruction": "instruction", "output": "output"},
    {"prompt": "question", "completion": "answer"},
    {"text": "text"},
)


def read_file(path: Path, format_: str, fields: Mapping[str, str] | None, where: str, chunk: int) -> Iterator[Document]:
    """The documents of one file; ``where`` names it in messages.

    RefusedInput (E-DATASET-ROW) with the line (or for JSON the element) for what is no row: ``rows.jsonl:3: …``.
    """
    if format_ == "text":
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise _row(where, f"not UTF-8 text ({error.reason} at byte {error.start})") from error
        for piece in chunks(text, chunk):
            yield Document("text", parts=(piece,), group=piece)
        return
    for at, row in _json_rows(path, format_, where):
        if not isinstance(row, dict):
            raise _row(at, "not a JSON object")
        mapping = fields or next((names for names in _USUAL if set(names.values()) <= row.keys()), None)
        if mapping is None:
            raise _row(at, f"no known fields among {', '.join(sorted(row))}; name them by 'fields'")
        try:
            document = replace(_document(row, mapping), pattern=_pattern(row, mapping))
            json.dumps([document.content(), document.pattern], ensure_ascii=False).encode()
        except ValueError as error:  # also half of a surrogate pair
            raise _row(at, str(error)) from error
        yield document


def _json_rows(path: Path, format_: str, where: str) -> Iterator[tuple[str, object]]:
    """Each row and where it is: FILE:LINE, or for an array the number of the element."""
    if format_ == "json":
        data = path.read_bytes()
        try:
            value = read_json(data) if data.strip() else []
        except (ValueError, RecursionError) as error:
            raise _no_json(where, error, getattr(error, "lineno", None)) from error
        if not isinstance(value, list):
            raise _row(where, "not a JSON array of rows")
        yield from ((f"{where}, row {number}", row) for number, row in enumerate(value, 1))
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield f"{where}:{number}", read_json(line.rstrip(b"\r\n"))
                except (ValueError, RecursionError) as error:
                    raise _no_json(where, error, number) from error


def _no_json(where: str, error: Exception, line: int | None) -> RefusedInput:
    at = where if line is None else f"{where}:{line}"
    if isinstance(error, json.JSONDecodeError):
        return _row(at, f"not JSON ({error.msg.lower()}, column {error.colno})")
    if isinstance(error, UnicodeDecodeError):
        return _row(at, f"not UTF-8 text ({error.reason})")
    return _row(at, f"not JSON ({error})")


def _document(row: Mapping[str, Any], mapping: Mapping[str, str]) -> Document:
    """A row by a map of meanings (messages, prompt, …) to names of fields; ValueError says what is wrong."""
    if "chosen" in mapping:
        return preference(row, mapping)
    if "messages" in mapping:
        return conversation(row.get(mapping["messages"]))
    if "text" in mapping:
        text = _text(row, mapping["text"])
        return Document("text", parts=(text,), group=text)
    if "instruction" in mapping:
        ask, more = _text(row, mapping["instruction"]), ""
        if "input" in mapping and row.get(mapping["input"]) not in (None, ""):
            more = f"\n\n{_text(row, mapping['input'])}"
        messages = (("user", ask + more), ("assistant", _text(row, mapping["output"])))
        return Document("chat", messages=messages, group=ask + more)
    prompt = _text(row, mapping["prompt"])
    return Document("completion", parts=(prompt, _text(row, mapping["completion"])), group=prompt)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"the field {name!r} is {'missing' if value is None else 'not a text that says something'}")
    return value


def _pattern(row: Mapping[str, Any], mapping: Mapping[str, str]) -> str | None:
    return _text(row, mapping["pattern"]) if row.get(mapping.get("pattern", "")) is not None else None


def conversation(value: object) -> Document:
    """A chat that ends in an answer. ValueError says what is wrong."""
    messages = turns(value)
    if messages[-1][0] != "assistant" or not messages[-1][1].strip() or len(messages) < 2:
        raise ValueError("the last message is not an answer of the assistant to something before it")
    return Document("chat", messages=messages, group=json.dumps(messages[:-1]))


def turns(value: object) -> tuple[tuple[str, str], ...]:
    """The (role, content) pairs of a list of messages in one of the usual spellings. ValueError for anything else."""
    if not isinstance(value, list) or not value:
        raise ValueError("the messages are not a list")
    messages = []
    for entry in value:
        item = entry if isinstance(entry, dict) else {}
        role = item.get("role") or _SHAREGPT.get(str(item.get("from")), item.get("from"))
        content = item.get("content", item.get("value"))
        if not isinstance(role, str) or role not in _ROLES or not isinstance(content, str):
            raise ValueError(f"a message needs a role (of {', '.join(sorted(_ROLES))}) and a text as its content")
        messages.append((role, content))
    return tuple(messages)


def preference(row: Mapping[str, Any], mapping: Mapping[str, str]) -> Document:
    """A preference in one of the usual spellings; ValueError says what is wrong.

    Both answers are texts, or lists of messages: then each is the answer alone, or the whole conversation. What is
    asked is what both conversations begin with, and need not be written beside them.
    """
    chosen, rejected = (row.get(mapping[name]) for name in ("chosen", "rejected"))
    if isinstance(chosen, list) and isinstance(rejected, list):
        asked, pair = _asked(turns(chosen), turns(rejected), _before(row, mapping))
    elif "messages" in mapping or isinstance(row.get(mapping.get("prompt", "")), list):
        asked, pair = _before(row, mapping), _pair_of_texts(row, mapping)
    else:
        if "prompt" not in mapping:
            raise ValueError("'chosen' and 'rejected' are texts, and there is no prompt that they answer")
        prompt, pair = _text(row, mapping["prompt"]), _pair_of_texts(row, mapping)
        return Document("preference", parts=(prompt, *pair), group=prompt)
    if not asked or asked[-1][0] == "assistant":
        raise ValueError("nothing is asked before the two answers")
    return Document("preference", messages=asked, parts=pair, group=json.dumps(asked))


def _pair_of_texts(row: Mapping[str, Any], mapping: Mapping[str, str]) -> tuple[str, str]:
    return _text(row, mapping["chosen"]), _text(row, mapping["rejected"])


def _before(row: Mapping[str, Any], mapping: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The messages that are answered, as far as the row has them beside the answers."""
    value = row.get(mapping.get("messages", mapping.get("prompt", "")))
    if isinstance(value, str):
        return (("user", value),)
    return () if value is None else turns(value)


def _asked(
    chosen: tuple[tuple[str, str], ...], rejected: tuple[tuple[str, str], ...], before: tuple[tuple[str, str], ...]
) -> tuple[tuple[tuple[str, str], ...], tuple[str, str]]:
    """What two conversations ask, and the one answer in which each ends."""
    if chosen[:-1] != rejected[:-1]:
        raise ValueError("'chosen' and 'rejected' answer different conversations, or in more than one message")
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if messages[-1][0] != "assistant" or not messages[-1][1].strip():
            raise ValueError(f"the last message of {name!r} is not an answer of the assistant")
    return chosen[:-1] or before, (chosen[-1][1], rejected[-1][1])


def _row(at: str, what: str) -> RefusedInput:
    return RefusedInput("E-DATASET-ROW", f"{at}: {what}")
