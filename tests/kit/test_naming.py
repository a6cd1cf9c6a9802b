"""How a spec names modules: the same in prune, quantize and full."""

from __future__ import annotations

import pytest

from ingot.kit.naming import means

NAME = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    "pattern",
    [NAME, "q_proj", "self_attn.q_proj", "layers.1", "self_attn", "*_attn.q_*", "*.layers.1.*", "layers.*.q_proj", "*"],
)
def test_words_side_by_side_and_patterns_mean_it(pattern: str) -> None:
    assert means(pattern, NAME)


@pytest.mark.parametrize(
    "pattern",
    ["proj", "attn.q_proj", "layers.11", "*.layers.11.*", "layers.q_proj", "q_proj.self_attn", "", "layers*1"],
)
def test_parts_of_words_and_other_orders_do_not(pattern: str) -> None:
    assert not means(pattern, NAME)
