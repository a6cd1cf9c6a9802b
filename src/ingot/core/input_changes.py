"""What changed in the inputs of a target, from the receipts of what it was built from and of what it has now. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingot.core.key import is_by_key

Receipt = Mapping[str, Any]
#: Finds the receipt of a result by its digest; None when no log holds it.
Find = Callable[[str], Receipt | None]

#: The metrics that say how many rows a data set has.
_ROWS = ("documents_train", "documents_eval")


@dataclass(frozen=True)
class Given:
    """One input: the id of its target and the digest of its result."""

    target: str
    digest: str

    @property
    def name(self) -> str:
        """The name within its spec: what ``from:`` says."""
        return self.target.partition(":")[2]


@dataclass(frozen=True)
class InputChange:
    """One input of a role that is another one, or has another content, than before; a side may be absent.

    ``words`` tell it as a change in time; ``content`` is only how the content differs.
    """

    role: str
    before: Given | None
    after: Given | None
    words: str
    content: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The change as ``--json`` shows it; a side that is absent has no field."""
        sides = {"before": self.before, "after": self.after}
        given = {side: {"target": it.target, "digest": it.digest} for side, it in sides.items() if it is not None}
        return {"code": "input_changed", "name": self.role} | given


def given_in(receipt: Receipt) -> dict[str, tuple[Given, ...]]:
    """The inputs of a receipt by role."""
    return {
        role: tuple(Given(str(item["target"]), str(item["digest"])) for item in _listed(value))
        for role, value in receipt["inputs"].items()
    }


def _listed(value: Any) -> Sequence[Mapping[str, Any]]:
    return [value] if isinstance(value, Mapping) else list(value)


def input_changes(
    old: Mapping[str, Sequence[Given]], new: Mapping[str, Sequence[Given]], find: Find
) -> Iterator[InputChange]:
    """The inputs that differ in content, role by role; a target's mere name is no difference."""
    for role in sorted(old.keys() | new.keys()):
        yield from _role(role, list(old.get(role, ())), list(new.get(role, ())), find)


def _role(role: str, before: list[Given], after: list[Given], find: Find) -> Iterator[InputChange]:
    if [item.digest for item in before] == [item.digest for item in after]:
        return
    kept = {item.digest for item in before} & {item.digest for item in after}
    gone = [item for item in before if item.digest not in kept]
    come = {item.name: item for item in after if item.digest not in kept}
    if not gone and not come:
        yield InputChange(role, None, None, f"the inputs {role} come in another order")
    single = len(before) == len(after) == 1
    for item in gone:
        other = come.pop(next(iter(come)) if single else item.name, None)
        yield _change(role, item, other, find)
    for item in come.values():
        yield _change(role, None, item, find)


def _change(role: str, before: Given | None, after: Given | None, find: Find) -> InputChange:
    if before is None or after is None:
        there, what = (before, "removed from") if before is not None else (after, "added to")
        assert there is not None
        return InputChange(role, before, after, f"input {there.name} {what} {role}")
    content = content_words(find(before.digest), find(after.digest), (before.digest, after.digest))
    renamed = f"input {role} is {after.name} now, was {before.name}"
    words = f"{renamed if before.name != after.name else f'input {after.name} changed'}: {content}"
    return InputChange(role, before, after, words, content)


def content_words(before: Receipt | None, after: Receipt | None, digests: tuple[str, str]) -> str:
    """How one result differs from another: rows of data sets, else files and bytes, else digests alone."""
    shown = " → ".join("not yet streamed" if is_by_key(digest) else digest[:12] for digest in digests)
    if before is None or after is None:
        return shown
    rows = _rows_words(before, after)
    if rows is not None:
        return rows
    return f"{_size_words(before, after)} ({shown})"


def _rows(receipt: Receipt) -> dict[str, int] | None:
    metrics = receipt["metrics"]
    if receipt["kind"] != "dataset" or any(name not in metrics for name in _ROWS):
        return None
    return {name.removeprefix("documents_"): int(metrics[name]["value"]) for name in _ROWS}


def _rows_words(before: Receipt, after: Receipt) -> str | None:
    old, new = _rows(before), _rows(after)
    if old is None or new is None:
        return None
    more = sum(new.values()) - sum(old.values())
    sides = ", ".join(f"{side} {old[side]} → {new[side]}" for side in old if old[side] != new[side])
    if more == 0:
        return "as many rows, other content" + (f" ({sides})" if sides else "")
    return f"{abs(more):,} row{'s' * (abs(more) != 1)} {'more' if more > 0 else 'fewer'} ({sides})"


def _size_words(before: Receipt, after: Receipt) -> str:
    old, new = (
        {str(file["path"]): (int(file["size"]), str(file["sha256"])) for file in receipt["files"]}
        for receipt in (before, after)
    )
    differing = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    sizes = [sum(size for size, _digest in files.values()) for files in (old, new)]
    which = differing[0] if len(differing) == 1 else f"{len(differing)} files"
    if sizes[0] == sizes[1]:
        return f"{which} differ{'s' * (len(differing) == 1)}, as many bytes"
    more = sizes[1] - sizes[0]
    return f"{abs(more):,} bytes {'more' if more > 0 else 'fewer'}, in {which}"
