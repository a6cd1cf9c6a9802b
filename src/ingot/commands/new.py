"""``doit new``: a commented spec to start from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ingot.commands.base import IngotCommand
from ingot.commands.screen import Screen
from ingot.errors import UsageError


class New(IngotCommand):
    """Write ``specs/NAME.yaml``."""

    name = "new"
    doc_purpose = "write a commented spec to start from"
    doc_usage = "NAME [--kind=model|command]"
    doc_description = "Writes specs/NAME.yaml and never overwrites a file."
    arguments: ClassVar[tuple[int, int | None]] = (1, 1)
    cmd_options = (
        {
            "name": "kind",
            "long": "kind",
            "short": "k",
            "default": "model",
            "choices": (("model", "fetch, tune, shrink and measure a chat model"), ("command", "programs of your own")),
            "help": "what the spec is about [default: %(default)s]",
        },
    )

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:
        """0, or 2 for a name that cannot be one or is taken."""
        from ingot.core.names import spec_name_problem
        from ingot.core.project import find_root

        name = arguments[0].removesuffix(".yaml")
        problem = spec_name_problem(name)
        if problem is not None:
            raise UsageError(
                "E-SPEC-NAME", f"{name!r} cannot name a spec: {problem}", hint="for example: doit new my-model"
            )
        path = find_root(Path.cwd()) / "specs" / f"{name}.yaml"
        write_starter(path, starter(name, options["kind"]))
        shown = os.path.relpath(path)
        screen.line(f"wrote {shown}")
        screen.line()
        screen.line("next:")
        screen.table(
            ("", ""),
            [
                (f"  $EDITOR {shown}", "say what to build"),
                (f"  doit plan {name}", "what would be built, and why"),
                ("  doit doctor", "whether everything that it needs is here"),
                (f"  doit {name}", "build it"),
            ],
        )
        return 0


def starter(name: str, kind: str) -> str:
    """The text of a starter spec."""
    from importlib.resources import files

    text = files("ingot.commands").joinpath("starters", f"{kind}.yaml").read_text(encoding="utf-8")
    return text.replace("NAME", name)


def write_starter(path: Path, text: str) -> None:
    """Create the file; UsageError (E-EXISTS) when there is one of that name, which is left as it is."""
    path.parent.mkdir(exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        shown = os.path.relpath(path)
        raise UsageError("E-EXISTS", f"{shown} exists already", hint="choose another name, or edit it") from None
