"""Documents of a data set: read from JSON lines, JSON, text and Python's documentation, brought into one form.

A document is a row in its natural form (chat, completion or text), the text by which duplicates are found, and the
group that must not straddle the split (the same prompt, the same topic).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ingot.core.digest import read_json
from ingot.errors import RefusedInput

Form = Literal["chat", "completion", "text"]

_ROLES = frozenset({"system", "user", "assistant", "tool"})
_SHAREGPT = {"human": "user", "gpt": "assistant", "system": "system", "tool": "tool"}
_MAX_SIGNATURE = 200

#: Names that fields of rows commonly have, tried in this order when the spec names none.
_USUAL: tuple[Mapping[str, str], ...] = (
    {"messages": "messages"},
    {"messages": "conversations"},
    {"prompt": "prompt", "completion": "completion"},
    {"instruction": "instruction", "input": "input", "output": "output"},
    {"instruction": "instruction", "output": "output"},
    {"prompt": "question", "completion": "answer"},
    {"text": "text"},
)


@dataclass(frozen=True)
class Document:
    """One row in the form ``form``: messages (role, content), or (prompt, completion), or (text,).

    ``pattern`` is a regular expression that every right answer matches. It says nothing of what is learned, so it is no
    part of the row's id.
    """

    form: Form
    messages: tuple[tuple[str, str], ...] = ()
    parts: tuple[str, ...] = ()
    group: str = ""
    alike: str = ""
    pattern: str | None = None

    @property
    def learned(self) -> str:
        """What a model is to learn to write: the last assistant turn, the completion, or the text."""
        return self.messages[-1][1] if self.messages else self.parts[-1]

    @property
    def compared(self) -> str:
        """The text by which duplicates are found: that of the source, else everything in the row."""
        return self.alike or "\n".join([content for _, content in self.messages] or self.parts)

    def content(self) -> dict[str, Any]:
        """The row without its id."""
        if self.form == "chat":
            return {"messages": [{"role": role, "content": content} for role, content in self.messages]}
        if self.form == "completion":
            return {"prompt": self.parts[0], "completion": self.parts[1]}
        return {"text": self.parts[0]}


def to_form(document: Document, form: Form, system: str | None) -> Document:
    """The document in another form; ``system`` is put before chats that have no system message.

    RefusedInput (E-DATASET-FORM) where there is no honest way: text has no prompt, and several turns are no pair.
    """
    if form == "chat" and document.form == "completion":
        pair = (("user", document.parts[0]), ("assistant", document.parts[1]))
        document = replace(document, form="chat", messages=pair, parts=())
    elif form == "completion" and document.form == "chat":
        if [role for role, _ in document.messages] != ["user", "assistant"]:
            raise _form("a conversation of several turns cannot become one prompt and one completion")
        document = replace(document, form=form, messages=(), parts=tuple(text for _, text in document.messages))
    elif form == "text" and document.form == "completion":
        document = replace(document, form=form, parts=("".join(document.parts),), pattern=None)  # text asks nothing
    elif form != document.form:
        raise _form(f"rows of the form {document.form!r} cannot become {form!r}")
    if form == "chat" and system and document.messages[0][0] != "system":
        document = replace(document, messages=(("system", system), *document.messages))
    return document


def _form(what: str) -> RefusedInput:
    return RefusedInput("E-DATASET-FORM", what, hint="choose another 'form', or leave it out")


def read_stdlib(path: Path, which: str, form: Form, chunk: int) -> Iterator[Document]:
    """Python's own documentation (the lines of ``core.stdlib_text``) as instruction pairs, or as plain text.

    The prompt names what is documented, so that the completion can be learned and not only guessed.
    """
    for line in path.read_bytes().splitlines():
        item = json.loads(line)
        group = f"{item['module']}.{item['name']}"
        if which == "docstrings":
            yield _pair(_ask_docstring(item), item["doc"], form, group)
            continue
        texts = list(chunks(item["doc"], chunk))
        for number, text in enumerate(texts, 1):
            part = f" (part {number} of {len(texts)})" if len(texts) > 1 else ""
            ask = f"Explain the topic `{item['name']}` of the Python language as its reference does{part}."
            yield _pair(ask, text, form, group)


def _ask_docstring(item: Mapping[str, str]) -> str:
    signature = item["signature"] if len(item["signature"]) <= _MAX_SIGNATURE else "(...)"
    name = f"{item['module']}.{item['name']}{signature}" if item["name"] else f"{item['module']} (module)"
    return f"Write the documentation of `{name}` from the Python standard library."


def _pair(ask: str, answer: str, form: Form, group: str) -> Document:
    if form == "text":
        return Document("text", parts=(answer,), group=group, alike=answer)
    if form == "completion":
        return Document("completion", parts=(f"{ask}\n\n", answer), group=group, alike=answer)
    return Document("chat", messages=(("user", ask), ("assistant", answer)), group=group, alike=answer)


def paired(prompt: str, completion: str, group: str, pattern: str | None) -> Document:
    """A prompt and its completion."""
    return Document("completion", parts=(prompt, completion), group=group, pattern=pattern)


def chunks(text: str, size: int) -> Iterator[str]:
    """Pieces of at most ``size`` characters, cut between paragraphs, else lines, else anywhere."""
    held = ""
    for paragraph in (piece for piece in text.replace("\r\n", "\n").split("\n\n") if piece.strip()):
        for piece in _split_long(paragraph.strip("\n"), size):
            if held and len(held) + 2 + len(piece) > size:
                yield held
                held = piece
            else:
                held = f"{held}\n\n{piece}" if held else piece
    if held:
        yield held


def _split_long(paragraph: str, size: int) -> Iterator[str]:
    while len(paragraph) > size:
        cut = paragraph.rfind("\n", 1, size + 1)
        cut = cut if cut > 0 else size
        yield paragraph[:cut]
        paragraph = paragraph[cut:].removeprefix("\n")
    yield paragraph


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
    if "messages" in mapping:
        return _conversation(row.get(mapping["messages"]))
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


def _conversation(value: object) -> Document:
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
    if messages[-1][0] != "assistant" or not messages[-1][1].strip() or len(messages) < 2:
        raise ValueError("the last message is not an answer of the assistant to something before it")
    return Document("chat", messages=tuple(messages), group=json.dumps(messages[:-1]))


def _row(at: str, what: str) -> RefusedInput:
    return RefusedInput("E-DATASET-ROW", f"{at}: {what}")
