"""compressed-tensors decodes what was written: the format's own library, never an inverse of our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ingot.kit.quant.scheme import Scheme


def library_scheme(group: Mapping[str, Any]) -> Any:
    """A group of config.json as the library's ``QuantizationScheme``."""
    from compressed_tensors.quantization import QuantizationScheme

    return QuantizationScheme.model_validate(dict(group))


def decode(parts: Mapping[str, torch.Tensor], scheme: Any) -> torch.Tensor:
    """The weights that ``parts`` (``weight_packed``, ``weight_scale`` …) stand for, in the dtype of their scales."""
    from compressed_tensors.compressors import BaseCompressor

    compressor = BaseCompressor.get_value_from_registry(getattr(scheme.format, "value", scheme.format))
    weight = compressor.decompress(dict(parts), scheme)["weight"]
    assert isinstance(weight, torch.Tensor)
    return weight


class Decoder:
    """Decodes rows of a weight written in ``scheme``."""

    def __init__(self, scheme: Scheme) -> None:
        self._scheme = library_scheme(scheme.group(["Linear"]))

    def __call__(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See ``decode``."""
        return decode(parts, self._scheme)
