"""What differs between two key parts, as data and in words a person uses. Pure: reads no file."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from ingot.core.scalars import shorten

#: Keys and list indices from the parameters of a kind to one value.
Path = tuple[str | int, ...]

_SOURCE = re.compile(r"(file|tree|python_stdlib):[0-9a-f]{64}")
#: A list of numbers that is no longer than this is shown whole; of other ones only the items that differ.
_SHORT = 40
_SHOWN = 60


class Absent(Enum):
    """Stands for a value that is not there, which null is not."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT


@dataclass(frozen=True)
class Change:
    """One difference: a stable word (``params_changed``), what it is about, and the value on both sides."""

    code: str
    name: str
    before: Any
    after: Any
    path: Path = ()

    def to_dict(self) -> dict[str, Any]:
        """The change as ``--json`` shows it; a side that is absent has no field."""
        sides = {"before": self.before, "after": self.after}
        return {"code": self.code, "name": self.name} | {
            side: value for side, value in sides.items() if value is not ABSENT
        }


def part_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Every difference of two key parts, in the order: kind, parameters, inputs, tools, seed, anything else."""
    known = ("kind", "revision", "params", "inputs", "tools", "programs", "seed")
    found = [*_fields("kind_changed", old, new, ("kind", "revision"))]
    found += param_changes(old.get("params", {}), new.get("params", {}))
    found += _below("input_changed", old.get("inputs", {}), new.get("inputs", {}))
    for group in ("tools", "programs"):
        found += _below("tool_changed", old.get(group, {}), new.get(group, {}))
    found += _fields("seed_changed", old, new, ("seed",))
    others = sorted((old.keys() | new.keys()) - set(known))
    return [*found, *_fields("key_changed", old, new, others)]


def reasons_to_build(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """The differences that say why a result is no longer a target's: parameters of another kind are others anyway."""
    changes = part_changes(old, new)
    if any(change.code == "kind_changed" and change.name == "kind" for change in changes):
        return [change for change in changes if change.code not in ("params_changed", "source_changed")]
    return changes


def _fields(code: str, old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str]) -> Iterator[Change]:
    for name in names:
        before, after = old.get(name, ABSENT), new.get(name, ABSENT)
        if not same(before, after):
            yield Change(code, name, before, after)


def _below(code: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    return _fields(code, old, new, sorted(old.keys() | new.keys()))


def param_changes(old: object, new: object, path: Path = ()) -> Iterator[Change]:
    """The differences of two JSON values as parameters: the innermost values that differ."""
    if same(old, new):
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping) and not (is_source(old) or is_source(new)):
        for name in sorted(old.keys() | new.keys()):
            yield from param_changes(old.get(name, ABSENT), new.get(name, ABSENT), (*path, name))
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple) and not _shown_whole(old, new):
        yield from _items(old, new, path)
    else:
        code = "source_changed" if is_source(old) and is_source(new) else "params_changed"
        yield Change(code, path_text(path), old, new, path)


def _shown_whole(old: Sequence[Any], new: Sequence[Any]) -> bool:
    plain = (bool, int, float) if len(old) == len(new) else (bool, int, float, str)
    short = max(len(_json(old)), len(_json(new))) <= _SHORT
    return short and all(item is None or isinstance(item, plain) for item in (*old, *new))


def _items(old: Sequence[Any], new: Sequence[Any], path: Path) -> Iterator[Change]:
    """The items that differ: one by one where as many were replaced, else those taken out and those put in."""
    before, after = [_json(item) for item in old], [_json(item) for item in new]
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    blocks = [("replace", 0, len(old), 0, len(new))] if len(old) == len(new) else matcher.get_opcodes()
    for tag, start, end, first, last in blocks:
        if tag == "replace" and end - start == last - first:
            for index in range(end - start):
                yield from param_changes(old[start + index], new[first + index], (*path, first + index))
        elif tag != "equal":
            for index in range(start, end):
                yield Change("params_changed", path_text((*path, index)), old[index], ABSENT, path)
            for index in range(first, last):
                here = (*path, index)
                yield Change("params_changed", path_text(here), ABSENT, new[index], here)


def same(one: object, other: object) -> bool:
    """Whether two JSON values are the same value: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def is_source(value: object) -> bool:
    """Whether a value of key parts stands for the content of a source."""
    return isinstance(value, Mapping) and value.keys() == {"source"} and bool(_SOURCE.fullmatch(str(value["source"])))


def path_text(path: Path) -> str:
    """A path as a person writes it: ``sources[0].path``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


# --- words ---------------------------------------------------------------------------------------------------


def change_text(change: Change) -> str:
    """A change in words: ``learning_rate 2e-4 → 1e-4``, ``tool peft 0.21.2 → 0.22.0``, ``env.X removed (was 1)``."""
    name = f"tool {change.name}" if change.code == "tool_changed" else change.name
    if change.code == "kind_changed" and change.name == "revision":
        return f"kind: revision {change.before} → {change.after} (ingot builds it in another way now)"
    if change.code == "input_changed":
        name = f"input {name}"
    if change.before is ABSENT:
        return f"{name} added: {value_text(change.after)}"
    if change.after is ABSENT:
        return f"{name} removed (was {value_text(change.before)})"
    return f"{name} {' → '.join(pair_text(change.before, change.after))}"


def pair_text(before: object, after: object) -> tuple[str, str]:
    """Two values in words; of two long ones the part around the first difference."""
    one, other = _plain(before), _plain(after)
    if max(len(one), len(other)) <= _SHOWN:
        return shorten(one), shorten(other)
    start = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), 0)
    start = max(0, (start or min(len(one), len(other))) - 16)
    lead = "…" if start else ""
    return shorten(lead + one[start:], _SHOWN), shorten(lead + other[start:], _SHOWN)


def value_text(value: object) -> str:
    """One value in words, cut where it is long."""
    return shorten(_plain(value), _SHOWN)


def _plain(value: object) -> str:
    if value is ABSENT:
        return "–"
    if isinstance(value, Mapping) and is_source(value):
        return digest_text(str(value["source"]))
    if isinstance(value, str):
        return digest_text(value) if re.fullmatch(r"(key:)?sha256:[0-9a-f]{64}", value) else value or '""'
    if value is None:
        return "not set"
    if isinstance(value, bool | Mapping | list | tuple):
        return _json(value)
    assert isinstance(value, int | float)
    return number(value)


def digest_text(tagged: str) -> str:
    """The first digits of a digest with its tag: ``file 3f2a9c01d4e5``."""
    tag, _, digits = tagged.rpartition(":")
    return digits[:12] if tag in ("", "sha256") else f"{tag.removesuffix(':sha256')} {digits[:12]}"


def number(value: float) -> str:
    """A number as people write it: ``0.001``, ``2e-4``, ``1000000``."""
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return str(int(value))
    if 1e-3 <= abs(value) < 1e15:
        return repr(value)
    digits = next(text for count in range(17) if float(text := f"{value:.{count}e}") == value)
    mantissa, _, exponent = digits.partition("e")
    return f"{mantissa}e{int(exponent)}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
