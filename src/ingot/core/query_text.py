"""The language of ``doit query``: parsed by hand, never evaluated; every mistake is one error with its place.

QUERY      = [ FIRST ] [ "where" CONDITIONS ] [ "order" "by" NAME [ "asc" | "desc" ] ] [ "limit" COUNT ]
FIRST      = "smallest" [ NAME ] | "largest" [ NAME ] | "fastest" | "cheapest" | "best" NAME | "all"
CONDITIONS = CONDITION { "and" CONDITION }
CONDITION  = NAME ( "<" | "<=" | ">" | ">=" | "=" | "!=" ) VALUE
VALUE      = a number, a size (98MB, 1.5GiB), or of ``kind``, ``spec`` and ``target`` a word, in which * is any text
"""

from __future__ import annotations

import fnmatch
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ingot.core.directions import better
from ingot.core.names import nearest, suggestion
from ingot.core.quantities import size_of
from ingot.errors import UsageError

#: What a variant is called by; everything else is a metric.
WORDS = ("kind", "spec", "target")
SIZE, SPEED, COST = "bytes", "generation_tokens_per_second", "cost"

_NUMBERS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq, "!=": operator.ne,
}  # fmt: skip
_SAME = {"==": "=", "≤": "<=", "≥": ">=", "≠": "!="}
_TOKEN = re.compile(
    r"\s*(?:(?P<sign><=|>=|==|!=|[<>=≤≥≠])|(?P<quoted>\"[^\"]*\"|'[^']*')|(?P<word>[^\s<>=!≤≥≠\"',]+)|(?P<other>\S))"
)
_NAME = re.compile(r"[a-z][a-z0-9_]*|[a-z][a-z0-9_-]*(\.[a-z][a-z0-9_-]*)*\.[a-z][a-z0-9_]*")
_KEYWORDS = frozenset(("where", "and", "or", "order", "by", "asc", "desc", "limit"))


@dataclass(frozen=True)
class Condition:
    """``kl_divergence <= 0.05``, or of a word ``kind = gguf``."""

    name: str
    sign: str
    value: float | str

    def holds(self, found: float | str) -> bool:
        """Whether a value, or a word, satisfies it."""
        if isinstance(self.value, str) or isinstance(found, str):
            return fnmatch.fnmatchcase(str(found), str(self.value)) == (self.sign == "=")
        return _NUMBERS[self.sign](found, self.value)

    def to_dict(self) -> dict[str, Any]:
        """The condition as ``--json`` shows it."""
        return {"name": self.name, "sign": self.sign, "value": self.value}


@dataclass(frozen=True)
class Order:
    """By which metric, and whether the highest comes first."""

    name: str
    descending: bool = False


@dataclass(frozen=True)
class Query:
    """What is asked."""

    conditions: tuple[Condition, ...] = ()
    order: Order | None = None
    limit: int | None = None


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


def parse(text: str) -> Query:
    """The query that a text asks; UsageError (E-QUERY) with the place of the first mistake."""
    return _Reader(text).query()


def conditions(text: str) -> tuple[Condition, ...]:
    """Conditions alone, as ``--where`` takes them."""
    reader = _Reader(text)
    found = reader.conditions()
    reader.end("'and', or the end")
    return found


def order_of(text: str) -> Order:
    """``NAME``, ``NAME desc`` or ``NAME:desc``, as ``--order`` takes it; by default the better value comes first."""
    reader = _Reader(text.replace(":", " "))
    found = reader.order()
    reader.end("'asc', 'desc', or the end")
    return found


def names(text: str, what: str) -> tuple[str, ...]:
    """Names with commas between, as ``--columns`` and ``--pareto`` take them."""
    found = tuple(part.strip() for part in text.split(","))
    at = 0
    for part, name in zip(text.split(","), found, strict=True):
        if not _NAME.fullmatch(name):
            raise _mistake(
                text, at, f"{what}: {name!r} is no name of a metric" if name else f"{what}: a name is missing"
            )
        at += len(part) + 1
    return found


class _Reader:
    """The tokens of one text, read from the left."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [_Token(str(it.lastgroup), it[it.lastgroup or 0], it.start(it.lastgroup or 0)) for it in
                        _TOKEN.finditer(text)]  # fmt: skip
        self._at = 0

    def query(self) -> Query:
        """The whole text."""
        found = Query()
        if not self._is("where", "order", "limit") and self._token() is not None:
            found = replace(found, order=self._first())
        if self._take("where"):
            found = replace(found, conditions=self.conditions())
        if self._take("order"):
            self._need("by", "order")
            found = replace(found, order=self.order())
        if self._take("limit"):
            found = replace(found, limit=self._count())
        wanted = (
            "'and', 'order by', 'limit', or the end" if found.conditions else "'where', 'order by', 'limit', or the end"
        )
        self.end(wanted)
        return found

    def _first(self) -> Order | None:
        token = self._token()
        words = ("smallest", "largest", "fastest", "cheapest", "best", "all")
        if token is None or token.text not in words:
            near = suggestion(token.text, [*words, "where"]) if token else None
            raise self._wrong(f"a query starts with {', '.join(words)}, or 'where'", near)
        self._at += 1
        named = None if self._is(*_KEYWORDS) or self._token() is None else self._name()
        if token.text == "best":
            if named is None:
                raise self._wrong("'best' needs the name of a metric")
            return self._best(named)
        fixed = {"fastest": Order(SPEED, descending=True), "cheapest": Order(COST), "all": None}
        if token.text in fixed:
            if named is not None:
                self._at -= 1
                raise self._wrong(f"{token.text!r} takes no name")
            return fixed[token.text]
        return Order(named or SIZE, descending=token.text == "largest")

    def _best(self, name: str) -> Order:
        way = better(name)
        if way is None:
            self._at -= 1
            raise self._wrong(f"which way {name} is better is not known", f"say 'order by {name} asc' or '… desc'")
        return Order(name, descending=way == "higher")

    def conditions(self) -> tuple[Condition, ...]:
        """One or more."""
        found = [self._condition()]
        while self._take("and"):
            found.append(self._condition())
        if self._is("or"):
            raise self._wrong("conditions are joined by 'and' alone", "ask twice, once for each")
        return tuple(found)

    def _condition(self) -> Condition:
        name = self._name()
        token = self._token()
        if token is None or token.kind != "sign":
            raise self._wrong(f"after {name} comes one of <, <=, >, >=, = and !=")
        sign = _SAME.get(token.text, token.text)
        self._at += 1
        value = self._token()
        if value is None or value.kind not in ("word", "quoted") or value.text in _KEYWORDS:
            raise self._wrong(f"after {token.text} comes a value")
        self._at += 1
        if name in WORDS:
            if sign not in ("=", "!="):
                self._at -= 2
                raise self._wrong(f"{name} is compared with = and != alone")
            return Condition(name, sign, value.text.strip("\"'"))
        return Condition(name, sign, self._number(value))

    def _number(self, token: _Token) -> float:
        try:
            number = float(token.text)
        except ValueError:
            size = size_of(token.text)
            number = math.nan if size is None else float(size)
        if not math.isfinite(number):
            self._at -= 1
            raise self._wrong("here comes a number", "sizes are written 98MB or 1.5GiB")
        return number

    def order(self) -> Order:
        """A name, and perhaps which end comes first."""
        name = self._name()
        if self._take("desc"):
            return Order(name, descending=True)
        if self._take("asc"):
            return Order(name)
        return Order(name, descending=better(name) == "higher")

    def _count(self) -> int:
        token = self._token()
        if token is None or not re.fullmatch(r"[1-9]\d{0,5}", token.text):
            raise self._wrong("after 'limit' comes a count of at least 1")
        self._at += 1
        return int(token.text)

    def _name(self) -> str:
        token = self._token()
        if token is None or token.kind != "word" or token.text in _KEYWORDS or not _NAME.fullmatch(token.text):
            raise self._wrong("here comes the name of a metric, or kind, spec or target")
        self._at += 1
        return token.text

    def end(self, wanted: str) -> None:
        """Nothing may follow."""
        if self._token() is not None:
            before = self._tokens[self._at - 1].text if self._at else ""
            near = nearest(before, _KEYWORDS)
            raise self._wrong(f"here comes {wanted}", f"did you mean {near!r}?" if near not in (None, before) else None)

    def _need(self, word: str, after: str) -> None:
        if not self._take(word):
            raise self._wrong(f"after {after!r} comes {word!r}")

    def _token(self) -> _Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _is(self, *words: str) -> bool:
        token = self._token()
        return token is not None and token.kind == "word" and token.text in words

    def _take(self, word: str) -> bool:
        found = self._is(word)
        self._at += found
        return found

    def _wrong(self, what: str, hint: str | None = None) -> UsageError:
        token = self._token()
        at = len(self._text.rstrip()) if token is None else token.at
        return _mistake(
            self._text, at, f"{what}, not {token.text!r}" if token is not None else f"{what}; it ends here", hint
        )


def _mistake(text: str, at: int, what: str, hint: str | None = None) -> UsageError:
    line = re.sub(r"\s", " ", text)
    return UsageError("E-QUERY", f"column {at + 1}: {what}", facts=[line, " " * at + "^"], hint=hint)
