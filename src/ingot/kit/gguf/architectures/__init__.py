"""Which architectures GGUF files are written and read for, one description each."""

from __future__ import annotations

from ingot.errors import RefusedInput
from ingot.kit.gguf.architectures.gemma import GEMMA2, GEMMA3
from ingot.kit.gguf.architectures.gpt2 import GPT2
from ingot.kit.gguf.architectures.llama import LLAMA, MISTRAL, SMOLLM3
from ingot.kit.gguf.architectures.phi3 import PHI3
from ingot.kit.gguf.architectures.qwen import QWEN2, QWEN3
from ingot.kit.gguf.architectures.words import Architecture, Config

#: Every architecture. Where two have the same name in llama.cpp, a GGUF is read as the first.
ALL: tuple[Architecture, ...] = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, PHI3, SMOLLM3, GPT2)


def architecture_of(config: Config) -> Architecture:
    """The architecture that config.json names. RefusedInput (E-GGUF-ARCH), with the list, for any other."""
    names = list(config.get("architectures") or [])
    kind = config.get("model_type")
    for each in ALL:
        if (names == [each.model] and kind in {None, each.model_type}) or (not names and kind == each.model_type):
            return each
    said = ", ".join(map(str, names)) or f"model_type {kind}"
    raise RefusedInput(
        "E-GGUF-ARCH",
        f"the architecture {said} is not supported",
        facts=[f"supported: {', '.join(sorted(each.model for each in ALL))}"]
        + ([f"model_type is {kind!r}"] if names and kind else []),
        hint="'converter: {llama_cpp: PATH}' uses the converter of a llama.cpp checkout",
    )


def named(name: object) -> Architecture | None:
    """The architecture that llama.cpp calls so."""
    return next((each for each in ALL if each.name == name), None)
