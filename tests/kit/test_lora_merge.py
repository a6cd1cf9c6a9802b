"""The merge against PEFT's, and against the truth: PEFT's in float64."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ingot.errors import RefusedInput
from ingot.kit.lora import config as lora_config
from ingot.kit.lora.combine import combine
from ingot.kit.lora.merge import LoraMerge, Options
from ingot.kit.lora.read import read_adapter
from ingot.kit.stream.vocabulary import Slot
from lorakit import CASES, KEPT_TIED, TIED_CASES, Case, beyond, by_ingot, by_peft, flow, loaded, prepare, ulps
from tinymodels import logits, peft_adapter, state

pytestmark = pytest.mark.filterwarnings("ignore")

#: Beyond the one rounding to the written dtype: the error of the fp32 sums, over the largest weight.
FP32_ERROR = 2.0**-22


def compare(name: str, folder: Path, dtype: torch.dtype) -> dict[str, float]:
    """Merge a case three ways; how far ingot and PEFT are from the truth, and from each other."""
    base, adapter = prepare(CASES[name], folder, dtype)
    ours, theirs = by_ingot(base, adapter), by_peft(base, adapter)
    truth = by_peft(base, adapter, torch.float64)
    assert set(theirs) - set(ours) <= {"lm_head.weight"}
    assert any(not tensor.equal(ours[name]) for name, tensor in state(base).items())
    assert all(tensor.dtype == dtype for tensor in ours.values())
    return {
        "ours": max(ulps(tensor, truth[name]) for name, tensor in ours.items()),
        "theirs": max(ulps(theirs[name], truth[name]) for name in ours),
        "beyond": max(beyond(tensor, truth[name]) for name, tensor in ours.items()),
        "apart": max(float((tensor.double() - theirs[name].double()).abs().max()) for name, tensor in ours.items()),
    }


#: Cases that differ from another one in their configuration alone, not in what is computed.
LIKE_OTHERS = (
    "rslora-patterns", "dora-rslora", "bias-lora-only", "exclude", "some-layers", "orthogonal", "lora-bias-conv1d",
    "tokens-of-both",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LIKE_OTHERS else ()) for name in CASES]
)
def test_each_case_is_one_rounding_from_the_truth(name: str, tmp_path: Path) -> None:
    found = compare(name, tmp_path, torch.bfloat16)
    assert found["beyond"] <= FP32_ERROR
    assert found["ours"] <= 0.52
    assert found["ours"] <= found["theirs"] + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_each_case_in_other_dtypes(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    found = compare(name, tmp_path, dtype)
    assert found["beyond"] <= FP32_ERROR
    assert found["apart"] <= 5e-8 if dtype is torch.float32 else found["ours"] <= 0.52


@pytest.mark.parametrize("name", [*TIED_CASES, *KEPT_TIED])
def test_a_tied_model_computes_what_was_trained(name: str, tmp_path: Path) -> None:
    """PEFT's own merge adds the change of a tied embedding to both; what was trained is the model before it."""
    case = {**TIED_CASES, **KEPT_TIED}[name]
    base, adapter = prepare(case, tmp_path)
    ours, expected = by_ingot(base, adapter), logits(loaded(base, adapter))
    assert ("lm_head.weight" in ours) == (name in TIED_CASES)
    model = case.model()
    if name in TIED_CASES:
        model.lm_head.weight = torch.nn.Parameter(ours["lm_head.weight"].clone())
    model.load_state_dict(ours, strict=False)
    assert (logits(model) - expected).abs().max() <= 1e-5
    assert (logits(case.model()) - expected).abs().max() > 1e-3


BLOCKED = ("lora", "dora", "embedding", "modules-to-save", "tokens", "lora-bias", "dora-fan-in-fan-out")


@pytest.mark.parametrize("name", BLOCKED)
def test_the_blocks_change_no_byte(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingot.kit.lora.patch._TILE", 256)
    base, adapter = prepare(CASES[name], tmp_path)
    whole = by_ingot(base, adapter)
    for rows in (1, 24):
        parts = by_ingot(base, adapter, rows=rows)
        assert all(parts[name].equal(tensor) for name, tensor in whole.items())


def test_blocks_change_no_statistic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingot.kit.lora.patch._TILE", 256)
    base, adapter = prepare(CASES["lora"], tmp_path)
    change = combine([read_adapter(adapter)], [1.0])
    found = []
    for rows in (1, 16, 10**9):
        merge = LoraMerge(change)
        after = flow(merge, state(base), rows)
        found.append((merge.merged, merge.relative_change(), merge.change_norm()))
    assert len(set(found)) == 1
    before = state(base)
    changed = [name for name in before if not before[name].equal(after[name])]
    norm = sum(float((after[name] - before[name]).double().square().sum()) for name in changed) ** 0.5
    assert found[0][0] == len(changed) == 14
    assert found[0][2] == pytest.approx(norm, rel=1e-5)


def test_rows_of_a_large_weight_are_the_truth_in_every_tile() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((5000, 192), generator=generator).bfloat16()
    down, up = torch.randn((8, 192), generator=generator), torch.randn((5000, 8), generator=generator)
    factors = {"q": (lora_factors(down, up),)}
    merge = LoraMerge(combine_of(factors))
    found = flow(merge, {"q.weight": weight}, rows=2048)["q.weight"]
    truth = weight.double() + 0.5 * (up.double() @ down.double())
    assert beyond(found, truth) <= FP32_ERROR


def lora_factors(down: torch.Tensor, up: torch.Tensor) -> Any:
    from ingot.kit.lora.read import Factors

    return Factors(down, up, 0.5)


def combine_of(factors: Any) -> Any:
    from ingot.kit.lora.combine import Change

    return Change(factors)


# --- identities ----------------------------------------------------------------------------------------------------


def identities(base: Path, adapter: Path, options: Options | None = None) -> dict[str, str | None]:
    merge = LoraMerge(combine([read_adapter(adapter)], [1.0]), options or Options())
    slots = [Slot(name, tuple(tensor.shape), "F32") for name, tensor in state(base).items()]
    merge.begin(slots)
    return {route.slot.name: route.identity for slot in slots for route in merge.routes(slot)}


def test_a_route_says_what_decides_its_bytes(tmp_path: Path) -> None:
    base, adapter = prepare(Case({"target_modules": ["q_proj"]}), tmp_path)
    name, other = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
    found = identities(base, adapter)
    assert found == identities(base, adapter)
    assert found[other] == ""
    cast = identities(base, adapter, Options(dtype="BF16"))
    assert cast[other] == "cast F32 BF16"
    peft_adapter(loaded(base, adapter).unload(), tmp_path / "scaled", target_modules=["q_proj"], lora_alpha=9)
    seen = {found[name], cast[name], identities(base, tmp_path / "scaled")[name]}
    assert len(seen) == 3
    assert all(text and text.startswith("lora ") for text in seen)
    tensors = read_adapter(adapter).factors["model.layers.0.self_attn.q_proj"]
    assert (tensors.down.is_contiguous(), tensors.up.is_contiguous()) == (True, True)


# --- several adapters ------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, Path]:
    base, first = prepare(Case({"target_modules": ["q_proj", "up_proj"]}), tmp_path)
    model = loaded(base, first).unload()
    peft_adapter(model, tmp_path / "second", target_modules=["q_proj", "v_proj"], lora_alpha=5)
    return base, first, tmp_path / "second"


@pytest.mark.parametrize(("how", "theirs"), [("linear", "cat"), ("factors", "linear")])
@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.5, -0.5)])
def test_several_adapters_are_peft_s_combination(
    pair: tuple[Path, Path, Path], how: str, theirs: str, weights: tuple[float, float]
) -> None:
    base, first, second = pair
    wrapped = loaded(base, first)
    wrapped.load_adapter(second, "second")
    wrapped.add_weighted_adapter(["default", "second"], list(weights), "both", combination_type=theirs)
    wrapped.set_adapter("both")
    expected = wrapped.merge_and_unload().state_dict()
    ours = by_ingot(base, first, second, weights=weights, how=how)
    for name, tensor in ours.items():
        assert (tensor - expected[name]).abs().max() <= 1e-6, name
    other = by_ingot(base, first, second, weights=weights, how="linear" if how == "factors" else "factors")
    assert any((tensor - ours[name]).abs().max() > 1e-4 for name, tensor in other.items())


def test_a_weight_scales_a_single_adapter(pair: tuple[Path, Path, Path]) -> None:
    base, first, _ = pair
    before, full, half = state(base), by_ingot(base, first), by_ingot(base, first, weights=(0.5,))
    for name, tensor in half.items():
        assert (tensor - (before[name] + full[name]) / 2).abs().max() <= 1e-6


@pytest.mark.parametrize("name", ["dora", "modules-to-save", "tokens", "bias-all"])
def test_what_cannot_be_weighted_is_refused(name: str, tmp_path: Path) -> None:
    _, adapter = prepare(CASES[name], tmp_path)
    read = read_adapter(adapter)
    for adapters, weights in (([read], [0.5]), ([read, read], [1.0, 1.0])):
        with pytest.raises(RefusedInput) as caught:
            combine(adapters, weights)
        assert caught.value.code == "E-MERGE-METHOD"


def test_combinations_that_do_not_fit_are_refused(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    first, second = read_adapter(pair[1]), read_adapter(pair[2])
    with pytest.raises(RefusedInput) as caught:
        combine([first, second], [1.0])
    assert caught.value.code == "E-MERGE-WEIGHTS"
    name = "model.layers.0.self_attn.q_proj"
    wide = replace(second.factors[name], down=torch.zeros(4, 33))
    with pytest.raises(RefusedInput) as caught:
        combine([first, replace(second, factors={name: wide})], [1.0, 1.0])
    assert caught.value.code == "E-MERGE-SHAPE"
    thin = replace(second.factors[name], down=torch.zeros(2, 32), up=torch.zeros(32, 2))
    combine([first, replace(second, factors={name: thin})], [1.0, 1.0])
    with pytest.raises(RefusedInput) as caught:
        combine([first, replace(second, factors={name: thin})], [1.0, 1.0], "factors")
    assert caught.value.code == "E-MERGE-SHAPE"


# --- the configuration ------------------------------------------------------------------------------------------------


def test_every_field_of_peft_s_configuration_has_its_meaning() -> None:
    from peft import LoraConfig

    fields = {item.name for item in dataclasses.fields(LoraConfig)}
    lists = [lora_config.USED, lora_config.NO_EFFECT, frozenset(lora_config.REFUSED)]
    assert fields - frozenset.union(*lists) == set(), "say in kit/lora/config.py what a merge makes of these"
    assert sum(map(len, lists)) == len(frozenset.union(*lists))
    assert frozenset.union(*lists) - fields == set()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(Case({"target_modules": ["q_proj"]}), tmp_path_factory.mktemp("plain"))[1]


def refused(adapter: Path, folder: Path, **changes: Any) -> RefusedInput:
    for path in adapter.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(RefusedInput) as caught:
        read_adapter(folder)
    return caught.value


@pytest.mark.parametrize("name", [*lora_config.REFUSED, "field_of_tomorrow"])
def test_a_method_that_is_no_sum_is_refused_by_name(plain: Path, tmp_path: Path, name: str) -> None:
    error = refused(plain, tmp_path, **{name: {"any": 1}})
    assert error.code == "E-MERGE-METHOD"
    assert name in str(error)


@pytest.mark.parametrize("start", [*lora_config.CHANGED_STARTS, "pissa_niter_4", "start_of_tomorrow"])
def test_a_start_that_changed_the_base_is_refused_by_name(plain: Path, tmp_path: Path, start: str) -> None:
    error = refused(plain, tmp_path, init_lora_weights=start)
    assert error.code == "E-MERGE-METHOD"
    assert start in str(error)


@pytest.mark.parametrize(
    "changes",
    [
        {"r": "4"},
        {"r": 0},
        {"r": 2.5},
        {"r": True},
        {"lora_alpha": "x"},
        {"rank_pattern": ["q_proj"]},
        {"rank_pattern": {"q_proj": 0}},
        {"alpha_pattern": {"(": 1}},
        {"alpha_pattern": {"q_proj": None}},
        {"trainable_token_indices": "all"},
        {"trainable_token_indices": [1, 1]},
        {"trainable_token_indices": {"embed_tokens": [-1]}},
    ],
)
def test_values_that_cannot_be_are_refused(plain: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    assert refused(plain, tmp_path, **changes).code == "E-MERGE-CONFIG"


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"r": 8}])
def test_tensors_that_are_not_those_of_the_configuration_are_refused(
    plain: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert refused(plain, tmp_path, **changes).code == "E-MERGE-SHAPE"


def test_the_adapter_stays_in_its_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    name = "base_model.model.q.lora_"
    tensors = {f"{name}A.weight": torch.ones(64, 100_000), f"{name}B.weight": torch.ones(100_000, 64)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 64, "lora_alpha": 64}))
    del tensors
    before = anonymous()
    adapter = read_adapter(tmp_path)
    assert float(adapter.factors["q"].down.sum() + adapter.factors["q"].up.sum()) == 12_800_000
    assert anonymous() - before < 5 << 20  # of 51 MB


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
