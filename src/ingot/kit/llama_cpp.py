"""llama.cpp through its C interface: open a GGUF, tokenize, logits, greedy tokens.

Its log goes to stderr from warnings up. One batch carries every token of a document, the context is reused and only
emptied in between, and logits are kept only where they are asked for.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import llama_cpp
import numpy as np
import numpy.typing as npt

from ingot.errors import IngotError, StageFailed
from ingot.kit.chat import Template
from ingot.kit.gguf.reader import parts_of, read_gguf

_BATCH = 512
_WARN, _ERROR, _CONTINUED = 3, 4, 5  # enum ggml_log_level


class _Log:
    """Receives llama.cpp's log: warnings and errors to stderr, the last of them kept for the error message."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.silent = False
        self._level = 0
        self.callback = llama_cpp.llama_log_callback(self._write)

    def _write(self, level: int, message: bytes, _data: object) -> None:
        self._level = self._level if level == _CONTINUED else level
        if self._level in {_WARN, _ERROR}:
            line = message.decode("utf-8", "replace")
            if not self.silent:
                sys.stderr.write(line)
            self.lines = [*self.lines, line.strip()][-5:]

    def install(self) -> None:
        self.lines = []
        llama_cpp.llama_log_set(self.callback, ctypes.c_void_p(0))


_LOG = _Log()


def silence() -> None:
    """Write nothing of llama.cpp's log any more; error messages hold the end of it all the same."""
    _LOG.silent = True


class Model:
    """An open GGUF with one context. Use as a context manager, or call ``close``."""

    def __init__(self, path: Path, *, context: int, threads: int, repack: bool = True) -> None:
        """See ``open_model``."""
        # The C++ parser is not made for files that lie: nothing reaches it unchecked.
        for part in parts_of(path):
            read_gguf(part)
        _LOG.install()
        self._model: Any = None
        self._context: Any = None
        self._batch: Any = None
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        settings.use_extra_bufts = repack
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if self._model is None:
            raise _failed("llama.cpp does not open the file")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        self.trained_context = int(llama_cpp.llama_model_n_ctx_train(self._model))
        self._step = min(context, _BATCH)
        self._context = self._open_context(context, threads)
        self.context = int(llama_cpp.llama_n_ctx(self._context))
        self._batch = llama_cpp.llama_batch_init(self._step, 0, 1)
        self._position = 0

    def _settings(self, context: int, threads: int) -> Any:
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = context
        settings.n_batch = settings.n_ubatch = self._step
        settings.n_threads = settings.n_threads_batch = threads
        return settings

    def _open_context(self, context: int, threads: int) -> Any:
        opened = llama_cpp.llama_init_from_model(self._model, self._settings(context, threads))
        if opened is None:
            self.close()
            raise _failed(f"llama.cpp does not open a context of {context} tokens")
        return opened

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back; further calls are errors."""
        if self._batch is not None:
            llama_cpp.llama_batch_free(self._batch)
        if self._context is not None:
            llama_cpp.llama_free(self._context)
        if self._model is not None:
            llama_cpp.llama_model_free(self._model)
        self._batch = self._context = self._model = None

    def metadata(self, key: str) -> str | None:
        """A metadata field as llama.cpp prints it; None when the file has none of that key."""
        room = 256
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = int(llama_cpp.llama_model_meta_val_str(self._model, key.encode(), buffer, room))
            if length < room:
                return None if length < 0 else buffer.value.decode("utf-8")
            room = length + 1

    @property
    def template(self) -> Template:
        """The chat template of the file with its begin and end token."""
        ends = (llama_cpp.llama_vocab_bos(self._vocab), llama_cpp.llama_vocab_eos(self._vocab))
        texts = [llama_cpp.llama_vocab_get_text(self._vocab, token).decode() if token >= 0 else "" for token in ends]
        return Template(self.metadata("tokenizer.chat_template"), *texts)

    def tokenize(self, text: str, *, special: bool = True, bos: bool = False) -> list[int]:
        """Token ids; ``special`` reads ``<|…|>`` as tokens, ``bos`` adds what the file says to add around a text."""
        data = text.encode("utf-8")
        room = len(data) + 8
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, room, bos, special)
        if count < 0:
            raise _failed("llama.cpp could not tokenize a text")
        return list(ids[:count])

    def logits(self, ids: Sequence[int], *, last: bool = False) -> npt.NDArray[np.float32]:
        """Logits of a fresh document, float32 (n, vocabulary), one row a token; with ``last`` (1, vocabulary)."""
        data_too = True
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), data_too)
        self._position = 0
        rows = np.empty((1 if last else len(ids), self.vocabulary), np.float32)
        for start in range(0, len(ids), self._step):
            part = ids[start : start + self._step]
            found = self._decode(part, range(len(part) - 1, len(part)) if last else range(len(part)))
            rows[0 if last else start :][: len(found)] = found
        return rows

    def greedy(self, ids: Sequence[int], count: int) -> tuple[list[int], bool]:
        """The ``count`` likeliest next tokens, one after the other, and whether all logits were finite."""
        row = self.logits(ids, last=True)
        tokens, finite = [], True
        for _ in range(count):
            finite = finite and bool(np.isfinite(row).all())
            tokens.append(int(row.argmax()))
            row = self._decode(tokens[-1:], range(1))
        return tokens, finite

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        data, special = b"", False
        for token in ids:
            buffer = ctypes.create_string_buffer(256)
            length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, 256, 0, special)
            data += buffer.raw[: max(0, length)]
        return data.decode("utf-8", "replace")

    def piece(self, token: int) -> tuple[bytes, bool]:
        """The bytes of a token, and whether it is one that no text has: a control token, or none at all."""
        attributes = int(llama_cpp.llama_vocab_get_attr(self._vocab, token))
        special, room = True, 256
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = int(llama_cpp.llama_token_to_piece(self._vocab, token, buffer, room, 0, special))
            if length >= 0:
                break
            room = -length
        unsaid = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        return buffer.raw[:length], bool(attributes & (unsaid | llama_cpp.LLAMA_TOKEN_ATTR_UNUSED))

    def ends_turn(self, token: int) -> bool:
        """Whether generation stops at this token."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def _decode(self, ids: Sequence[int], kept: range) -> npt.NDArray[np.float32]:
        if self._position + len(ids) > self.context:
            raise _failed(f"{self._position + len(ids)} tokens do not fit the context of {self.context}")
        batch = self._batch
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index] = token
            batch.pos[index] = self._position + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index in kept
        if code := llama_cpp.llama_decode(self._context, batch):
            raise _failed(f"llama.cpp could not read {len(ids)} tokens (code {code})")
        self._position += len(ids)
        # the buffer is llama.cpp's own and the next call overwrites it
        shape = (len(kept), self.vocabulary)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), shape=shape).copy()


def open_model(path: Path, *, context: int = 512, threads: int = 1, repack: bool = True) -> Model:
    """Open a GGUF on the CPU with room for ``context`` tokens.

    With ``repack`` llama.cpp may copy the weights into a form that its kernels read faster; without it memory holds
    the mapped file alone.
    RefusedInput (E-GGUF-*) for an unsound file, StageFailed (E-LLAMA-CPP) when llama.cpp refuses it.
    """
    return Model(path, context=context, threads=threads, repack=repack)


def token_ids(model: Model, text: str, *, special: bool = True, bos: bool = False) -> list[int]:
    """Token ids of a text; see ``Model.tokenize``."""
    return model.tokenize(text, special=special, bos=bos)


def logits(model: Model, ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """Logits of every position of a fresh document; see ``Model.logits``."""
    return model.logits(ids)


def quantize(source: Path, target: Path, file_type: int, *, threads: int) -> None:
    """llama.cpp's own quantizer on an unquantized file. StageFailed (E-LLAMA-CPP) when it refuses."""
    _LOG.install()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread, settings.ftype = threads, file_type
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings)):
        raise _failed("llama.cpp's quantizer refuses the file")


def _failed(what: str) -> IngotError:
    return StageFailed("E-LLAMA-CPP", what, facts=tuple(_LOG.lines))
