"""GGUF files, run by llama.cpp with its own tokenizer and the chat template of the file."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch
from gguf import GGUFReader, LlamaFileType

from ingot.errors import RefusedInput
from ingot.kit import chat
from ingot.kit.backends import SEGMENT, segments


class GgufBackend:
    """A GGUF in llama.cpp on the CPU, with the settings that its users get (a KV cache in F16)."""

    container = "gguf"
    runtime = "llama.cpp on the CPU"

    def __init__(self, path: Path, *, context: int, threads: int) -> None:
        facts = GGUFReader(path)
        self.precision = precision(facts)
        self.bytes = path.stat().st_size
        self.parameters = sum(int(tensor.n_elements) for tensor in facts.tensors)
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        self._model = _open_model(path)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._width = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._context = _open_context(self._model, context, threads)
        self._batch = llama_cpp.llama_batch_init(SEGMENT, 0, 1)
        self._position = 0
        self.context = int(llama_cpp.llama_model_n_ctx_train(self._model))
        self.template = self._template(facts)

    def __del__(self) -> None:
        if hasattr(self, "_batch"):
            llama_cpp.llama_batch_free(self._batch)
        if hasattr(self, "_context"):
            llama_cpp.llama_free(self._context)
        if hasattr(self, "_model"):
            llama_cpp.llama_model_free(self._model)

    def encode(self, row: chat.Row, max_length: int) -> chat.Example:
        """The row's token ids by llama.cpp's tokenizer, of the text that the file's template renders."""
        prompt, full = chat.render(row, self.template)
        special = chat.special_tokens(row)
        return chat.encode_with(lambda text: self._tokenize(text, special=special), prompt, full, max_length=max_length)

    def logits(self, ids: Sequence[int], first: int) -> Iterator[torch.Tensor]:
        """Logits that predict ``ids[first:]``; only those positions go through the output layer."""
        self._forget()
        for start, stop, kept in segments(len(ids), first):
            rows = self._decode(ids[start:stop], kept)
            if kept:
                yield torch.from_numpy(rows)

    def prefill(self, ids: Sequence[int]) -> int:
        """Read a prompt into an empty cache; the likeliest next token."""
        self._forget()
        token = 0
        for start in range(0, len(ids), SEGMENT):
            part = ids[start : start + SEGMENT]
            token = int(self._decode(part, range(len(part) - 1, len(part)))[-1].argmax())
        return token

    def step(self, token: int) -> int:
        """Append one token; the likeliest next one."""
        return int(self._decode([token], range(1))[-1].argmax())

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)  # noqa: FBT003 - a C call
        self._position = 0

    def _decode(self, ids: Sequence[int], kept: range) -> Any:
        batch = self._batch
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index] = token
            batch.pos[index] = self._position + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index in kept
        code = llama_cpp.llama_decode(self._context, batch)
        if code:
            raise RefusedInput("E-EVAL-LLAMA", f"llama.cpp could not read {len(ids)} tokens (code {code})")
        self._position += len(ids)
        if not kept:
            return None
        found = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(found, shape=(len(kept) * self._width,)).reshape(len(kept), self._width).copy()

    def _tokenize(self, text: str, *, special: bool) -> list[int]:
        data = text.encode("utf-8")
        room = len(data) + 8
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, room, special, True)  # noqa: FBT003 - a C call
        if count < 0:
            raise RefusedInput("E-EVAL-LLAMA", "llama.cpp could not tokenize a document")
        return list(ids[:count])

    def _template(self, facts: GGUFReader) -> chat.Template:
        field = facts.get_field("tokenizer.chat_template")
        source = None if field is None else str(field.contents())
        return chat.Template(source, *(self._text(facts, f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")))

    def _text(self, facts: GGUFReader, key: str) -> str:
        field = facts.get_field(key)
        if field is None or not 0 <= int(field.contents()) < self._width:
            return ""
        return bytes(llama_cpp.llama_vocab_get_text(self._vocab, int(field.contents()))).decode("utf-8")


def _open_model(path: Path) -> Any:
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    if model is None:
        raise RefusedInput("E-EVAL-LLAMA", "llama.cpp does not open the GGUF")
    return model


def _open_context(model: Any, context: int, threads: int) -> Any:
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = context
    parameters.n_batch = parameters.n_ubatch = SEGMENT
    parameters.n_threads = parameters.n_threads_batch = threads
    opened = llama_cpp.llama_init_from_model(model, parameters)
    if opened is None:
        raise RefusedInput("E-EVAL-LLAMA", f"llama.cpp does not open a context of {context} tokens")
    return opened


def precision(facts: GGUFReader) -> str:
    """The file's own name of its types (``Q4_K_M``), or the tensor type that holds the most bytes."""
    field = facts.get_field("general.file_type")
    if field is not None:
        try:
            return str(LlamaFileType(int(field.contents())).name).removeprefix("MOSTLY_").removeprefix("ALL_")
        except ValueError:  # a type newer than the reader: the tensors tell
            pass
    sizes: Counter[str] = Counter()
    for tensor in facts.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_bytes)
    return max(sorted(sizes), key=sizes.__getitem__, default="")
