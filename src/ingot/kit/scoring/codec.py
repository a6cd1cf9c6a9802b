"""Distributions of next tokens in few bytes, so that KL divergences from them come out as from the full ones.

Of each row of V log-probabilities a symbol of one byte a token is kept: 0 for a probability above ``FINE``, whose
log-probability follows in 16 bits; then bins ``WIDTH`` nats wide, down to the floor; the last bin holds all below it.
A bin stands for the mean probability of what a frame has in it, scaled in each row so that it sums to 1. That is
a distribution p̃ close to p, and one number a row, A = Σ p̃ log p, summed while p is there, makes up for the rest:

    KL(p‖q) = Σ p log (p/q) ≈ Σ p̃ log (p/q) = A - Σ p̃ log q

The error is Σ (p̃ - p) log (p/q), a small difference times a small one; it is exactly 0 where q = p.

A frame is a head, the numbers of the rows, the symbols token by token (all rows of a token side by side, which zstd
shrinks better), and the high and the low bytes of the 16 bits. It is compressed by zstd. The floor is the lowest of
``FLOORS`` with which the frame takes less than ``SHARE`` of V float32 numbers a row; with the highest, a frame of a
trained model always does.
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import zstandard

from ingot.errors import RefusedInput

#: Rows of a frame.
ROWS = 256
#: Probabilities above are kept in 16 bits.
FINE = 1e-4
#: Width of a bin below, in nats.
WIDTH = 0.25
FLOORS = (3e-8, 1e-7, 1e-6, 1e-5, 5e-5)
#: What a frame may take of the float32 dump; a tenth is the promise.
SHARE = 0.095
_LEVEL = 3
_STEP = -math.log(FINE) / 65535
_HEAD = struct.Struct("<IIII")  # rows, tokens of the vocabulary, bins, numbers of 16 bits
_BLOCK = 1 << 21  # numbers in float64 at once

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """Rows as they were kept: ``own`` is A of each, ``top`` its likeliest token, ``share`` is p̃ (rows, V)."""

    own: npt.NDArray[np.float64]
    top: npt.NDArray[np.int64]
    share: torch.Tensor

    def rows(self, start: int, stop: int) -> Frame:
        """Some of the rows."""
        return Frame(self.own[start:stop], self.top[start:stop], self.share[start:stop])

    def divergence(self, log_q: torch.Tensor) -> npt.NDArray[np.float64]:
        """KL(p‖q) of each row in nats; never negative."""
        return np.maximum(self.own - cross(self.share, log_q), 0.0)


def cross(share: torch.Tensor, log: torch.Tensor) -> npt.NDArray[np.float64]:
    """Σ share · log of each row in float64, a few rows at a time."""
    step = max(1, _BLOCK // share.shape[1])
    parts = [
        (share[at : at + step].double() * log[at : at + step].double()).sum(-1) for at in range(0, len(share), step)
    ]
    found: npt.NDArray[np.float64] = torch.cat(parts).numpy()
    return found


def encode(log_p: torch.Tensor) -> bytes:
    """Float32 log-probabilities (at most ``ROWS``, V) as one compressed frame."""
    made = b""
    for floor in FLOORS:
        made = _compressed(log_p, floor)
        if len(made) <= SHARE * 4 * log_p.numel():
            break
    return made


def _compressed(log_p: torch.Tensor, floor: float) -> bytes:
    symbols, bins = _symbols(log_p, floor)
    likely = symbols == 0
    codes = (log_p[likely].double() / -_STEP).round().clamp(0, 65535).numpy().astype(np.uint16)
    flat = symbols.flatten().long()
    mass = torch.bincount(flat, weights=log_p.exp().flatten().double(), minlength=bins)
    means = (mass / torch.bincount(flat, minlength=bins).clamp(min=1)).float().numpy()
    share = _shares(symbols, means, codes)
    rows, width = log_p.shape
    parts = (
        _HEAD.pack(rows, width, bins, len(codes)),
        cross(share, log_p).astype("<f8").tobytes(),
        log_p.argmax(-1).numpy().astype("<u4").tobytes(),
        means.astype("<f4").tobytes(),
        symbols.T.contiguous().numpy().tobytes(),
        (codes >> 8).astype(np.uint8).tobytes(),
        (codes & 255).astype(np.uint8).tobytes(),
    )
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(b"".join(parts))


def _symbols(log_p: torch.Tensor, floor: float) -> tuple[torch.Tensor, int]:
    """The symbol of each log-probability, and how many symbols there are."""
    last = math.ceil(math.log(FINE / floor) / WIDTH) + 1
    below = (math.log(FINE) - log_p).div_(WIDTH)
    return below.floor_().add_(1).clamp_(0, last).to(torch.uint8), last + 1


def _shares(symbols: torch.Tensor, means: npt.NDArray[np.float32], codes: npt.NDArray[np.uint16]) -> torch.Tensor:
    """p̃ of rows; what is not in 16 bits is scaled so that the row sums to 1."""
    table = torch.from_numpy(means.copy())
    table[0] = 0.0
    share = table[symbols.int()]
    likely = symbols == 0
    fine = torch.from_numpy(np.exp(codes.astype(np.float64) * -_STEP).astype(np.float32))
    kept = torch.zeros_like(share).masked_scatter_(likely, fine)
    left = (1 - kept.sum(-1, dtype=torch.float64)).clamp(min=0)
    coarse = share.sum(-1, dtype=torch.float64)
    scale = torch.where(coarse > 0, left / coarse, 0.0)
    share.mul_(scale.float()[:, None]).add_(kept)
    return share.div_(share.sum(-1, dtype=torch.float64).float()[:, None])


def decode(frame: bytes, vocabulary: int) -> Frame:
    """What ``encode`` made. RefusedInput (E-LOGITS-FORMAT) for anything else."""
    try:
        most = _HEAD.size + ROWS * (12 + 3 * vocabulary) + 4 * 256
        data = memoryview(zstandard.ZstdDecompressor().decompress(frame, max_output_size=most))
        rows, width, bins, fine = _HEAD.unpack_from(data)
        sizes = (_HEAD.size, 8 * rows, 4 * rows, 4 * bins, rows * width, fine, fine)
        if not 0 < rows <= ROWS or width != vocabulary or bins > 256 or sum(sizes) != len(data):
            raise ValueError("a frame is not as long as it says")
    except (zstandard.ZstdError, struct.error, ValueError) as error:
        raise damaged(str(error)) from error
    ends = np.cumsum(sizes)
    own, top, means, symbols, high, low = (data[start:end] for start, end in itertools.pairwise(ends))
    codes = (np.frombuffer(high, np.uint8).astype(np.int32) << 8 | np.frombuffer(low, np.uint8)).astype(np.uint16)
    table = np.frombuffer(means, "<f4").astype(np.float32)
    found = torch.from_numpy(np.frombuffer(symbols, np.uint8).reshape(width, rows).T.copy())
    if int(found.max()) >= bins or int((found == 0).sum()) != fine:
        raise damaged("the symbols of a frame are not those that it has numbers for")
    return Frame(
        np.frombuffer(own, "<f8").astype(np.float64),
        np.frombuffer(top, "<u4").astype(np.int64),
        _shares(found, table, codes),
    )


def damaged(why: str) -> RefusedInput:
    """E-LOGITS-FORMAT."""
    return RefusedInput("E-LOGITS-FORMAT", f"stored logits cannot be read: {why}", hint="build the logits again")
