"""``doit schema``: the JSON Schema of a spec, for editors and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ingot.commands.base import JSON_OPTION, IngotCommand
from ingot.commands.screen import Screen


class Schema(IngotCommand):
    """Print the schema; it needs no project."""

    name = "schema"
    doc_purpose = "print the JSON Schema of a spec, all kinds with their parameters"
    doc_usage = ""
    doc_description = "Editors with a YAML language server take it: doit schema > .ingot-schema.json"
    arguments: ClassVar[tuple[int, int | None]] = (0, 0)
    # The schema is JSON in any case; the option is there so that every reading command takes it.
    cmd_options = (JSON_OPTION,)

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:  # noqa: ARG002 - the protocol
        """Always 0."""
        from ingot.core.schema import schema

        screen.json(schema())
        return 0
