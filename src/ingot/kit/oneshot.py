"""llm-compressor's modifiers on a model in memory: offline, quiet, and with nothing written.

Its pipeline is the sequential one: layer by layer, a layer's inputs are those that the layers before it give once they
are compressed, and only one layer's statistics and the activations between two layers are held. Texts are token ids,
so no tokenizer is asked for. What it logs at the level of a warning is handed back; its progress bars become ours.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Self, cast

import torch

from ingot.core.stage import Progress
from ingot.errors import StageFailed

#: Its name is where llm-compressor and compressed-tensors keep what this module puts in their place.
_PACKAGES = ("llmcompressor.", "compressed_tensors.")
#: No sink on the console when it is imported, no file of its own, no warning about tokenizers that nobody uses.
_ENVIRONMENT: Mapping[str, str | None] = {
    "LLM_COMPRESSOR_LOG_DISABLED": None,
    "LLM_COMPRESSOR_LOG_LEVEL": "",
    "LLM_COMPRESSOR_LOG_FILE": None,
    "LLM_COMPRESSOR_LOG_FILE_LEVEL": None,
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Settings:
    """How a run computes: the device of one layer at a time, threads on a CPU, the seed of torch's random numbers."""

    device: torch.device
    threads: int
    seed: int = 0


def modifier(module: str, name: str, **fields: Any) -> Any:
    """The modifier ``name`` of ``llmcompressor.modifiers.<module>`` with these fields, imported without a sound."""
    with _environment():
        found = __import__(f"llmcompressor.modifiers.{module}", fromlist=[name])
        return getattr(found, name)(**fields)


def apply(
    model: Any, texts: Sequence[Sequence[int]], modifiers: Sequence[Any], settings: Settings, progress: Progress
) -> list[str]:
    """Change the weights of ``model`` in place, each text a batch of its own; returns the warnings that were logged.

    The model stays where it lies (host memory also for CUDA, where one layer at a time is copied). Equal arguments give
    equal bits on a CPU. StageFailed (E-ONESHOT) when the library gives up, as on a model that it cannot trace.
    """
    torch.set_num_threads(settings.threads)
    warnings: list[str] = []
    bars = _Bars(progress, len(texts))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment())
        runner = _runner(model, texts, modifiers)
        stack.enter_context(_logged(warnings))
        stack.enter_context(_replaced({"tqdm": bars.bar, "get_main_device": lambda: settings.device}))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(settings.seed)
        try:
            runner()
        except (RuntimeError, ValueError) as error:
            first = _first(error)
            if isinstance(first, torch.OutOfMemoryError) or any(word in str(first) for word in _FULL):
                raise torch.OutOfMemoryError(str(first)) from error
            raise StageFailed(
                "E-ONESHOT",
                "llm-compressor could not process the model",
                facts=[f"{type(first).__name__}: {' '.join(str(first).split())[:300]}", *warnings[-2:]],
                hint="models of the Llama kind are known to work; other methods need no tracing of the model",
            ) from error
        finally:
            _release(model)
    return warnings


#: What libraries of CUDA say, beside torch's own error, when the GPU is full.
_FULL = ("out of memory", "ALLOC_FAILED")


def _first(error: BaseException) -> BaseException:
    """The error behind those that the library put over it: when a traced layer fails, its own shows generated code."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return error


def _runner(model: Any, texts: Sequence[Sequence[int]], modifiers: Sequence[Any]) -> Callable[[], None]:
    from llmcompressor.entrypoints.oneshot import Oneshot
    from torch.utils.data import DataLoader

    class InMemory(Oneshot):  # type: ignore[misc]  # the library is not typed
        """Asks no folder and no hub about a model that is here."""

        def validate_model(self, model: Any) -> None:
            """The library reads the model's folder again, or asks the hub for one that has none."""

    rows = [{"input_ids": torch.tensor(list(ids))} for ids in texts]
    loader: Any = DataLoader(cast("Any", rows), batch_size=1, shuffle=False)
    # Any processor will do: it is kept from being looked for, and never asked.
    runner = InMemory(
        model=model, processor=SimpleNamespace(), dataset=loader, recipe=list(modifiers), pipeline="sequential"
    )
    return cast("Callable[[], None]", runner)


def _release(model: Any) -> None:
    """Make the modules plain again: parameters in ordinary dictionaries, the class's own forward."""
    from compressed_tensors.offload import remove_dispatch

    remove_dispatch(model)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Neither the environment has it write, nor does what it imports speak up through ``logging``."""
    before, disabled = {name: os.environ.get(name) for name in _ENVIRONMENT}, logging.root.manager.disable
    _set(_ENVIRONMENT)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def _logged(warnings: list[str]) -> Iterator[None]:
    from loguru import logger

    def keep(message: Any) -> None:
        if message.record["level"].name in {"WARNING", "ERROR", "CRITICAL"}:  # its own METRIC ranks above them
            warnings.append(message.record["message"])

    handle = logger.add(keep, level="WARNING", format="{message}")
    try:
        yield
    finally:
        logger.remove(handle)


@contextlib.contextmanager
def _replaced(names: Mapping[str, Any]) -> Iterator[None]:
    """Put other objects in place of what modules of the library imported under these names."""
    with contextlib.ExitStack() as stack:
        for module in [module for name, module in sorted(sys.modules.items()) if name.startswith(_PACKAGES)]:
            for name, value in names.items():
                old = module.__dict__.get(name)
                if old is not None:
                    is_module = hasattr(old, "__path__")
                    module.__dict__[name] = SimpleNamespace(**{name: value}) if is_module else value
                    stack.callback(module.__dict__.__setitem__, name, old)
        yield


@dataclass
class _Bars:
    """Makes what the library takes for progress bars: it runs through each layer's batches twice."""

    progress: Progress
    batches: int
    done: int = field(default=0)

    def bar(self, iterable: Iterable[Any] = (), *_: Any, desc: str = "", **__: Any) -> Any:
        """In place of ``tqdm(iterable, desc=…)``."""
        found = re.match(r"\(\d+/(\d+)\): ", desc or "")
        return _Bar(iterable, self if found else None, int(found[1]) * 2 * self.batches if found else 0)


@dataclass
class _Bar:
    """A bar that is not drawn."""

    iterable: Iterable[Any]
    bars: _Bars | None
    total: int

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable:
            yield item
            if self.bars is not None:
                self.bars.done += 1
                self.bars.progress(self.bars.done, self.total, "batches")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __getattr__(self, name: str) -> Callable[..., None]:
        """``update``, ``set_description``, ``set_postfix``, ``close``: nothing to see."""
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *_, **__: None
