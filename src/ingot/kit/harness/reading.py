"""Task files as the harness writes them: YAML with ``include`` and ``!function``, each value with its file and line.

The harness passes over files that it cannot read and says so to nobody; here what is wrong with one is an error with
its place. Nothing is run: a function stays the name that was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ingot.errors import RefusedInput


class Function(str):
    """What follows ``!function``: ``MODULE.NAME``."""

    __slots__ = ()


@dataclass(frozen=True)
class Value:
    """A value of a task file, and where it is written."""

    value: Any
    path: Path
    line: int


@dataclass(frozen=True)
class Config:
    """What a file says of one task or group, with what it includes."""

    path: Path
    values: Mapping[str, Value]

    def get(self, name: str) -> Value | None:
        """A value; None where it says nothing."""
        return self.values.get(name)

    @property
    def is_group(self) -> bool:
        """Whether it is a group of tasks."""
        return "group" in self.values

    @property
    def named(self) -> Value:
        """Its name."""
        return self.values["group" if self.is_group else "task"]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML's plain values, and functions as their names."""


_Loader.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))


@dataclass(frozen=True)
class Folder:
    """The folder of task files; ``shown`` is its name in messages."""

    root: Path
    shown: str

    def where(self, path: Path, line: int | None = None) -> str:
        """A file as people find it: its path, and the line where there is one."""
        name = path.relative_to(self.root) if path.is_relative_to(self.root) else path.name
        return f"{self.shown}/{name}" + (f":{line}" if line else "")

    def refused(self, what: str, place: Value | Path, *, code: str = "E-HARNESS-TASK", hint: str = "") -> RefusedInput:
        """An error at a place of the task files."""
        where = self.where(place.path, place.line) if isinstance(place, Value) else self.where(place)
        return RefusedInput(code, f"{where}: {what}", hint=hint or None)

    def inside(self, name: str, base: Value) -> Path | None:
        """The file of that name beside the file that writes it; None where there is none in the folder."""
        path = (base.path.parent / name).resolve()
        return path if path.is_relative_to(self.root) and path.is_file() else None

    def configs(self) -> Iterator[Config]:
        """Every ``*.yaml`` in it that declares a task or a group, in the order of names, with what it includes."""
        for path in sorted(self.root.rglob("*.yaml")):
            config = Config(path, self._read(path, ()))
            if {"task", "group"} & set(config.values):
                yield config

    def _read(self, path: Path, above: tuple[Path, ...]) -> dict[str, Value]:
        own = self._own(path)
        included = own.pop("include", None)
        if included is None:
            return own
        merged: dict[str, Value] = {}
        names = included.value if isinstance(included.value, list) else [included.value]
        for name in names:
            target = self.inside(str(name), included)
            if target is None:
                raise self.refused(f"includes {name!r}, which is no file of this folder", included)
            if target in (*above, path):
                raise self.refused(f"includes {name!r}, which includes this file", included)
            merged |= self._read(target, (*above, path))
        return merged | own

    def _own(self, path: Path) -> dict[str, Value]:
        try:
            loader = _Loader(path.read_text(encoding="utf-8"))
            node = loader.get_single_node()
            if not isinstance(node, yaml.MappingNode):
                raise self.refused("is no mapping of names to values", path)
            return {
                str(loader.construct_object(key)): Value(
                    loader.construct_object(value, deep=True),
                    path,
                    key.start_mark.line + 1,
                )
                for key, value in node.value
            }
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            line = mark.line + 1 if mark else 1
            raise self.refused(f"is no YAML: {error.problem}", Value(None, path, line)) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise self.refused(f"is no YAML: {str(error).splitlines()[0]}", path) from error


def functions(value: Any) -> Iterator[Function]:
    """Every function within a value."""
    if isinstance(value, Function):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from functions(item)
