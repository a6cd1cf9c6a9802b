"""The converter of a llama.cpp checkout, for architectures that are not known here.

It is a program of the project, run on snapshots of its files in a process of its own: ``convert_hf_to_gguf.py``, the
package ``conversion`` and gguf-py's package ``gguf``. Nothing that lies elsewhere counts: no installed gguf-py, no hub;
the model has the same folder name everywhere, because the converter writes that into the file. Quantized types are then
made by ``llama_model_quantize`` from a file of the type in which the weights are stored.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ingot.core.digest import record_files, tree_digest
from ingot.core.stage import Done, Given, Progress
from ingot.errors import RefusedInput
from ingot.kit import hf
from ingot.kit.gguf.reader import TensorInfo as Found
from ingot.kit.gguf.reader import fields_of, read_gguf
from ingot.kit.gguf.types import FILE_TYPES, PLAIN
from ingot.kit.gguf.writer import Field, TensorInfo, write_gguf
from ingot.kit.llama_cpp import quantize
from ingot.kit.stream import pipeline
from ingot.kit.stream.hash_sink import HashSink
from ingot.kit.stream.inputs import open_input, side_folder, written

#: The field that holds the folder's name.
_FROM_PATH = frozenset({"general.name"})


@dataclass(frozen=True)
class Snapshots:
    """Copies of a checkout's files: the script, the package ``conversion``, gguf-py's package ``gguf``."""

    script: Path
    conversion: Path
    gguf: Path

    def assemble(self, root: Path) -> Path:
        """The three as they lie in a checkout."""
        (root / "gguf-py").mkdir(parents=True)
        shutil.copyfile(self.script, root / "convert_hf_to_gguf.py")
        shutil.copytree(self.conversion, root / "conversion")
        shutil.copytree(self.gguf, root / "gguf-py" / "gguf")
        return root


class Conversion:
    """One run of the converter on the role ``model`` of ``given``; a model that was never written is written for it."""

    def __init__(self, given: Given, snapshots: Snapshots, kind: str, *, finite: bool) -> None:
        """Read nothing yet."""
        self._given, self._snapshots, self._kind, self._finite = given, snapshots, kind, finite
        self._scratch = side_folder(given)
        self._plain = self._scratch / "converted.gguf"
        self.passed: Mapping[str, Done] = {}
        self.tensors: Sequence[Found] = ()
        self.bytes_read = 0
        self.identity = ""

    @property
    def model(self) -> Path:
        """The folder that is converted."""
        return self._given.one("model")

    @property
    def digest(self) -> str | None:
        """The model's digest."""
        if self.passed:  # what it is now, whatever was on record
            return tree_digest(self.passed["model"].files)
        return next(iter(self._given.digests.get("model", ())), None)

    def run(self, progress: Progress) -> None:
        """Verify the model's bytes, then convert it.

        RefusedInput: what ``hf.read_config`` refuses, code in the folder above all; E-NONFINITE; E-GGUF-CONVERTER when
        the converter fails, with its last words.
        """
        self._given, passed = written(self._given, "model", progress)
        self.passed = {role: told() for role, told in passed.items()}
        hf.read_config(self.model)
        progress.phase("verify the model")
        weights = open_input(self._given, "model", progress, finite=self._finite)
        pipeline.run(weights, [HashSink(self._scratch)], threads=self._given.threads, watch=progress)
        self.bytes_read = sum(slot.nbytes for slot in weights.source.slots)
        progress.phase("convert with llama.cpp")
        root = self._snapshots.assemble(self._scratch / "llama.cpp")
        self.identity = tree_digest(record_files(root))
        (self._scratch / "model").symlink_to(self.model)
        done = subprocess.run(
            [sys.executable, "-P", "-B", str(root / "convert_hf_to_gguf.py"), "model", "--outfile", str(self._plain),
             "--outtype", (self._kind if self._kind in PLAIN else stored_kind(self.model)).lower()],
            cwd=self._scratch, env=_environment(root), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode != 0 or not self._plain.is_file():
            raise _failed(done.returncode, done.stderr.replace(str(self._scratch), "…"))

    def finish(self, target: Path, more: Sequence[Field]) -> None:
        """The file in its type, without the folder's name and with further fields; ``tensors`` are then what it holds.

        StageFailed (E-LLAMA-CPP) when llama.cpp's quantizer refuses.
        """
        plain = self._kind in PLAIN
        renamed = target if plain else self._plain.with_name("renamed.gguf")
        gguf = read_gguf(self._plain)
        fields = [field for field in fields_of(self._plain) if field.key not in _FROM_PATH]
        infos = [TensorInfo(info.name, info.shape, info.type) for info in gguf.tensors]
        write_gguf(renamed, [*fields, *more], infos, (gguf.raw(info).data for info in gguf.tensors))
        if not plain:
            quantize(renamed, target, FILE_TYPES[self._kind][0], threads=self._given.threads)
        self.tensors = read_gguf(target).tensors


def _environment(root: Path) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if name not in {"NO_LOCAL_GGUF", "PYTHONPATH"}}
    path = os.pathsep.join([str(root), str(root / "gguf-py")])
    return {**ours, "PYTHONPATH": path, "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def _failed(status: int, said: str) -> RefusedInput:
    return RefusedInput(
        "E-GGUF-CONVERTER",
        f"the converter of the llama.cpp checkout ended with status {status}",
        facts=[line.strip()[:200] for line in said.splitlines() if line.strip()][-4:],
        hint="it must know the architecture, and what it imports must be installed",
    )


def stored_kind(model: Path) -> str:
    """The type that holds every stored matrix exactly."""
    found = {entry.dtype for _, entry in hf.entries(model) if len(entry.shape) > 1}
    return found.pop() if len(found) == 1 and found <= {"F16", "BF16"} else "F32"
