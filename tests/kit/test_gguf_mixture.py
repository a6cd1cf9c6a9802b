"""The type of every tensor is the one that ``llama_model_quantize`` gives it, and what cannot be is refused by name."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from ingot.errors import RefusedInput
from ingot.kit.gguf import mixture
from ingot.kit.gguf.mixture import ModelFacts, Tensor, Wish, choose, llama_order
from ingot.kit.gguf.types import FILE_TYPES, PLAIN
from quantref import random_imatrix, random_weights, skeleton, types, write

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3", "gpt2")
OVERRIDES = (("attn_(q|k)", "Q8_0"), (r"blk\.1\.ffn_down", "F16"), ("ffn_down", "Q3_K"), ("ffn_down", "Q2_K"))


def _differing(facts: ModelFacts, tensors: list[Tensor], wishes: list[Wish], folder: Path) -> list[str]:
    """Every tensor whose type is not the reference's, over several wishes for one model."""
    source = folder / "source.gguf"
    source.unlink(missing_ok=True)
    write(source, facts, tensors, random_weights(tensors))
    matrix = random_imatrix(tensors)
    found = []
    for wish in wishes:
        try:
            mine = {name: choice.type for name, choice in choose(tensors, facts, wish).items()}
        except RefusedInput:
            with pytest.raises(RuntimeError, match="imatrix"):
                types(source, wish)
            continue
        reference = types(source, wish, matrix if wish.imatrix else None)
        assert reference.keys() == mine.keys()
        found += [f"{wish}: {name} {kind}, not {mine[name]}" for name, kind in reference.items() if kind != mine[name]]
    return found


def _wishes(imatrix: tuple[bool, ...] = (False, True)) -> list[Wish]:
    return [Wish(kind, imatrix=given) for kind in FILE_TYPES for given in imatrix]


@pytest.mark.parametrize(("heads", "kv", "tied"), [(8, 8, True), (8, 2, False), (9, 3, True)])
def test_mixtures_are_llama_cpps(tmp_path: Path, heads: int, kv: int, tied: bool) -> None:
    facts = ModelFacts("llama", 9, heads, kv)
    assert _differing(facts, skeleton(facts, tied=tied), _wishes(), tmp_path) == []


@pytest.mark.parametrize("columns", [288, 172])
def test_fall_backs_are_llama_cpps(tmp_path: Path, columns: int) -> None:
    facts = ModelFacts("llama", 3, 8, 2)
    assert _differing(facts, skeleton(facts, tied=True, columns=columns), _wishes((True,)), tmp_path) == []


@pytest.mark.parametrize("architecture", ["gpt2", "phi3"])
def test_fused_attention_counts_as_value(tmp_path: Path, architecture: str) -> None:
    facts = ModelFacts(architecture, 9, 8, 8)
    wishes = [Wish(kind, imatrix=True) for kind in ("Q4_K_M", "Q3_K_M", "IQ3_XS", "Q2_K")]
    assert _differing(facts, skeleton(facts, tied=False), wishes, tmp_path) == []


@pytest.mark.parametrize(("architecture", "heads", "kv"), [("llama", 8, 1), ("llama", 8, 8), ("qwen2", 8, 8)])
def test_a_model_of_80_layers(tmp_path: Path, architecture: str, heads: int, kv: int) -> None:
    facts = ModelFacts(architecture, 80, heads, kv)
    wishes = [Wish("Q3_K_S"), Wish("Q4_K_M")]
    assert _differing(facts, skeleton(facts, tied=False), wishes, tmp_path) == []


def test_overrides_are_llama_cpps(tmp_path: Path) -> None:
    facts = ModelFacts("llama", 8, 8, 2)
    wishes = [
        Wish(kind, overrides=overrides, embedding=embedding, output=output)
        for kind, overrides, (embedding, output) in itertools.product(
            ("Q4_K_M", "Q4_0", "F16"), ((), OVERRIDES), ((None, None), ("Q5_1", None), (None, "Q4_0"), ("F16", "Q6_K"))
        )
    ]
    for tied in (True, False):
        assert _differing(facts, skeleton(facts, tied=tied), wishes, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_mixture_of_every_architecture(tmp_path: Path, architecture: str) -> None:
    cases = itertools.product((2, 5, 9, 16), ((8, 8), (8, 2), (8, 1), (9, 3)), (True, False), (256, 288, 172))
    for layers, (heads, kv), tied, columns in cases:
        facts = ModelFacts(architecture, layers, heads, kv)
        assert _differing(facts, skeleton(facts, tied=tied, columns=columns), _wishes(), tmp_path) == []


def test_the_order_of_the_source_does_not_matter() -> None:
    facts = ModelFacts("llama", 12, 8, 8)
    tensors = skeleton(facts, tied=False)
    forward, backward = choose(tensors, facts, Wish("Q4_K_M")), choose(tensors[::-1], facts, Wish("Q4_K_M"))
    assert forward == backward
    assert {name: choice.type for name, choice in forward.items() if "attn_v" in name}["blk.10.attn_v.weight"] == "Q6_K"


@pytest.mark.parametrize("fault", ["order", "bits", "fallback"])
def test_a_broken_rule_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """The comparison with the reference has teeth: bend one rule and it names tensors."""
    facts = ModelFacts("llama", 12, 8, 8)
    if fault == "order":
        monkeypatch.setattr(mixture, "llama_order", lambda name: name)
    elif fault == "bits":
        monkeypatch.setattr(mixture, "_more_bits", lambda layer, layers: layer < layers // 8)
    else:
        monkeypatch.setattr(mixture, "_SMALLER", {})
    columns = 288 if fault == "fallback" else 256
    assert _differing(facts, skeleton(facts, tied=False, columns=columns), [Wish("Q4_K_M")], tmp_path)


@pytest.mark.parametrize(
    "kind", ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"]
)
def test_types_that_need_an_importance_matrix(kind: str) -> None:
    facts = ModelFacts("llama", 4, 8, 8)
    with pytest.raises(RefusedInput, match=f"{kind} needs an importance matrix") as caught:
        choose(skeleton(facts, tied=True), facts, Wish(kind))
    assert caught.value.code == "E-GGUF-IMATRIX"


@pytest.mark.parametrize("where", ["embedding", "output"])
def test_a_type_named_for_rows_that_cannot_have_it(where: str) -> None:
    facts = ModelFacts("llama", 1, 8, 8)
    wish = Wish("Q8_0", embedding="Q4_K") if where == "embedding" else Wish("Q8_0", output="Q4_K")
    with pytest.raises(RefusedInput, match="no whole number of blocks") as caught:
        choose(skeleton(facts, tied=False, columns=96), facts, wish)
    assert caught.value.code == "E-GGUF-ROWS"


def test_what_fell_back_is_said() -> None:
    facts = ModelFacts("llama", 1, 8, 8)
    found = choose(skeleton(facts, tied=True, columns=96), facts, Wish("Q4_K_S"))
    assert {c.wanted for c in found.values() if c.fell_back} == {"Q6_K", "Q5_K", "Q4_K"}
    assert not found["blk.0.attn_norm.weight"].fell_back
    for kind in PLAIN:
        assert not any(c.fell_back for c in choose(skeleton(facts, tied=True, columns=7), facts, Wish(kind)).values())


def test_llama_order_is_by_layer_then_name() -> None:
    names = ["blk.10.a", "blk.2.b", "token_embd.weight", "blk.2.a", "output.weight"]
    assert sorted(names, key=llama_order) == ["output.weight", "token_embd.weight", "blk.2.a", "blk.2.b", "blk.10.a"]
