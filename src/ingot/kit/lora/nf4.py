"""bitsandbytes' four-bit round trip, which a QLoRA adapter was trained over (Dettmers et al. 2023).

Blocks run over the flattened tensor; with ``double_quant`` their largest values are quantized too, after their mean
over the whole tensor is taken off. So a weight is quantized as a whole, but a few hundred thousand values at a time:
what is held is half a byte a weight and the largest values. It equals one call of ``quantize_4bit`` and
``dequantize_4bit``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ingot.core.digest import canonical_json, sha256_bytes
from ingot.kit import bitsandbytes_library
from ingot.kit.hf import torch_dtype
from ingot.kit.lora.files import Quantization

_PIECE = 1 << 18  # weights quantized at a time: a multiple of every block size


def _functional() -> Any:
    use = "it repeats the quantization that the adapter was trained over"
    return bitsandbytes_library.part("functional", use)


class RoundTrip:
    """Quantize and dequantize weights as the adapter's training did."""

    def __init__(self, how: Quantization) -> None:
        self.how = how
        self._lib = _functional()

    @functools.cached_property
    def identity(self) -> str:
        """See ``identity``."""
        return identity(self.how)

    def packed(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(four-bit codes, two a byte; each block's largest value as it is read back) of a whole weight."""
        flat = weight.reshape(-1)
        if self.how.dtype:
            flat = flat.to(torch_dtype(self.how.dtype))
        codes, largest = [], []
        for piece in flat.split(_PIECE):
            code, state = self._lib.quantize_4bit(
                piece, blocksize=self.how.blocksize, compress_statistics=False, quant_type=self.how.method
            )
            codes.append(code.reshape(-1))
            largest.append(state.absmax)
        found = torch.cat(largest)
        if self.how.double_quant:
            offset = found.mean()
            again, state = self._lib.quantize_blockwise(found - offset, blocksize=256)
            found = (self._lib.dequantize_blockwise(again, state) + offset).float()
        return torch.cat(codes), found

    def reader(self, weight: torch.Tensor) -> Callable[[int, int], torch.Tensor]:
        """Gives rows [start, stop) of the weight after the round trip, rounded to its dtype, as fp32."""
        codes, largest = self.packed(weight)
        width, size = weight.numel() // max(1, weight.shape[0]), self.how.blocksize
        dtype = torch_dtype(self.how.dtype) if self.how.dtype else weight.dtype

        def read(start: int, stop: int) -> torch.Tensor:
            begin, end = start * width, stop * width
            low, high = begin // size, min(-(-end // size) * size, weight.numel())
            state = self._lib.QuantState(
                absmax=largest[low:-(-end // size)], shape=torch.Size([high - low * size]), dtype=dtype, blocksize=size,
                code=self._lib.get_4bit_type(self.how.method, device="cpu"), quant_type=self.how.method,
            )  # fmt: skip
            found = self._lib.dequantize_4bit(codes[low * size // 2 : -(-high // 2)].reshape(-1, 1), state)
            wide: torch.Tensor = found.reshape(-1)[begin - low * size : end - low * size].float()
            return wide.reshape(stop - start, *weight.shape[1:])

        return read


def identity(how: Quantization) -> str:
    """SHA-256 over what this machine's bitsandbytes makes of a fixed tensor: equal round trips have equal ones."""
    numbers = torch.arange(1 << 16, dtype=torch.int64) * 2654435761 % (1 << 32)
    probe = ((numbers.double() / (1 << 31) - 1) ** 3).to(torch_dtype(how.dtype or "bfloat16")).reshape(64, -1)
    trip = RoundTrip(how)
    codes, largest = trip.packed(probe)
    back = trip.reader(probe)(0, probe.shape[0])
    stated = {"blocksize": how.blocksize, "double_quant": how.double_quant, "method": how.method, "dtype": how.dtype}
    parts = [tensor.contiguous().view(torch.uint8).numpy().tobytes() for tensor in (codes, largest, back)]
    return sha256_bytes(canonical_json(stated) + b"".join(parts))
