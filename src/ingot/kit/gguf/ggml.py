"""ggml's own arithmetic of types, through ctypes on the ``libggml-base`` that llama-cpp-python carries.

``ggml_quantize_chunk`` is what ``llama_model_quantize`` calls, so the bytes are the same. Rows are independent of one
another, and a call releases the GIL: blocks of rows are quantized on as many threads as there are.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from functools import cache
from pathlib import Path

import torch

from ingot.errors import MissingTool, RefusedInput, StageFailed
from ingot.kit.gguf.types import GGML_TYPES, row_bytes

_NAMES = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}


class Ggml:
    """The library, loaded once. Get it from ``ggml()``."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """StageFailed (E-GGML) when the library is not the one these calls were written for."""
        self.library = library
        address, count = ctypes.c_void_p, ctypes.c_int64
        try:
            library.ggml_quantize_chunk.argtypes = [ctypes.c_int, address, address, count, count, count, address]
            library.ggml_quantize_chunk.restype = ctypes.c_size_t
            library.ggml_quantize_init.argtypes = [ctypes.c_int]
            library.ggml_quantize_init.restype = None
            library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
            library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
            library.ggml_validate_row_data.argtypes = [ctypes.c_int, address, ctypes.c_size_t]
            library.ggml_validate_row_data.restype = ctypes.c_bool
            library.ggml_blck_size.argtypes = library.ggml_type_size.argtypes = [ctypes.c_int]
            library.ggml_blck_size.restype = count
            library.ggml_type_size.restype = ctypes.c_size_t
            library.ggml_version.argtypes = []
            library.ggml_version.restype = ctypes.c_char_p
        except AttributeError as error:
            raise StageFailed("E-GGML", f"the ggml library lacks a function: {error}", hint=_HINT) from error
        for name, known in GGML_TYPES.items():
            found = (int(library.ggml_blck_size(known.number)), int(library.ggml_type_size(known.number)))
            if found != (known.block, known.size):
                raise StageFailed("E-GGML", f"the ggml library has another {name}: {found}", hint=_HINT)

    @property
    def version(self) -> str:
        """ggml's own version."""
        return str(self.library.ggml_version().decode())

    def prepare(self, kind: str) -> None:
        """Build the tables of a type. Once for each, before threads quantize to it."""
        self.library.ggml_quantize_init(GGML_TYPES[kind].number)

    def requires_imatrix(self, kind: str) -> bool:
        """Whether the type cannot be made at all without an importance matrix."""
        return bool(self.library.ggml_quantize_requires_imatrix(GGML_TYPES[kind].number))

    def encode(
        self, rows: torch.Tensor, kind: str, imatrix: torch.Tensor | None = None, *, check: bool = True
    ) -> torch.Tensor:
        """Rows (n × columns; F32, F16 or BF16) as the bytes of ``kind``, uint8.

        ``imatrix`` holds a weight for each column (float32). RefusedInput (E-GGUF-NONFINITE) where the result is no
        sound block: a weight was not finite, or too large for the type; ``check=False`` lets that pass.
        """
        columns = rows.shape[-1]
        flat = rows.reshape(-1, columns)
        size = row_bytes(kind, columns)
        encoded = torch.empty(len(flat) * size, dtype=torch.uint8)
        weights = None if imatrix is None else imatrix.data_ptr()
        number, target = GGML_TYPES[kind].number, encoded.data_ptr()
        # few rows at a time, so that the floats stay in the cache of the core that quantizes them
        step = max(1, _FLOATS // columns)
        for start in range(0, len(flat), step):
            part = flat[start : start + step].float().contiguous()
            self.library.ggml_quantize_chunk(
                number, part.data_ptr(), target + start * size, 0, len(part), columns, weights
            )
        if check and not self.library.ggml_validate_row_data(number, target, encoded.numel()):
            raise RefusedInput("E-GGUF-NONFINITE", f"weights do not fit {kind}: one is not finite, or too large")
        return encoded


#: Weights that are turned to float32 at a time.
_FLOATS = 1 << 17
_HINT = "pip install 'ingot[gguf]' gives the llama-cpp-python that ingot is made for"


@cache
def ggml() -> Ggml:
    """The library beside llama-cpp-python. MissingTool (E-MISSING-TOOL), StageFailed (E-GGML)."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise MissingTool("E-MISSING-TOOL", "llama-cpp-python is not installed", hint=_HINT)
    path = Path(spec.origin).parent / "lib" / _NAMES.get(sys.platform, "libggml-base.so")
    if not path.is_file():
        raise MissingTool("E-MISSING-TOOL", f"llama-cpp-python does not carry {path.name}", hint=_HINT)
    try:
        return Ggml(ctypes.CDLL(str(path)))
    except OSError as error:
        raise StageFailed("E-GGML", f"the ggml library cannot be loaded: {error}", hint=_HINT) from error
