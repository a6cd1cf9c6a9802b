"""A model that somebody wants to talk to: what lies at a path, and the backend that runs it here."""

from __future__ import annotations

import sys
from pathlib import Path

from ingot.errors import IngotError, MissingTool, RefusedInput, UsageError
from ingot.kit.backends import Backend, container_of, open_backend

#: The extra of ``pip install`` that runs a container, where it is not ``all``.
_EXTRAS = {"hf": "ml", "gguf": "gguf", "onnx": "onnx", "coreml": "coreml"}
_MAGIC = b"GGUF"


def find(path: Path) -> tuple[str, Path]:
    """(container, what to open) of a file or folder.

    UsageError (E-FILE) where nothing can be read; RefusedInput: E-GGUF for another file, E-CHAT-MODEL for a folder in
    which no model lies.
    """
    if (path.suffix == ".mlpackage" and path.is_dir()) or (path.name == "model.onnx" and path.is_file()):
        path = path.resolve().parent
    if path.is_dir():
        parts = sorted(path.glob("*.gguf"))
        if parts and not (path / "config.json").is_file():
            return "gguf", _first_part(path, parts)
        try:
            return container_of(path), path
        except RefusedInput as error:
            raise RefusedInput("E-CHAT-MODEL", f"there is no model to talk to in {path}", facts=error.facts) from error
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise UsageError("E-FILE", f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    if magic != _MAGIC:
        hint = "of other models than GGUF name the folder"
        raise RefusedInput("E-GGUF", f"{path} is not a GGUF file", hint=hint)
    return "gguf", path


def _first_part(folder: Path, parts: list[Path]) -> Path:
    from ingot.kit.gguf.reader import parts_of

    if len(parts) == 1 or set(parts_of(parts[0])) == set(parts):
        return parts[0]
    names = [path.name for path in parts]
    raise UsageError("E-CHAT-MODEL", f"{folder} holds several models", facts=names, hint="name one of the files")


def note(container: str) -> str | None:
    """What somebody should know before they wait."""
    if container == "coreml" and sys.platform != "darwin":
        return "Core ML packages run on a Mac; here the reference interpreter runs them, which is slow"
    return None


def load(container: str, path: Path, *, dtype: str, context: int, threads: int) -> Backend:
    """The backend, loaded.

    MissingTool (E-MISSING-TOOL) without a package that it needs; RefusedInput for a model that is unsound (the codes of
    its format) or that its runtime does not load (E-CHAT-MODEL).
    """
    try:
        if container != "gguf":
            _quiet()
            return open_backend(path, dtype=dtype, context=context, threads=threads)
        from ingot.kit.backends.gguf import GgufBackend
        from ingot.kit.llama_cpp import silence

        silence()
        return GgufBackend(path, context=context, threads=threads)
    except ModuleNotFoundError as error:
        extra = _EXTRAS[container]
        raise MissingTool(
            "E-MISSING-TOOL", f"the package {error.name} is not installed", hint=f"pip install 'ingot[{extra}]'"
        ) from error
    except (IngotError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever a library says of a model that it does not take
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise RefusedInput("E-CHAT-MODEL", f"{path} cannot be loaded", facts=[why]) from error


def _quiet() -> None:
    """Libraries have nothing to say between questions and answers."""
    import warnings

    from transformers.utils import logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
