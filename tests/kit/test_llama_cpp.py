"""llama.cpp's failures become one clear error with its own words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggufkit import raw_gguf
from ingot.errors import RefusedInput, StageFailed
from ingot.kit.llama_cpp import logits, open_model


def test_a_file_that_is_no_gguf_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"not a model" * 10)
    with pytest.raises(RefusedInput) as refused:
        open_model(path)
    assert refused.value.code == "E-GGUF-MAGIC"


def test_what_llama_cpp_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(raw_gguf())
    with pytest.raises(StageFailed, match="does not open") as caught:
        open_model(path)
    assert caught.value.code == "E-LLAMA-CPP"
    assert caught.value.facts


def test_each_document_starts_afresh(stories_gguf: Path) -> None:
    """Documents longer than a batch too: logits do not depend on what came before."""
    rng = np.random.default_rng(0)
    long, short = rng.integers(3, 500, 700).tolist(), [1, 403, 407]
    with open_model(stories_gguf, context=768, threads=2) as model:
        first = logits(model, long)
        alone = logits(model, short)
        assert first.shape == (700, model.vocabulary)
        np.testing.assert_array_equal(logits(model, long), first)
        np.testing.assert_allclose(logits(model, long[:40]), first[:40], atol=0.05)  # keys and values are F16
    with open_model(stories_gguf, context=768, threads=2) as model:
        np.testing.assert_array_equal(logits(model, short), alone)


def test_a_document_beyond_the_context_is_an_error(stories_gguf: Path) -> None:
    with (
        open_model(stories_gguf, context=256) as model,
        pytest.raises(StageFailed, match="do not fit the context of 256"),
    ):
        logits(model, [5] * 600)


def test_a_token_beyond_the_vocabulary_is_an_error(stories_gguf: Path) -> None:
    with open_model(stories_gguf, context=256) as model, pytest.raises(StageFailed, match="could not read 2 tokens"):
        logits(model, [5, 512])


def test_a_story_is_continued(stories_gguf: Path) -> None:
    with open_model(stories_gguf, context=128) as model:
        tokens, finite = model.greedy(model.tokenize("Once upon a time", bos=True), 16)
        assert finite
        assert "there was a little" in model.text(tokens)
