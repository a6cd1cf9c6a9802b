"""Every architecture: the reference converter's bytes, llama.cpp's logits, and the way back."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archmodels import CASES, back, export, gpt2_tokenizer, make_model, reference_convert, stories_tokenizer
from ingot.kit import hf
from ingot.kit.gguf.reader import Gguf, read_gguf
from llamasource import vocabulary

#: Fields that the reference takes from the folder's name, or that belong to the tokenizer (tests of the vocabulary).
UNLIKE = ("general.name", "general.basename", "general.version", "tokenizer.")

#: The largest difference of a logit from transformers', over the largest logit: llama.cpp keeps keys and values in F16.
BOUND = dict.fromkeys(CASES, 4e-3) | {"gemma3": 1.2e-2}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A model of each case, without a tokenizer."""
    root = tmp_path_factory.mktemp("models")
    return {name: make_model(name, root / name, 320) for name in CASES}


@pytest.fixture(scope="module")
def files(models: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The F32 GGUF of each."""
    root = tmp_path_factory.mktemp("files")
    return {name: export(folder, root / f"{name}.gguf", "F32") for name, folder in models.items()}


def assert_equal_to_the_reference(ours: Gguf, theirs: Gguf) -> None:
    """The same tensors in the same order with the same types and bytes; the same fields but for those of UNLIKE."""
    assert [(i.name, i.shape, i.type) for i in ours.tensors] == [(i.name, i.shape, i.type) for i in theirs.tensors]
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert ours.raw(mine).tobytes() == theirs.raw(other).tobytes(), mine.name
    assert stated(ours) == stated(theirs)


def stated(gguf: Gguf) -> list[tuple[str, Any]]:
    """The fields in their order, but for those of UNLIKE."""
    return [(key, value) for key, value in gguf.metadata.items() if not key.startswith(UNLIKE)]


def compare_with_the_reference(wanted: Sequence[tuple[str, str, str]], stories: Path, root: Path) -> int:
    """Convert each (case, stored dtype, type) with llama.cpp's converter and here."""
    jobs = []
    for name, dtype, kind in wanted:
        folder = root / f"{name}-{dtype}-{kind}"
        size = gpt2_tokenizer(vocabulary("gpt-2"), folder) if name == "gpt2" else stories_tokenizer(stories, folder)
        # the reference drops rows of Gemma 3's embedding that have no token
        make_model(name, folder, size if name in {"gpt2", "gemma3"} else size + 3, dtype=dtype)
        jobs.append((folder, folder / "reference.gguf", kind.lower()))
    reference_convert(jobs)
    for (_, _, kind), (folder, reference, _) in zip(wanted, jobs, strict=True):
        assert_equal_to_the_reference(read_gguf(export(folder, folder / "ours.gguf", kind)), read_gguf(reference))
    return len(jobs)


def test_files_equal_those_of_the_reference(stories: Path, tmp_path: Path) -> None:
    """One of each but GPT-2, whose vocabulary is large: it is with the slow ones."""
    some = ["llama-3.1", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3-longrope", "smollm3"]
    assert compare_with_the_reference([(name, "float32", "F32") for name in some], stories, tmp_path) == 8


@pytest.mark.slow
def test_files_of_every_type_equal_those_of_the_reference(stories: Path, tmp_path: Path) -> None:
    stored = {"F32": "float32", "F16": "float32", "BF16": "bfloat16"}
    wanted = [(name, dtype, kind) for name in CASES for kind, dtype in stored.items()]
    # norms stored in float16 get their 1 added in float16
    wanted += [("gemma2", "float16", "F16"), ("gemma3", "float16", "F32"), ("gpt2", "float16", "BF16")]
    assert compare_with_the_reference(wanted, stories, tmp_path) == 3 * len(CASES) + 3


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computes_what_transformers_computes(
    name: str, models: Mapping[str, Path], files: Mapping[str, Path]
) -> None:
    found, wanted = compared(name, models[name], files[name])
    assert np.abs(found - wanted).max() < BOUND[name] * np.abs(wanted).max()


def compared(name: str, folder: Path, file: Path) -> tuple[Any, Any]:
    """llama.cpp's logits and transformers'."""
    from ingot.kit.llama_cpp import open_model

    case = CASES[name]
    ids = tokens(case.positions)
    with open_model(file, context=512 if case.positions > 256 else 64, threads=2) as model:
        return model.logits(ids[0].tolist()), logits(folder, ids)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama-3.1", {"rope_parameters": {"factor": 8.0}}),
        ("qwen2-yarn", {"rope_parameters": {"factor": 8.0, "attention_factor": None}}),
        ("mistral-window", {"rope_parameters": {"factor": 4.0}}),
        ("gemma2", {"sliding_window": 64}),
        ("gemma2", {"attn_logit_softcapping": 80.0}),
        ("gemma2", {"final_logit_softcapping": 50.0}),
        ("gemma3", {"sliding_window": 64}),
        ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 1e6}}}),
        ("phi3-longrope", {"rope_parameters": {"long_factor": [1.0] * 8}}),
        ("phi3-partial", {"rope_parameters": {"partial_rotary_factor": 1.0}}),
        ("smollm3", {"rope_parameters": {"rope_theta": 50000.0}}),
    ],
)
def test_a_file_that_says_another_number_computes_something_else(
    name: str, change: dict[str, Any], models: Mapping[str, Path], tmp_path: Path
) -> None:
    """What the agreement of logits would not notice is not tested by it: windows, caps and rules are exercised."""
    shutil.copytree(models[name], tmp_path / "other")
    config = hf.read_config(models[name])
    if rope := change.get("rope_parameters"):
        change = {"rope_parameters": {**config["rope_parameters"], **rope}}
    hf.write_json(tmp_path / "other" / "config.json", {**config, **change})
    found, wanted = compared(name, models[name], export(tmp_path / "other", tmp_path / "x.gguf", "F32"))
    assert np.abs(found - wanted).max() > 3 * BOUND[name] * np.abs(wanted).max()


@pytest.mark.parametrize("name", CASES)
def test_the_way_back_gives_the_model(
    name: str, models: Mapping[str, Path], files: Mapping[str, Path], tmp_path: Path
) -> None:
    tensors = back(files[name], tmp_path / "back")
    original = dict(hf.iter_tensors(models[name]))
    assert tensors.keys() == original.keys()
    for key, tensor in tensors.items():
        if name.startswith("gemma") and key.endswith("norm.weight"):
            assert (tensor - original[key]).abs().max() <= 2**-24, key
        else:
            assert torch.equal(tensor, original[key]), key
    ids = tokens(CASES[name].positions)
    np.testing.assert_allclose(logits(tmp_path / "back", ids), logits(models[name], ids), atol=2e-6)
    again = read_gguf(export(tmp_path / "back", tmp_path / "again.gguf", "F32"))
    assert stated(again) == stated(read_gguf(files[name]))


def tokens(count: int) -> torch.Tensor:
    return torch.randint(3, 300, (1, count), generator=torch.Generator().manual_seed(1))


def logits(folder: Path, ids: torch.Tensor) -> Any:
    with torch.no_grad():
        return hf.load_model(folder, "float32")(input_ids=ids).logits[0].numpy()
