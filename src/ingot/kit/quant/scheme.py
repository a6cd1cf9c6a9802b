"""What a scheme writes: bits, groups and formats, in the words of compressed-tensors.

``pack-quantized`` holds ``weight_packed`` (int32 words), ``weight_scale``, ``weight_shape`` and, if asymmetric,
``weight_zero_point``; ``int-quantized`` and ``float-quantized`` hold ``weight`` (one byte an element) and
``weight_scale``, and quantize what flows into the layer, one scale a token, while it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Name = Literal["W8A16", "W4A16", "W8A8", "FP8", "NF4", "INT8", "FP16", "BF16"]

#: The schemes of compressed-tensors, of bitsandbytes, and those that only round to another dtype.
COMPRESSED, BITSANDBYTES, CASTS = ("W8A16", "W4A16", "W8A8", "FP8"), ("NF4", "INT8"), ("FP16", "BF16")
#: The dtype of a cast, as config.json names it.
CAST_DTYPES = {"FP16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, order=True)
class Scheme:
    """How the weights of some layers are stored. ``group_size`` None: an output row shares a scale.

    ``apart``: each integer in a byte of its own, as it must be for embeddings: transformers loads no packed ones.
    """

    name: str
    group_size: int | None = None
    symmetric: bool = True
    apart: bool = False

    @property
    def bits(self) -> int:
        """Bits of an integer weight."""
        return 4 if self.name == "W4A16" else 8

    @property
    def packed(self) -> bool:
        """Whether integers are laid end to end in int32 words."""
        return self.name in {"W8A16", "W4A16"} and not self.apart

    @property
    def floating(self) -> bool:
        """Whether a weight is a float of 8 bits (E4M3)."""
        return self.name == "FP8"

    @property
    def format(self) -> str:
        """The name of the format in compressed-tensors."""
        return "pack-quantized" if self.packed else "float-quantized" if self.floating else "int-quantized"

    def __str__(self) -> str:
        group = "" if self.group_size is None else f" group {self.group_size}"
        return f"{self.name}{group}{'' if self.symmetric else ' asymmetric'}"

    def weights(self) -> dict[str, Any]:
        """``weights`` of a group of config.json."""
        value: dict[str, Any] = {"num_bits": self.bits, "type": "float" if self.floating else "int", "dynamic": False}
        value["symmetric"] = self.symmetric
        if self.group_size is None:
            return value | {"strategy": "channel"}
        return value | {"strategy": "group", "group_size": self.group_size}

    def group(self, targets: list[str]) -> dict[str, Any]:
        """A group of config.json: the modules, their weights, and what is done to their inputs."""
        value: dict[str, Any] = {"targets": targets, "weights": self.weights(), "format": self.format}
        if self.name in {"W8A8", "FP8"}:
            kind = "float" if self.floating else "int"
            value["input_activations"] = {
                "num_bits": 8, "type": kind, "symmetric": True, "dynamic": True, "strategy": "token",
            }  # fmt: skip
        return value


def quantization_config(groups: list[tuple[Scheme, list[str]]], ignore: list[str]) -> dict[str, Any]:
    """``quantization_config`` of config.json, as the library itself writes it."""
    from compressed_tensors.quantization import QuantizationConfig

    formats = sorted({scheme.format for scheme, _ in groups})
    config = QuantizationConfig.model_validate(
        {
            "config_groups": {f"group_{at}": scheme.group(targets) for at, (scheme, targets) in enumerate(groups)},
            "format": formats[0] if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "ignore": ignore,
        }
    )
    return dict(config.model_dump(mode="json", exclude_none=True))
