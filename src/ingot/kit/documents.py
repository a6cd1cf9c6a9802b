"""Documents of a data set: read from text and Python's documentation, brought into one form.

A document is a row in its natural form (chat, completion, text or preference), the text by which duplicates are found,
and the group that must not straddle the split (the same prompt, the same topic). ``rows`` reads rows of JSON as such.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ingot.errors import RefusedInput

Form = Literal["chat", "completion", "text", "preference"]

_MAX_SIGNATURE = 200


@dataclass(frozen=True)
class Document:
    """One row in the form ``form``: messages (role, content), or (prompt, completion), or (text,).

    Of a preference ``parts`` ends in the chosen and the rejected answer; before them stands the prompt, unless
    ``messages`` are what is answered. ``pattern`` is a regular expression that every right answer matches. It says
    nothing of what is learned, so it is no part of the row's id.
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
        if self.form == "preference":
            return self.parts[-2]
        return self.messages[-1][1] if self.messages else self.parts[-1]

    @property
    def answers(self) -> tuple[str, ...]:
        """What its length is measured by: what is learned, and of a preference also what is not to be."""
        return self.parts[-2:] if self.form == "preference" else (self.learned,)

    @property
    def compared(self) -> str:
        """The text by which duplicates are found: that of the source, else everything in the row."""
        parts = self.parts if self.form == "preference" or not self.messages else ()
        return self.alike or "\n".join([*(content for _, content in self.messages), *parts])

    def content(self) -> dict[str, Any]:
        """The row without its id."""
        messages = {"messages": [{"role": role, "content": content} for role, content in self.messages]}
        if self.form == "preference":
            asked = messages if self.messages else {"prompt": self.parts[0]}
            return {**asked, "chosen": self.parts[-2], "rejected": self.parts[-1]}
        if self.form == "chat":
            return messages
        if self.form == "completion":
            return {"prompt": self.parts[0], "completion": self.parts[1]}
        return {"text": self.parts[0]}


def to_form(document: Document, form: Form, system: str | None) -> Document:
    """The document in another form; ``system`` is put before chats that have no system message.

    RefusedInput (E-DATASET-FORM) where there is no honest way: text has no prompt, and several turns are no pair.
    """
    if document.form == "preference" and form in {"chat", "completion"}:
        document = _preferred(document)
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
    if document.messages and system and document.messages[0][0] != "system":
        document = replace(document, messages=(("system", system), *document.messages))
    return document


def _preferred(document: Document) -> Document:
    """A preference without what was rejected: a row to be learned."""
    if document.messages:
        messages = (*document.messages, ("assistant", document.parts[-2]))
        return replace(document, form="chat", messages=messages, parts=())
    return replace(document, form="completion", parts=document.parts[:2])


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
