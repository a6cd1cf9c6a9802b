"""What a candidate takes: its size, and its speed on its own runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ingot.core.stage import Metric
from ingot.kit.backends import Backend, zeros_of
from ingot.kit.runtime.timing import timed


def size(backend: Backend) -> dict[str, Metric]:
    """Bytes of the weight files, parameters, bits per weight, and the share of zeros where weights are numbers."""
    found = {
        "bytes": Metric(backend.bytes, "B", "size of the weight files"),
        "parameters": Metric(backend.parameters, "parameters", "elements of all weights, shared ones once"),
        "bits_per_weight": Metric(
            8 * backend.bytes / backend.parameters, "bits/parameter", "bits of the weight files by parameters"
        ),
    }
    zeros, of = zeros_of(backend) or (0, 0)
    if of:
        how = "share of the linear layers' weights that are zero as they are computed, the output layer left out"
        found["sparsity"] = Metric(zeros / of, "1", how)
    return found


def speed(backend: Backend, prompt: Sequence[int], generated: int, repeats: int) -> dict[str, Metric]:
    """Tokens a second of reading a prompt and of generating, apart; medians of ``repeats`` after one warm-up."""
    timed(backend, prompt, min(generated, 4))  # the warm-up of generation needs the first steps only
    runs = [timed(backend, prompt, generated) for _ in range(repeats)]
    prompts = [len(prompt) / run.first for run in runs]
    generations = [generated / sum(run.steps) for run in runs]
    how = f"batch 1, {backend.runtime}; median of the repeats, one warm-up left out"
    return {
        "prompt_tokens_per_second": Metric(
            float(np.median(prompts)), "tokens/s", f"a prompt of {len(prompt)} tokens read at once, {how}", repeats
        ),
        "generation_tokens_per_second": Metric(
            float(np.median(generations)), "tokens/s", f"{generated} tokens one by one, greedy, {how}", repeats
        ),
    }
