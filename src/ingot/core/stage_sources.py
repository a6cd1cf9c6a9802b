"""Parameters that are values of a spec, and files that a parameter names: a source outside of the graph."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator


class Frozen(BaseModel):
    """Base of every value read from a spec: immutable, no unknown fields, no coercion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Source(Frozen):
    """Content that is not an input target: read from the project or from Python itself.

    Exactly one of ``path`` (a file, a folder or a glob, relative to the spec file) and
    ``python_stdlib``. In the key a source counts by its content digest, never by its path.
    """

    path: str | None = None
    python_stdlib: Literal["docstrings", "topics"] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Source:
        if (self.path is None) == (self.python_stdlib is None):
            raise ValueError("needs exactly one of 'path' and 'python_stdlib'")
        return self


class Files(Frozen):
    """Project files a program reads under their own names (``command``'s ``files:``).

    Their names relative to the spec file are part of the content; the snapshot keeps the layout.
    """

    paths: tuple[str, ...] = ()
