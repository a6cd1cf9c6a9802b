"""The runtimes by name: what a process opens and what it makes."""

from __future__ import annotations

from pathlib import Path

from ingot.kit.runtime.timing import Runner

_DTYPE = "float32"
#: Baselines that are exports of other forms.
PLAIN = ("onnxruntime", "llama_cpp")


def make_archive(name: str, model: Path, archive: Path, threads: int) -> None:
    """Make what a baseline loads. StageFailed (E-BENCHMARK) where it computes something else than its source."""
    archive.mkdir()
    if name in PLAIN:
        from ingot.kit.runtime import plain_exports

        plain_exports.MAKE[name](model, archive, threads)
        return
    from ingot.kit.runtime import archives

    archives.make(name, model, archive, threads)


def open_runner(name: str, path: Path, *, context: int, threads: int) -> tuple[Runner, str]:
    """A runtime that holds a model, and in words what it is."""
    if name == "export" or name in PLAIN:
        from ingot.kit.runtime.opening import find, load

        container, found = find(path)
        backend = load(container, found, dtype=_DTYPE, context=context, threads=threads)
        return backend, f"{backend.runtime} in float32" if name in PLAIN else backend.runtime
    if name == "transformers":
        from ingot.kit.backends.hf import HfBackend

        model = HfBackend(path, dtype=_DTYPE, threads=threads, attention="sdpa")
        return model, f"{model.runtime} with torch's own attention"
    from ingot.kit.runtime import archives

    return archives.open_archive(name, path, threads)
