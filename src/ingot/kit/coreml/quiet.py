"""coremltools without its notices and bars: a log, and an error that quotes its end, hold what it says of the model."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TypeVar

_Item = TypeVar("_Item")


def quiet() -> None:
    """Of this process. Called before coremltools is imported, which warns of versions and of what only a Mac has."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    from coremltools.converters.mil.frontend.torch import ops
    from coremltools.converters.mil.mil.passes import pass_pipeline

    # bars have no switch of their own
    ops._tqdm = _plain  # noqa: SLF001 - it has no other name
    pass_pipeline.tqdm = _plain


def _plain(items: Iterable[_Item], **_look: object) -> Iterable[_Item]:
    return items
