"""How many threads numpy's products take: a number of the stage, not of the environment."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

_SET = ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads", "openblas_set_num_threads")


def set_threads(count: int) -> bool:
    """Have the OpenBLAS that numpy's wheels carry use so many threads; False where numpy has another library.

    Threads that wait for each other spin, so more of them than free cores are many times slower than one.
    """
    for path in sorted((Path(np.__file__).parent.parent / "numpy.libs").glob("*openblas*")):
        library = ctypes.CDLL(str(path))
        for name in _SET:
            if (function := getattr(library, name, None)) is not None:
                function(ctypes.c_int(count))
                return True
    return False
