"""How text is scored: the parameters that ``logits``, ``evaluate`` and ``report`` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from ingot.core.stage import Frozen, Given, Progress
from ingot.stages._placed import Placed

if TYPE_CHECKING:
    from ingot.kit.backends import Scorable
    from ingot.kit.scoring import units


class Windows(Frozen):
    """Windows over all of the held-out text, as ``llama-perplexity`` has them."""

    context: int = Field(default=512, ge=8, le=131072, description="tokens of a window")
    stride: int | None = Field(
        default=None, ge=1, le=131072, description="tokens from one window's first to the next's; null: `context`"
    )
    score: Literal["second_half", "all", "stride"] = Field(
        default="second_half",
        description="what is scored of a window: what follows its first half (as `llama-perplexity` does), all, or "
        "its last `stride` tokens",
    )
    count: int | None = Field(default=None, ge=2, description="windows to score, the first; null: all")
    separator: str = Field(default="\n\n", max_length=100, description="what is put between two rows")

    @model_validator(mode="after")
    def _stride_fits(self) -> Windows:
        if self.stride is not None and self.stride > self.context:
            raise ValueError("'stride' is at most 'context', or text between windows would be left out")
        return self


class Scoring(Placed):
    """What is scored, in which precision and where."""

    documents: Annotated[int, Field(ge=2)] = Field(
        default=24, description="held-out documents to score, the first in content order that have tokens to score"
    )
    max_length: Annotated[int, Field(ge=8, le=131072)] = Field(
        default=256, description="tokens of a document that are read; the rest is cut"
    )
    windows: Windows | None = Field(
        default=None, description="score windows over all of the held-out text, not documents; null: documents"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="what Hugging Face models compute in; float32 adds no rounding of its own"
    )

    def scoring(self) -> dict[str, Any]:
        """These alone, as plain data."""
        return self.model_dump(mode="json", include=set(Scoring.model_fields))

    @property
    def longest(self) -> int:
        """The tokens of the longest text that is scored."""
        return self.max_length if self.windows is None else self.windows.context

    @property
    def unit(self) -> str:
        """What is drawn for intervals; also the name of the metric that counts it."""
        return "documents" if self.windows is None else "windows"

    def plan(self) -> units.Windows | None:
        """The windows as they are cut."""
        from ingot.kit.scoring.units import Windows as Cut

        how = self.windows
        if how is None:
            return None
        return Cut(how.context, how.stride or how.context, how.score, how.count, how.separator)

    def chosen(self, backend: Scorable, given: Given) -> list[units.Unit]:
        """What is scored, by the tokenizer of ``backend``."""
        from ingot.kit.chat import read_rows
        from ingot.kit.scoring import units

        rows, plan = list(read_rows(given.one("data"), "eval")), self.plan()
        if plan is not None:
            return units.windows(backend, rows, plan)
        return units.documents(backend, rows, limit=self.documents, max_length=self.max_length)

    def load(self, folder: Path, given: Given, progress: Progress, context: int) -> Scorable:
        """A model, opened for texts of so many tokens."""
        return self.opened(folder, given, progress, dtype=self.dtype, context=context)
