"""What a YAML scalar of a spec means: the YAML 1.2 core schema, less everything that two readers read differently.

A plain scalar is null, a boolean, a number or text. What YAML 1.1 or another reader would take for something else
(octals, dates, base-60 numbers, ``yes``) is refused, so that a spec says the same everywhere; quoted, all is text.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ingot.core.redact import redact

#: The largest integer that every JSON reader holds exactly (RFC 8785): 2^53 - 1.
MAX_INTEGER = 2**53 - 1

#: No message shows more of a text than that, however long the text is.
_MOST = 4096
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_TRUE = frozenset(("true", "True", "TRUE"))
_FALSE = frozenset(("false", "False", "FALSE"))
_WORDS = frozenset(("yes", "no", "on", "off"))
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_ODD_BASE = re.compile(r"[-+]?(0[0-9_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|0b[01_]+)")
_GROUPED = re.compile(r"[-+]?[0-9][0-9_]*_[0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?")
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")


@dataclass(frozen=True)
class Refusal:
    """Why a scalar is refused: code, one sentence, hint."""

    code: str
    what: str
    hint: str


def plain(text: str) -> object:
    """The value of an unquoted scalar, or the Refusal of one that is ambiguous or no JSON number."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if text[0] in "+-.0123456789":
        return _number(text)
    if text.lower() not in _WORDS:
        return text
    meant = "true" if text.lower() in ("yes", "on") else "false"
    why = f"{shorten(text)} is a boolean in YAML 1.1, text in YAML 1.2"
    return Refusal("E-SPEC-AMBIGUOUS", why, f'write `{meant}`, or quote it if text is meant: "{shorten(text)}"')


def _number(text: str) -> object:
    if _ODD_BASE.fullmatch(text):
        return _ambiguous(text, "a number in another base to some readers")
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) <= 17 and abs(int(text)) <= MAX_INTEGER else _no_number(text)
    if _FLOAT.fullmatch(text) or _NOT_FINITE.fullmatch(text):
        value = math.nan if _NOT_FINITE.fullmatch(text) else float(text)
        return value if math.isfinite(value) else _no_number(text)
    if _DATE.fullmatch(text):
        return _ambiguous(text, "a date to some readers")
    if _BASE_60.fullmatch(text) or _GROUPED.fullmatch(text):
        return _ambiguous(text, "a number to some readers, text to others")
    return text


def _ambiguous(text: str, why: str) -> Refusal:
    return Refusal("E-SPEC-AMBIGUOUS", f"{shorten(text)} is {why}", f'quote it if text is meant: "{shorten(text)}"')


def _no_number(text: str) -> Refusal:
    return Refusal(
        "E-SPEC-NUMBER",
        f"{shorten(text)} is no finite number that every JSON reader holds exactly",
        "integers reach 9007199254740991 (2^53 - 1); quote it if text is meant",
    )


def shorten(text: str, limit: int = 60) -> str:
    """A text for a message: at most ``limit`` characters, unprintable ones escaped, secrets left out."""
    text = redact(text[:_MOST])  # before it is cut: half a secret has no form that could be known
    cut = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in cut)
