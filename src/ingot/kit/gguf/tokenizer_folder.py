"""What a Hugging Face folder says of its tokenizer, as far as it decides what a GGUF holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.errors import RefusedInput
from ingot.kit.hf import read_json_file

SPACE = "▁"
#: The classes for which llama.cpp's converter takes ``add_prefix_space`` from tokenizer_config.json.
LLAMAS = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "SmolLM3ForCausalLM"})


@dataclass(frozen=True)
class Added:
    """A token added to the vocabulary: its id, its text, whether it is special, whether it swallows spaces after it."""

    index: int
    content: str
    special: bool
    rstrip: bool = False

    @property
    def looks_special(self) -> bool:
        """Special, or one that some models forget to mark so (the rule of llama.cpp's converter)."""
        text = self.content
        return (
            self.special
            or text in {"<pad>", "<mask>", "<2mass>", "[@BOS@]"}
            or (text.startswith("<|") and text.endswith("|>"))
            or (text.startswith("<｜") and text.endswith("｜>"))
            or (text.startswith("<unused") and text.endswith(">"))
        )


@dataclass(frozen=True)
class TokenizerFolder:
    """tokenizer.json as ``data``, tokenizer_config.json as ``settings`` (empty without one), and config.json."""

    path: Path
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    config: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, config: Mapping[str, Any]) -> TokenizerFolder:
        """Read a folder. RefusedInput (E-GGUF-TOKENIZER) without tokenizer.json, or for another model than BPE."""
        whole, side = path / "tokenizer.json", path / "tokenizer_config.json"
        if not whole.is_file():
            raise refuse("the folder holds no tokenizer.json")
        here = cls(path, read_json_file(whole), read_json_file(side) if side.is_file() else {}, config)
        if here.model.get("type", "BPE") != "BPE":
            raise refuse(f"its model is {here.model.get('type')}", "supported: BPE, byte-level or SentencePiece")
        return here

    @property
    def model(self) -> Mapping[str, Any]:
        """The ``model`` of tokenizer.json."""
        return self.data.get("model") or {}

    @property
    def size(self) -> int:
        """How many rows the embedding has."""
        return int(self.config["vocab_size"])

    @property
    def architecture(self) -> str:
        """The class that config.json names."""
        return str((self.config.get("architectures") or [""])[0])

    def added(self) -> Iterator[Added]:
        """The added tokens of tokenizer.json."""
        for item in self.data.get("added_tokens") or []:
            yield Added(int(item["id"]), str(item["content"]), bool(item.get("special")), bool(item.get("rstrip")))

    def normalizers(self) -> list[Mapping[str, Any]]:
        """The steps that rewrite a text before it is split."""
        normalizer = self.data.get("normalizer") or {}
        return [item for item in normalizer.get("normalizers", [normalizer]) if item]

    def refuse_normalizers_but(self, allowed: frozenset[str]) -> None:
        """RefusedInput (E-GGUF-TOKENIZER) for a step that llama.cpp does not have."""
        for item in self.normalizers():
            kind = item.get("type")
            if kind not in allowed:
                what = "a precompiled table" if kind == "Precompiled" else str(kind)
                raise refuse(f"it rewrites text by {what}", f"supported: {', '.join(sorted(allowed))}")

    def fits(self, index: int, what: str) -> int:
        """The id. RefusedInput (E-GGUF-TOKENIZER) where the embedding has no row for it."""
        if not 0 <= index < self.size:
            raise refuse(f"{what} {index} lies beyond the model's vocabulary of {self.size}")
        return index


def filler(index: int) -> str:
    """The text that llama.cpp's converter gives an id that no token has."""
    return f"[PAD{index}]"


def refuse(what: str, *facts: str) -> RefusedInput:
    """The error for a tokenizer that GGUF cannot say."""
    return RefusedInput("E-GGUF-TOKENIZER", f"the tokenizer cannot be written to a GGUF: {what}", facts=facts)
