"""The tokenizer of a Hugging Face folder as GGUF fields.

Byte-level BPE becomes ``gpt2`` with the name of its pre-tokenizer; SentencePiece (tokenizer.model, or a tokenizer.json
made from one) becomes ``llama``. What cannot be said in GGUF is refused; whether llama.cpp then gives the same ids is
checked on the written file (``gguf.check``). The fields are those of llama.cpp's own converter (``_set_vocab_gpt2``,
``_create_vocab_sentencepiece`` and ``SpecialVocab`` in
https://github.com/ggml-org/llama.cpp/tree/master/conversion); docs/gguf-tokenizers.md lists the differences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ingot.kit.chat import Template
from ingot.kit.gguf.bpe_vocab import bpe_fields
from ingot.kit.gguf.pretokenizers import byte_level_steps
from ingot.kit.gguf.spm_vocab import spm_fields
from ingot.kit.gguf.tokenizer_folder import LLAMAS, TokenizerFolder, refuse
from ingot.kit.gguf.writer import Field, flag, text, u32


def vocabulary_fields(folder: Path, config: Mapping[str, Any], tokenizer: Any) -> list[Field]:
    """All ``tokenizer.*`` fields. ``tokenizer`` is transformers' own, loaded from the same folder.

    A Phi-3 gets ``general.name`` too, by which llama.cpp knows how its special tokens treat spaces.
    RefusedInput: E-GGUF-TOKENIZER when there is no tokenizer or it is of a kind that GGUF cannot say.
    """
    here = TokenizerFolder.read(folder, config)
    steps = byte_level_steps(here.data.get("pre_tokenizer"))
    fields = spm_fields(here) if steps is None else bpe_fields(here, steps)
    fields += [u32(key, value) for key, value in special_ids(config, tokenizer) if value < here.size]
    fields += _code_llama(here)
    fields += _added_around(tokenizer)
    source = Template.of(tokenizer).source
    return [*fields, *([text("tokenizer.chat_template", source)] if source else [])]


def _code_llama(here: TokenizerFolder) -> list[Field]:
    """The ids for filling in the middle, which no file of a CodeLlama names; its size tells it."""
    if here.architecture not in LLAMAS or here.size != 32016:
        return []
    ids = {"prefix": 32007, "suffix": 32008, "middle": 32009, "eot": 32010}
    return [u32(f"tokenizer.ggml.{role}_token_id", index) for role, index in ids.items()]


def special_ids(config: Mapping[str, Any], tokenizer: Any) -> list[tuple[str, int]]:
    """(field, id) of the special tokens: the tokenizer's, else those of config.json."""
    found = []
    for role, field in (
        ("bos", "bos"),
        ("eos", "eos"),
        ("unk", "unknown"),
        ("sep", "seperator"),  # llama.cpp's spelling
        ("pad", "padding"),
        ("cls", "cls"),
        ("mask", "mask"),
    ):
        value = getattr(tokenizer, f"{role}_token_id", None)
        if value is None:
            value = config.get(f"{role}_token_id")
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, int):
            found.append((f"tokenizer.ggml.{field}_token_id", value))
    return found


def _added_around(tokenizer: Any) -> Iterator[Field]:
    """Whether the tokenizer puts a begin or end token around a text, observed rather than read from its settings."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = len(whole) - len(plain)
    first = whole[:1] == [tokenizer.bos_token_id] and start > 0 and whole[1 : 1 + len(plain)] == plain
    last = whole[-1:] == [tokenizer.eos_token_id] and start - first > 0
    if whole != ([tokenizer.bos_token_id] * first + plain + [tokenizer.eos_token_id] * last):
        raise refuse("it adds other tokens than one begin and one end token to a text")
    yield flag("tokenizer.ggml.add_bos_token", value=first)
    yield flag("tokenizer.ggml.add_eos_token", value=last)
