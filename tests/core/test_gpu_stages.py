"""What stages meet on a machine with a GPU, as far as one without can show it: forks, and a memory that is full."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from ingot.core import forkserver, worker
from ingot.core.stage import kinds, load_kind

#: Imports the modules that are named, before "then" and after it, and says which of them looked for a GPU.
_LOOKS = """
import importlib, sys
import torch
looked = []
for name in ("is_available", "device_count", "_lazy_init"):
    def spy(*args, asked=getattr(torch.cuda, name), **more):
        looked.append(True)
        return asked(*args, **more)
    setattr(torch.cuda, name, spy)
for name in sys.argv[1:]:
    importlib.import_module(name)
    print(name, bool(looked))
    looked.clear()
"""


def test_nothing_that_is_imported_before_a_fork_looks_for_a_gpu() -> None:
    """A child of a process that has started CUDA cannot use it."""
    wanted = sorted({name for kind in kinds() for name in load_kind(kind).preload})
    safe = forkserver.without_cuda(wanted, has_gpu=True)
    program = [sys.executable, "-c", _LOOKS, *safe, "bitsandbytes"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    looked = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert looked.pop("bitsandbytes") == "True", "what is known to look is not seen to look"
    assert looked == dict.fromkeys(safe, "False")
    assert set(wanted) - set(safe) == {"peft"}
    assert forkserver.without_cuda(wanted, has_gpu=False) == wanted


def test_a_fork_warns_nobody_of_threads_that_end_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python does from 3.12 on; warnings are errors here."""

    def fork() -> int:
        warnings.warn("This process is multi-threaded", DeprecationWarning, stacklevel=2)
        return 7

    monkeypatch.setattr(os, "fork", fork)
    assert forkserver._fork() == 7


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), "E-DEVICE-MEMORY"),
        (RuntimeError("CUDA error: out of memory\nmore"), "E-DEVICE-MEMORY"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "E-DEVICE-MEMORY"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "E-STAGE"),
    ],
)
def test_a_full_gpu_is_told_from_other_errors(error: Exception, code: str, tmp_path: Path) -> None:
    found = worker._explained(error, tmp_path)
    assert (found.code, len(found.facts)) == (code, 1 if code == "E-DEVICE-MEMORY" else 0)
    assert not any("more" in fact for fact in found.facts)
