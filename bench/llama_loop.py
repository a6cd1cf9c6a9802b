"""llama.cpp's own way to perplexity: through its C interface, call by call as in its ``perplexity.cpp``.

    python bench/llama_loop.py MODEL.gguf TEXT [CONTEXT] [CHUNKS] [THREADS]

The text is tokenized once with what the model adds in front; chunks of CONTEXT tokens, several in one batch of 2,048;
the first token of each becomes the begin token where the model adds one; logits are asked for from the middle on, and
what they say of the tokens behind it is scored. What the program does in C++ with the logits, numpy does here.
"""

from __future__ import annotations

import ctypes
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import torch

_BATCH = 2048  # llama-perplexity's default for -b


@dataclass(frozen=True)
class Found:
    """nll of each chunk in nats, tokens scored in each, and the seconds that all chunks took."""

    nll: list[float]
    scored: int
    seconds: float

    @property
    def perplexity(self) -> float:
        """exp of the mean nll of all tokens scored."""
        return math.exp(math.fsum(self.nll) / (self.scored * len(self.nll)))


def perplexity(model: Path, text: str, *, context: int = 512, chunks: int | None = None, threads: int = 2) -> Found:
    """llama-perplexity's figures of a text."""
    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers = 0
    loaded = llama_cpp.llama_model_load_from_file(str(model).encode(), settings)
    sequences = max(1, _BATCH // context)
    opened = llama_cpp.llama_init_from_model(loaded, _settings(context * sequences, sequences, threads))
    try:
        return _run(loaded, opened, text, (context, sequences, chunks))
    finally:
        llama_cpp.llama_free(opened)
        llama_cpp.llama_model_free(loaded)


def _settings(cells: int, sequences: int, threads: int) -> Any:
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_seq_max = cells, sequences
    settings.n_batch, settings.n_ubatch = _BATCH, 512
    settings.n_threads = settings.n_threads_batch = threads
    return settings


def _run(model: Any, opened: Any, text: str, how: tuple[int, int, int | None]) -> Found:
    context, sequences, chunks = how
    vocab = llama_cpp.llama_model_get_vocab(model)
    tokens = _tokens(vocab, text)
    count = len(tokens) // context if chunks is None else min(chunks, len(tokens) // context)
    batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
    nll: list[float] = []
    start = time.perf_counter()
    for first in range(0, count, sequences):
        together = range(first, min(first + sequences, count))
        rows = _decode(opened, vocab, batch, [tokens[at * context : (at + 1) * context] for at in together])
        for rows_of, at in zip(np.split(rows, len(together)), together, strict=True):
            nll.append(_nll(rows_of[:-1], tokens[at * context + context // 2 + 1 : (at + 1) * context]))
    seconds = time.perf_counter() - start
    llama_cpp.llama_batch_free(batch)
    return Found(nll, context - context // 2 - 1, seconds)


def _tokens(vocab: Any, text: str) -> list[int]:
    data = text.encode("utf-8")
    ids = (llama_cpp.llama_token * (len(data) + 8))()
    add_special, parse_special = True, False
    count = llama_cpp.llama_tokenize(vocab, data, len(data), ids, len(ids), add_special, parse_special)
    return list(ids[:count])


def _decode(opened: Any, vocab: Any, batch: Any, texts: list[list[int]]) -> npt.NDArray[np.float32]:
    data_too = True
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(opened), data_too)
    at = 0
    for sequence, text in enumerate(texts):
        begin = llama_cpp.llama_vocab_bos(vocab) if llama_cpp.llama_vocab_get_add_bos(vocab) else text[0]
        for position, token in enumerate([begin, *text[1:]]):
            batch.token[at], batch.pos[at] = token, position
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
            batch.logits[at] = position >= len(text) // 2
            at += 1
    batch.n_tokens = at
    if llama_cpp.llama_decode(opened, batch):
        raise SystemExit("llama.cpp could not decode")
    kept = sum(len(text) - len(text) // 2 for text in texts)
    shape = (kept, int(llama_cpp.llama_vocab_n_tokens(vocab)))
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits(opened), shape=shape)


def _nll(rows: npt.NDArray[np.float32], targets: list[int]) -> float:
    logits = torch.from_numpy(rows)
    said = logits.gather(-1, torch.tensor(targets)[:, None])[:, 0].double() - logits.logsumexp(-1).double()
    return -float(said.sum())


def main() -> None:
    """Print what was found."""
    model, text, *numbers = sys.argv[1:]
    context, chunks, threads = (int(value) for value in [*numbers, "512", "0", "2"][:3])
    _silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(_silence, ctypes.c_void_p(0))
    words = Path(text).read_text(encoding="utf-8")
    found = perplexity(Path(model), words, context=context, chunks=chunks or None, threads=threads)
    tokens = context * len(found.nll)
    print(f"perplexity {found.perplexity:.4f} over {len(found.nll)} chunks of {context}")
    print(f"{tokens / found.seconds:.0f} tokens/s, {found.seconds:.2f} s on {threads} threads")


if __name__ == "__main__":
    main()
