"""Ranks and scales of single modules by pattern, with PEFT's meaning: a regular expression that ends the module's name.

PEFT takes the first pattern that matches. A mapping has no order in a key, so here a module that two patterns match is
refused, and so is a pattern that matches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from ingot.errors import RefusedInput
from ingot.kit.lora.modules import kinds_of

Number = TypeVar("Number", int, float)


def checked(field: str, patterns: Mapping[str, Number], modules: Sequence[str]) -> dict[str, Number]:
    """The patterns in the order of their text, each of which matches some of ``modules``.

    RefusedInput (E-ADAPTER-PATTERN) names a pattern that is no regular expression or matches no adapted module, and a
    module that two patterns match.
    """
    claimed: dict[str, str] = {}
    for pattern in sorted(patterns):
        try:
            found = [module for module in modules if re.match(rf"(.*\.)?({pattern})$", module)]
        except re.error as error:
            raise _refused(f"{field}: '{pattern}' is no regular expression ({error})", modules) from error
        if not found:
            raise _refused(f"{field}: '{pattern}' matches no adapted module", modules)
        for module in found:
            if module in claimed:
                raise _refused(f"{field}: '{claimed[module]}' and '{pattern}' both match {module}", modules)
            claimed[module] = pattern
    return {pattern: patterns[pattern] for pattern in sorted(patterns)}


def _refused(what: str, modules: Sequence[str]) -> RefusedInput:
    return RefusedInput(
        "E-ADAPTER-PATTERN",
        what,
        facts=[f"adapted modules: {', '.join(kinds_of(modules))}", f"such as {modules[0]}"],
        hint="a pattern is a regular expression for the end of a module's name, such as 'q_proj' or 'layers.0.mlp.*'",
    )
