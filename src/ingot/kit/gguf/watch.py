"""llama.cpp watched while it computes: each tensor of its graph is shown to a callback that wants it.

llama.cpp asks the callback about every node of its graph (``cb_eval`` of its context) and shows those that it wants,
once they are computed. The tensors are read as ggml.h of llama-cpp-python 0.3.36 lays them out, and only after a small
graph has shown that the library at hand lays them out so.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import llama_cpp
import numpy as np
import numpy.typing as npt

from ingot.errors import StageFailed
from ingot.kit.llama_cpp import Model

F32 = 0
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
    _declare(library)
    context = library.ggml_init(_Init(mem_size=1 << 16, mem_buffer=None, no_alloc=False))
    try:
        left = library.ggml_new_tensor_2d(context, F32, 6, 3)
        right = library.ggml_new_tensor_2d(context, F32, 6, 5)
        product = library.ggml_mul_mat(context, left, right)
        library.ggml_set_name(left, b"the.left.weight")
        first, second, made = (GgmlTensor.from_address(each) for each in (left, right, product))
        sound = (
            int(library.ggml_tensor_overhead()) == ctypes.sizeof(GgmlTensor) + _HEADER
            and first.name == b"the.left.weight"
            and (list(second.ne), list(second.nb)) == ([6, 5, 1, 1], [4, 24, 120, 120])
            and second.type == F32
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


def _declare(library: ctypes.CDLL) -> None:
    """Tell ctypes what the functions take and give."""
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


class Watcher(Protocol):
    """Told of every node. What it raises is kept, ends the computation, and is raised where that was started."""

    def wants(self, node: GgmlTensor) -> bool:
        """Whether to show this node once it is computed."""
        ...

    def see(self, node: GgmlTensor) -> None:
        """A node that it wanted."""
        ...


def rows_of(node: GgmlTensor, what: str) -> npt.NDArray[np.float32]:
    """A copy of a matrix of float32, one row a token. StageFailed (E-GGML) where it does not lie in memory so."""
    columns, rows = int(node.ne[0]), int(node.ne[1])
    if (node.ne[2], node.ne[3]) != (1, 1) or node.type != F32 or node.nb[0] != 4 or not node.data:
        raise StageFailed("E-GGML", f"{what} does not lie in memory as expected")
    found = np.ctypeslib.as_array((ctypes.c_char * (node.nb[1] * rows)).from_address(node.data))
    return found.view(np.uint8).reshape(rows, -1)[:, : 4 * columns].copy().view(np.float32)


class WatchedModel(Model):
    """A model that shows a watcher what it computes."""

    def __init__(self, path: Path, watcher: Watcher, *, context: int, threads: int) -> None:
        self._watcher = watcher
        self._error: BaseException | None = None
        # llama.cpp holds a bare pointer to it
        self._callback = llama_cpp.llama_cpp.ggml_backend_sched_eval_callback(self._told)
        super().__init__(path, context=context, threads=threads)

    def _settings(self, context: int, threads: int) -> Any:
        settings = super()._settings(context, threads)
        settings.cb_eval = self._callback
        return settings

    def _told(self, address: int, ask: bool, _data: object) -> bool:  # noqa: FBT001 - llama.cpp's order
        """llama.cpp's callback; False ends the computation."""
        try:
            node = GgmlTensor.from_address(address)
            if ask:
                return self._watcher.wants(node)
            self._watcher.see(node)
        except BaseException as error:  # noqa: BLE001 - nothing may pass through C; raised by ``logits``
            self._error = error
            return False
        return True

    def logits(self, ids: Sequence[int], *, last: bool = False) -> npt.NDArray[np.float32]:
        """See ``Model``; raises what the watcher raised."""
        try:
            found = super().logits(ids, last=last)
        except StageFailed:
            if self._error is None:
                raise
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return found
