"""The real vocabularies of llama.cpp's source: both directions, and llama.cpp's own ids."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ingot.kit.gguf.reader import read_gguf
from ingot.kit.gguf.tokenizer import write_tokenizer
from ingot.kit.gguf.vocab import vocabulary_fields
from ingot.kit.gguf.writer import Field, text, u32, write_gguf
from ingot.kit.hf import load_tokenizer
from llamasource import vocabulary

#: The class that config.json of the model names, for the vocabularies of the architectures that ingot writes.
CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}


def metadata(name: str) -> Mapping[str, Any]:
    """The fields of ``ggml-vocab-NAME.gguf``."""
    return read_gguf(vocabulary(name)).metadata


def expected(name: str) -> list[tuple[str, list[int]]]:
    """The texts and ids that stand beside a vocabulary."""
    path = vocabulary(name)
    inputs = path.with_name(path.name + ".inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    outputs = path.with_name(path.name + ".out").read_text(encoding="utf-8").splitlines()
    ids = [[int(word) for word in line.split()] for line in outputs]
    return list(zip(inputs[: len(ids)], ids, strict=True))


def folder_of(fields: Mapping[str, Any], out: Path) -> Path:
    """The Hugging Face folder of a GGUF's tokenizer, with what config.json says of it."""
    out.mkdir()
    write_tokenizer(fields, out, max_length=2048)
    size = len(fields["tokenizer.ggml.tokens"])
    kind = CLASSES.get(str(fields["general.architecture"]), "OtherForCausalLM")
    (out / "config.json").write_text(json.dumps({"vocab_size": size, "architectures": [kind]}))
    return out


def written(folder: Path, path: Path) -> Path:
    """A GGUF of a folder's tokenizer without any tensor."""
    config = json.loads((folder / "config.json").read_text())
    fields = vocabulary_fields(folder, config, load_tokenizer(folder))
    return write_fields(fields, path)


def write_fields(fields: Iterable[Field], path: Path) -> Path:
    """A GGUF of fields of a vocabulary, with the sizes without which llama.cpp opens none."""
    sizes = [u32(f"llama.{name}", 32) for name in ("context_length", "embedding_length", "block_count")]
    write_gguf(path, [text("general.architecture", "llama"), *sizes, *fields], [], iter(()))
    return path


def plain(value: Any) -> Any:
    """A field's value with equality."""
    return value.tolist() if isinstance(value, np.ndarray) else value


class Vocabulary:
    """A vocabulary as llama.cpp reads it."""

    def __init__(self, model: Any) -> None:
        import llama_cpp

        self._vocab = llama_cpp.llama_model_get_vocab(model)

    def ids(self, words: str, *, add: bool = False, special: bool = False) -> list[int]:
        """Token ids of a text."""
        import llama_cpp

        data = words.encode("utf-8")
        room = len(data) + 8
        found = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), found, room, add, special)
        assert count >= 0
        return list(found[:count])


@contextmanager
def opened(path: Path) -> Iterator[Vocabulary]:
    """Open the vocabulary of a GGUF with llama.cpp."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
    assert model is not None, f"llama.cpp does not open {path.name}"
    try:
        yield Vocabulary(model)
    finally:
        llama_cpp.llama_model_free(model)
        llama_cpp.llama_log_set(ctypes.cast(ctypes.c_void_p(0), llama_cpp.llama_log_callback), ctypes.c_void_p(0))


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """What differs between the ``tokenizer.*`` fields: key → (theirs, ours); long lists as {place: pair}."""
    found: dict[str, Any] = {}
    for key in sorted(key for key in {*theirs, *ours} if key.startswith("tokenizer.")):
        left, right = plain(theirs.get(key)), plain(ours.get(key))
        if left == right:
            continue
        if isinstance(left, Sequence) and isinstance(right, Sequence) and len(left) == len(right) > 100:
            pairs = zip(left, right, strict=True)
            found[key] = {place: pair for place, pair in enumerate(pairs) if pair[0] != pair[1]}
        else:
            found[key] = (left, right)
    return found
