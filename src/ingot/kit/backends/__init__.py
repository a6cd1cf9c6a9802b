"""What can be measured: one class per container, each running a candidate on its own runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ingot.errors import RefusedInput
from ingot.kit.chat import Example, Row, Template

if TYPE_CHECKING:
    import torch

#: Positions whose logits are in memory at once (positions x vocabulary x 4 bytes, per model).
SEGMENT = 256

#: What is timed of a backend (``kit.measure.speed``).
SPEEDS = ("prompt_tokens_per_second", "generation_tokens_per_second")

#: What a model says of the next token: one logit for each token of its vocabulary, (vocabulary,).
Next = npt.NDArray[np.float32]


class Piece(NamedTuple):
    """A token as text: the bytes of its text, and whether it is a special token (whose text is markup)."""

    literal: int
    special: bool


class Backend(Protocol):
    """A model that can be asked and timed. ``context`` is the longest text it takes, in tokens."""

    container: str
    precision: str
    parameters: int
    bytes: int
    context: int
    template: Template
    runtime: str

    def encode(self, row: Row, max_length: int) -> Example:
        """The row's token ids by the candidate's own tokenizer and template."""
        ...

    def logits(self, ids: Sequence[int], first: int) -> Iterator[torch.Tensor]:
        """Float32 logits that predict ``ids[first:]`` (first ≥ 1), in order, cut where ``segments`` cuts them."""
        ...

    def question(self, row: Row) -> list[int]:
        """Token ids of what a row asks, ready to be answered."""
        ...

    def ends(self, token: int) -> bool:
        """Whether a model that says this token has ended its answer."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        ...

    def prefill(self, ids: Sequence[int]) -> Next:
        """Forget everything, read a prompt in one go, return the logits of the next token."""
        ...

    def step(self, token: int) -> Next:
        """Append one token, return the logits of the next one."""
        ...


class Scorable(Backend, Protocol):
    """A model that can be scored, too. ``begin``: the token that it puts before a text, None where it puts none."""

    begin: int | None

    def logits_of(self, examples: Iterable[Example]) -> Iterator[tuple[int, torch.Tensor]]:
        """(number of the example, logits) of what is scored in each, in order, a few hundred rows at once.

        A runtime that reads several texts in one go does so.
        """
        ...

    def tokens(self, text: str) -> list[int]:
        """Token ids of plain text: nothing put around it, the markup of special tokens read as text."""
        ...

    def pieces(self, ids: Sequence[int]) -> list[Piece]:
        """What each token is as text."""
        ...


def likeliest(row: Next) -> int:
    """The token that greedy decoding takes; of equals the one with the lowest id."""
    return int(row.argmax())


def gpu_of(backend: Backend) -> str | None:
    """The UUID of the GPU that a backend computes on, which only those of Hugging Face models can; None: on none."""
    found: str | None = getattr(backend, "gpu", None)
    return found


def zeros_of(backend: Backend) -> tuple[int, int] | None:
    """How many weights of the linear layers are zero, and of how many; None of those that hold none as numbers."""
    count: Callable[[], tuple[int, int]] | None = getattr(backend, "zeros", None)
    return None if count is None else count()


def not_timed(backend: Backend) -> dict[str, str]:
    """The speeds that are not measured, with the reason: those of a package that something else runs here."""
    if backend.container != "coreml":
        return {}
    from ingot.kit.backends.coreml import NOT_TIMED
    from ingot.kit.mil.native import available

    return {} if available() else dict.fromkeys(SPEEDS, NOT_TIMED)


def not_finite() -> RefusedInput:
    """E-EVAL-NAN."""
    return RefusedInput(
        "E-EVAL-NAN",
        "a model's logits are not finite numbers: its weights or its runtime are broken",
        hint="build the model again, and let it compute in 'dtype: float32'",
    )


def segments(length: int, first: int) -> Iterator[tuple[int, int, range]]:
    """(start, stop, kept): which positions are read in one go, and whose logits are kept, relative to start.

    The last token is never read: nothing is predicted from it. Two models scored side by side are cut alike.
    """
    for start in range(0, length - 1, SEGMENT):
        stop = min(start + SEGMENT, length - 1)
        yield start, stop, range(max(start, first - 1) - start, stop - start)


def container_of(folder: Path) -> str:
    """``gguf``, ``onnx``, ``coreml`` or ``hf``, by what lies in the folder. RefusedInput (E-EVAL-FORMAT)."""
    if (folder / "config.json").is_file():
        return "hf"
    if len(list(folder.glob("*.gguf"))) == 1:
        return "gguf"
    if any(path.is_dir() for path in folder.glob("*.mlpackage")):
        return "coreml"
    if (folder / "model.onnx").exists():
        return "onnx"
    raise RefusedInput(
        "E-EVAL-FORMAT",
        "the candidate is neither a Hugging Face folder nor one GGUF nor an ONNX model nor a Core ML package",
        facts=[f"files: {', '.join(sorted(path.name for path in folder.iterdir())[:12]) or 'none'}"],
    )


def open_backend(folder: Path, *, dtype: str, context: int, threads: int, device: str = "cpu") -> Scorable:
    """The backend of a candidate, loaded; ``dtype`` and ``device`` are of Hugging Face models alone."""
    container = container_of(folder)
    if container == "coreml":
        from ingot.kit.backends.coreml import CoremlBackend

        return CoremlBackend(folder, threads=threads)
    if container == "onnx":
        from ingot.kit.backends.onnx import OnnxBackend

        return OnnxBackend(folder, threads=threads)
    if container == "gguf":
        from ingot.kit.backends.gguf import GgufBackend

        return GgufBackend(next(folder.glob("*.gguf")), context=context, threads=threads)
    from ingot.kit.backends.hf import HfBackend

    return HfBackend(folder, dtype=dtype, threads=threads, device=device)
