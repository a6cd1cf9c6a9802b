"""Every random state that a training may draw from, as tensors and plain data."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed(number: int) -> None:
    """Seed them all."""
    random.seed(number)
    np.random.seed(number % (1 << 32))
    torch.manual_seed(number)


def taken() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The states: tensors by name, and what is no tensor."""
    version, words, gauss = random.getstate()
    name, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        tensors |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    plain = {"python": [version, gauss], "numpy": [str(name), int(place), int(has_gauss), float(cached)]}
    return tensors, plain


def put_back(tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]) -> None:
    """Set them to what ``taken`` gave."""
    version, gauss = plain["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    name, place, has_gauss, cached = plain["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), place, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    states = [tensors[f"cuda.{index}"] for index in range(sum(name.startswith("cuda.") for name in tensors))]
    if states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states)
