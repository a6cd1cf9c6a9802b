"""A dictionary trained on small files: what they have in common is written once.

A dictionary helps content that is too short to repeat itself: many small texts and configs. It lies in the artifact and
is counted; where it costs more than it saves it is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from ingot.errors import RefusedInput
from ingot.kit.pack.frames import Recipe, loaded

#: A file of at most this many bytes is compressed with the dictionary; a larger one finds its repeats itself.
SMALL = 256 << 10
#: What is cut from the files to learn from: zstd wants many short samples, about a hundred times the dictionary.
_SAMPLE, _TIMES = 2048, 100
#: zstd's COVER: segments of k bytes, matched by d-mers. Fixed, since a search for the best is not the same twice.
_K, _D = 256, 8


@dataclass(frozen=True)
class Trained:
    """A dictionary, and by how many bytes the small files shrink with and without it (its own size not counted)."""

    data: bytes
    with_it: int
    without: int

    @property
    def gains(self) -> bool:
        """Whether it saves more than it takes."""
        return self.with_it + len(self.data) < self.without


def train(paths: Sequence[Path], size: int, recipe: Recipe) -> Trained:
    """A dictionary of at most ``size`` bytes from small files, in the order given.

    RefusedInput (E-PACK-DICTIONARY) where they are too few or too short to learn from.
    """
    samples: list[bytes | bytearray | memoryview] = []
    room = _TIMES * size
    for path in paths:
        data = path.read_bytes()[: max(0, room)]
        samples += [data[at : at + _SAMPLE] for at in range(0, len(data), _SAMPLE)]
        room -= len(data)
    total = sum(map(len, samples))
    try:
        data = zstandard.train_dictionary(size, samples, k=_K, d=_D).as_bytes()
    except (zstandard.ZstdError, ValueError) as error:
        raise RefusedInput(
            "E-PACK-DICTIONARY",
            f"no dictionary of {size:,} bytes can be learned from {len(paths)} small files of {total:,} bytes together",
            facts=[f"files of at most {SMALL:,} bytes count", str(error)],
            hint="a smaller 'dictionary', or none: it helps where there are many small files",
        ) from error
    return Trained(data, _compressed(paths, recipe, data), _compressed(paths, recipe, None))


def _compressed(paths: Sequence[Path], recipe: Recipe, dictionary: bytes | None) -> int:
    """Bytes of the files once they are packed."""
    total = 0
    options = {} if dictionary is None else {"dict_data": loaded(dictionary)}
    for path in paths:
        data = path.read_bytes()
        compressor = zstandard.ZstdCompressor(compression_params=recipe.parameters(len(data), 1), **options)
        total += min(len(data), len(compressor.compress(data)))
    return total
