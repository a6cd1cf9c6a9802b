"""Importance matrices computed by llama.cpp itself: what flows into each of its matrix products is looked at.

From a product's second operand come the sums of squares, as in llama.cpp's tools/imatrix (see ``watch``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ingot.errors import StageFailed
from ingot.kit.gguf.imatrix import Entry, Imatrix
from ingot.kit.gguf.watch import F32, GgmlTensor, WatchedModel, product_op, rows_of

#: Fewer tokens at once are no product of a text's batch (as in the reference).
LEAST_TOKENS = 16


class Collector:
    """Sums of squares of what goes into each matrix of a layer, in float64, in the order of the tokens."""

    def __init__(self, product: int) -> None:
        self._product = product
        self.sums: dict[str, npt.NDArray[np.float64]] = {}
        self.counts: dict[str, int] = {}

    def wants(self, node: GgmlTensor) -> bool:
        """The products of a layer's matrices with enough tokens."""
        if node.op != self._product:
            return False
        matrix, inputs = (GgmlTensor.from_address(node.src[index]) for index in (0, 1))
        return bool(matrix.name.startswith(b"blk.") and inputs.type == F32 and inputs.ne[1] >= LEAST_TOKENS)

    def see(self, node: GgmlTensor) -> None:
        """Add what flowed into a product. StageFailed (E-IMATRIX) where it is not finite."""
        matrix, inputs = (GgmlTensor.from_address(node.src[index]) for index in (0, 1))
        name = matrix.name.decode()
        values = rows_of(inputs, f"what flows into {name!r}").astype(np.float64)
        found = np.einsum("ij,ij->j", values, values)
        if not np.isfinite(found).all():
            raise StageFailed("E-IMATRIX", f"what flows into {name!r} is not finite")
        before = self.sums.get(name)
        self.sums[name] = found if before is None else before + found
        self.counts[name] = self.counts.get(name, 0) + len(values)


def collect(path: Path, texts: Sequence[Sequence[int]], *, threads: int, watch: Callable[[int, int], None]) -> Imatrix:
    """The importance matrix of an unquantized GGUF over texts of equal length (token ids).

    ``watch`` is told how many texts of how many are done. StageFailed: E-GGML, E-IMATRIX, E-LLAMA-CPP.
    """
    from ingot.kit.gguf.ggml import ggml

    size = len(texts[0])
    collector = Collector(product_op(ggml().library))
    with WatchedModel(path, collector, context=size, threads=threads) as model:
        for done, ids in enumerate(texts, 1):
            model.logits(ids)  # of all of it, for the last layer too
            watch(done, len(texts))
    entries = {
        name: Entry(collector.sums[name].astype(np.float32), np.array([collector.counts[name]], np.float32))
        for name in sorted(collector.sums)
    }
    return Imatrix(entries, len(texts), size)
