"""vl-convert: a chart as SVG that follows the page and as PNG that stands alone; the scripts that bring it to life."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from ingot.errors import MissingTool
from ingot.view.page.html import Html, text
from ingot.view.page.palette import LIGHT, fixed

if TYPE_CHECKING:
    from types import ModuleType

Spec = Mapping[str, Any]
#: The version of Vega-Lite that charts are drawn by, everywhere.
_VEGA_LITE = "6.4"
_SCALE = 2.0


def require() -> None:
    """MissingTool (E-MISSING-TOOL) with the command that installs what pages need."""
    _converter()
    try:
        import altair as alt  # noqa: F401
    except ImportError as error:
        raise _missing("altair") from error


def svg(name: str, spec: Spec) -> Html:
    """A chart as inline SVG, with its colours as variables; ``name`` keeps its ids apart from those of others."""
    drawn = _converter().vegalite_to_svg(json.dumps(spec, sort_keys=True), vl_version=_VEGA_LITE)
    drawn = re.sub(r'\bid="', f'id="{name}-', drawn)
    drawn = drawn.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    label = text(spec.get("description", ""))
    return Html(drawn.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))


def png(spec: Spec) -> bytes:
    """A chart as a picture on white paper, twice as fine as it is large."""
    standing = {**fixed(spec), "config": {**fixed(spec["config"]), "background": LIGHT["paper"]}, "padding": 12}
    found: bytes = _converter().vegalite_to_png(
        json.dumps(standing, sort_keys=True), vl_version=_VEGA_LITE, scale=_SCALE
    )
    return found


@cache
def bundle() -> str:
    """The scripts of Vega, Vega-Lite and Vega-Embed in one: nothing is loaded from anywhere."""
    found = str(_converter().javascript_bundle(vl_version=_VEGA_LITE))
    assert "</script" not in found.lower(), "the bundle cannot stand in a page"
    return found


def _converter() -> ModuleType:
    try:
        import vl_convert
    except ImportError as error:
        raise _missing("vl-convert-python") from error
    return vl_convert


def _missing(name: str) -> MissingTool:
    return MissingTool(
        "E-MISSING-TOOL", f"a page needs {name}, which is not installed", hint="pip install 'ingot[report]'"
    )
