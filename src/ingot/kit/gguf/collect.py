"""Importance matrices computed by llama.cpp itself: what flows into each of its matrix products is looked at.

llama.cpp asks a callback about every node of its graph (``cb_eval`` of its context) and shows those that it wants, once
they are computed; from a product's second operand come the sums of squares, as in llama.cpp's tools/imatrix. The
tensors are read as ggml.h of llama-cpp-python 0.3.36 lays them out, and only after a small graph has shown that the
library at hand lays them out so.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from ingot.errors import StageFailed
from ingot.kit.gguf.imatrix import Entry, Imatrix
from ingot.kit.llama_cpp import Model

#: Fewer tokens at once are no product of a text's batch (as in the reference).
LEAST_TOKENS = 16
_F32 = 0
_HEADER = 32  # of an object in a ggml context


class GgmlTensor(ctypes.Structure):
    """``struct ggml_tensor`` of ggml.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    ]


class _Init(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def product_op(library: ctypes.CDLL) -> int:
    """The number of a matrix product. StageFailed (E-GGML) when tensors are not laid out as ``GgmlTensor`` says.

    A product of two small tensors is built, and each field that is read later is compared with what was asked for or
    with what the library's own functions say.
    """
    address, number = ctypes.c_void_p, ctypes.c_int64
    library.ggml_init.argtypes, library.ggml_init.restype = [_Init], address
    library.ggml_free.argtypes, library.ggml_free.restype = [address], None
    library.ggml_new_tensor_2d.argtypes = [address, ctypes.c_int, number, number]
    library.ggml_mul_mat.argtypes = [address, address, address]
    library.ggml_new_tensor_2d.restype = library.ggml_mul_mat.restype = address
    library.ggml_set_name.argtypes, library.ggml_set_name.restype = [address, ctypes.c_char_p], address
    library.ggml_op_name.argtypes, library.ggml_op_name.restype = [ctypes.c_int], ctypes.c_char_p
    library.ggml_get_data.argtypes, library.ggml_get_data.restype = [address], address
    library.ggml_tensor_overhead.argtypes, library.ggml_tensor_overhead.restype = [], ctypes.c_size_t
    context = library.ggml_init(_Init(mem_size=1 << 16, mem_buffer=None, no_alloc=False))
    try:
        left = library.ggml_new_tensor_2d(context, _F32, 6, 3)
        right = library.ggml_new_tensor_2d(context, _F32, 6, 5)
        product = library.ggml_mul_mat(context, left, right)
        library.ggml_set_name(left, b"the.left.weight")
        first, second, made = (GgmlTensor.from_address(each) for each in (left, right, product))
        sound = (
            int(library.ggml_tensor_overhead()) == ctypes.sizeof(GgmlTensor) + _HEADER
            and first.name == b"the.left.weight"
            and (list(second.ne), list(second.nb)) == ([6, 5, 1, 1], [4, 24, 120, 120])
            and second.type == _F32
            and (list(made.src)[:3]) == [left, right, None]
            and list(made.ne) == [3, 5, 1, 1]
            and library.ggml_op_name(made.op) == b"MUL_MAT"
            and all(GgmlTensor.from_address(t).data == library.ggml_get_data(t) for t in (left, right, product))
        )
        op = int(made.op)
    finally:
        library.ggml_free(context)
    if not sound:
        raise StageFailed(
            "E-GGML",
            "the tensors of this llama.cpp are laid out otherwise, so what flows in them cannot be read",
            hint="pip install 'ingot[gguf]' gives the llama-cpp-python that ingot is made for",
        )
    return op


class Collector:
    """Sums of squares of what goes into each matrix of a layer, in float64, in the order of the tokens."""

    def __init__(self, product: int) -> None:
        self._product = product
        self.sums: dict[str, npt.NDArray[np.float64]] = {}
        self.counts: dict[str, int] = {}
        self.error: BaseException | None = None

    def __call__(self, address: int, ask: bool, _data: object) -> bool:  # noqa: FBT001 - llama.cpp's order
        """llama.cpp's callback; False ends the computation, and ``error`` says why."""
        try:
            node = GgmlTensor.from_address(address)
            if ask:
                return self._wanted(node)
            self._add(node)
        except BaseException as error:  # noqa: BLE001 - nothing may pass through C; raised by ``collect``
            self.error = error
            return False
        return True

    def _wanted(self, node: GgmlTensor) -> bool:
        if node.op != self._product:
            return False
        matrix, inputs = (GgmlTensor.from_address(node.src[index]) for index in (0, 1))
        return bool(matrix.name.startswith(b"blk.") and inputs.type == _F32 and inputs.ne[1] >= LEAST_TOKENS)

    def _add(self, node: GgmlTensor) -> None:
        matrix, inputs = (GgmlTensor.from_address(node.src[index]) for index in (0, 1))
        name = matrix.name.decode()
        columns, tokens = int(inputs.ne[0]), int(inputs.ne[1])
        if (inputs.ne[2], inputs.ne[3]) != (1, 1) or inputs.nb[0] != 4 or not inputs.data:
            raise StageFailed("E-GGML", f"what flows into {name!r} does not lie in memory as expected")
        rows = np.ctypeslib.as_array((ctypes.c_char * (inputs.nb[1] * tokens)).from_address(inputs.data))
        values = rows.view(np.uint8).reshape(tokens, -1)[:, : 4 * columns].view(np.float32).astype(np.float64)
        found = np.einsum("ij,ij->j", values, values)
        if not np.isfinite(found).all():
            raise StageFailed("E-IMATRIX", f"what flows into {name!r} is not finite")
        before = self.sums.get(name)
        self.sums[name] = found if before is None else before + found
        self.counts[name] = self.counts.get(name, 0) + tokens


class _Watched(Model):
    """A model that shows a collector what it computes."""

    def __init__(self, path: Path, collector: Collector, *, context: int, threads: int) -> None:
        self._collector = collector
        # llama.cpp holds a bare pointer to it
        self._callback = llama_cpp.llama_cpp.ggml_backend_sched_eval_callback(collector)
        super().__init__(path, context=context, threads=threads)

    def _settings(self, context: int, threads: int) -> Any:
        settings = super()._settings(context, threads)
        settings.cb_eval = self._callback
        return settings

    def see(self, ids: Sequence[int]) -> None:
        """Compute a text from its beginning; all of it, for the last layer too."""
        try:
            self.logits(ids)
        except StageFailed:
            if self._collector.error is None:
                raise
        if self._collector.error is not None:
            raise self._collector.error


def collect(path: Path, texts: Sequence[Sequence[int]], *, threads: int, watch: Callable[[int, int], None]) -> Imatrix:
    """The importance matrix of an unquantized GGUF over texts of equal length (token ids).

    ``watch`` is told how many texts of how many are done. StageFailed: E-GGML, E-IMATRIX, E-LLAMA-CPP.
    """
    from ingot.kit.gguf.ggml import ggml

    size = len(texts[0])
    collector = Collector(product_op(ggml().library))
    with _Watched(path, collector, context=size, threads=threads) as model:
        for done, ids in enumerate(texts, 1):
            model.see(ids)
            watch(done, len(texts))
    entries = {
        name: Entry(collector.sums[name].astype(np.float32), np.array([collector.counts[name]], np.float32))
        for name in sorted(collector.sums)
    }
    return Imatrix(entries, len(texts), size)
