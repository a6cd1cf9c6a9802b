"""Where models of Hugging Face folders compute: the parameter of every kind that asks or scores models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ingot.core.stage import Device, Frozen, Given, Progress

if TYPE_CHECKING:
    from ingot.kit.backends import Backend, Scorable


class Placed(Frozen):
    """A kind, or what kinds share, with a device; a GGUF, an ONNX model or a Core ML package has a runtime of its own.

    ``run`` opens its backend with ``opened`` and gives ``notes=self.where(backend)``.
    """

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where Hugging Face models compute; auto prefers a GPU"
    )

    def device_wanted(self) -> Device | None:
        """Where it computes."""
        return self.device

    def opened(self, folder: Path, given: Given, progress: Progress, *, dtype: str, context: int) -> Scorable:
        """A model, opened for texts of so many tokens."""
        from ingot.kit.backends import open_backend

        progress.phase("load")
        return open_backend(folder, dtype=dtype, context=context, threads=given.threads, device=self.device)

    def where(self, backend: Backend) -> dict[str, object]:
        """What a receipt notes of what has computed: the device, the name of a GPU, the runtime."""
        from ingot.kit import device
        from ingot.kit.backends import gpu_of

        found = device.resolve("cpu" if gpu_of(backend) is None else self.device)
        return {**device.described(found), "runtime": backend.runtime}
