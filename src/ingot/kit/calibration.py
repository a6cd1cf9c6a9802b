"""Calibration texts: the documents of a data set that a model reads before its weights are pruned or quantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ingot.errors import RefusedInput
from ingot.kit import chat
from ingot.kit.train.documents import row_id


def read_texts(folder: Path, tokenizer: Any, *, documents: int, max_length: int) -> list[list[int]]:
    """Token ids of the first ``documents`` training rows in the order of their ids, each cut to ``max_length``.

    RefusedInput (E-DATASET-EMPTY) when none has a token.
    """
    rows = sorted(chat.read_rows(folder, "train"), key=row_id)[:documents]
    texts = [ids for row in rows if (ids := chat.encode(tokenizer, row, max_length=max_length).ids)]
    if not texts:
        raise RefusedInput(
            "E-DATASET-EMPTY",
            "the calibration data set gives no tokens",
            facts=[f"{len(rows)} rows in its train split, none with a token" if rows else "train.jsonl is empty"],
            hint="loosen the filters or the split of the data set",
        )
    return texts


def watched(
    model: Any, texts: Sequence[Sequence[int]], hooks: Sequence[Any], report: Callable[[int, int], None]
) -> int:
    """Have a model read texts, one a pass, gradients off; ``hooks`` are handles of what watches it, removed at the end.

    ``report`` gets (texts, tokens) done. Returns the number of tokens.
    """
    tokens = 0
    try:
        for done, ids in enumerate(texts, 1):
            with torch.no_grad():
                model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False, logits_to_keep=1)
            tokens += len(ids)
            report(done, tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return tokens
