"""Chat templates, which are programs of strangers, rendered in a process of their own that can do nothing else.

The sandbox of Jinja keeps a template from Python's internals, not from a loop without end or a text of gigabytes, so
each conversation gets two seconds of CPU time and the process 512 MiB (``kit.bounded``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ingot.errors import RefusedInput
from ingot.kit.bounded import CPU_SECONDS, Bounded, serve

_MAX_TEXT = 32 << 20

#: What a template sees as today where it insists on a date: the clock must not get into bytes or scores.
_DATE = (2024, 7, 26)


class Renderer:
    """The process that renders, started when it is first needed, and again after one that a template brought down."""

    def __init__(self, cpu_seconds: int = CPU_SECONDS) -> None:
        self._process = Bounded(__name__, cpu_seconds)

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """The text of a template.

        RefusedInput: E-CHAT-RENDER (the template fails), E-TEMPLATE-UNSAFE (it reaches for Python's internals),
        E-TEMPLATE-LIMIT (it takes too long, or too much memory).
        """
        answer = self._process.ask({"source": source, "variables": dict(variables)})
        if answer is None:
            answer = {"code": "E-TEMPLATE-LIMIT", "why": f"one conversation gets {self._process.limits}"}
        if "text" in answer:
            return str(answer["text"])
        what = {
            "E-CHAT-RENDER": "the chat template does not accept a row",
            "E-TEMPLATE-UNSAFE": "the chat template reaches for what no template may use",
            "E-TEMPLATE-LIMIT": "the chat template was stopped",
        }[answer["code"]]
        raise RefusedInput(answer["code"], f"{what}: {answer['why']}")

    def close(self) -> None:
        """End the process."""
        self._process.close()


def _answer(source: str, variables: dict[str, Any]) -> dict[str, str]:
    from jinja2.exceptions import SecurityError

    try:
        text = _compiled(source).render(**variables)
    except SecurityError as error:
        return {"code": "E-TEMPLATE-UNSAFE", "why": str(error)}
    except (MemoryError, OverflowError, RecursionError) as error:
        return {"code": "E-TEMPLATE-LIMIT", "why": f"{type(error).__name__} {error}".strip()}
    except Exception as error:  # noqa: BLE001 - a template is a program: it may fail in any way
        return {"code": "E-CHAT-RENDER", "why": f"{error}" or type(error).__name__}
    if len(text) > _MAX_TEXT:
        return {"code": "E-TEMPLATE-LIMIT", "why": f"it made {len(text):,} characters of one conversation"}
    return {"text": text}


@lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    env.globals["raise_exception"] = refuse
    if not re.search(r"strftime_now\s+is\s+(not\s+)?defined", source):
        env.globals["strftime_now"] = _strftime
    # transformers marks the assistant's turns with {% generation %}; the marks print nothing
    source = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", source)
    source = re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", source)
    return env.from_string(source)


def _strftime(form: str) -> str:
    import datetime as dt

    return dt.date(*_DATE).strftime(form)


if __name__ == "__main__":
    serve(_answer)
