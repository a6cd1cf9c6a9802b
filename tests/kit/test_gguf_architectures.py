"""Every architecture: the reference converter's bytes, llama.cpp's logits, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
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


@pytest.fixture(scope="module")
def references(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str, str], Path]:
    """What llama.cpp's converter makes of each case, and of some in other types: (case, stored, type) → GGUF."""
    root = tmp_path_factory.mktemp("references")
    wanted = [(name, "float32", "F32") for name in CASES]
    wanted += [("gemma2", "float16", "F16"), ("gemma3", "bfloat16", "BF16"), ("llama-3.1", "bfloat16", "F16")]
    wanted += [("gpt2", "float16", "BF16"), ("phi3-longrope", "float32", "F16")]
    jobs = []
    for name, dtype, kind in wanted:
        folder = root / f"{name}-{dtype}-{kind}"
        size = gpt2_tokenizer(vocabulary("gpt-2"), folder) if name == "gpt2" else stories_tokenizer(stories, folder)
        # the reference drops rows of Gemma 3's embedding that have no token
        make_model(name, folder, size if name in {"gpt2", "gemma3"} else size + 3, dtype=dtype)
        jobs.append((folder, folder / "reference.gguf", kind.lower()))
    reference_convert(jobs)
    return {case: job[1] for case, job in zip(wanted, jobs, strict=True)}


def test_files_equal_those_of_the_reference(
    references: Mapping[tuple[str, str, str], Path], tmp_path: Path, cases: Any
) -> None:
    for (name, dtype, kind), reference in references.items():
        ours = export(reference.parent, tmp_path / f"{name}-{dtype}-{kind}.gguf", kind)
        assert_equal_to_the_reference(read_gguf(ours), read_gguf(reference))
    cases(len(references))


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computes_what_transformers_computes(
    name: str, models: Mapping[str, Path], files: Mapping[str, Path]
) -> None:
    from ingot.kit.llama_cpp import open_model

    case = CASES[name]
    ids = tokens(case.positions)
    with open_model(files[name], context=512 if case.positions > 256 else 64, threads=2) as model:
        found = model.logits(ids[0].tolist())
    wanted = logits(models[name], ids)
    assert np.abs(found - wanted).max() < BOUND[name] * np.abs(wanted).max()


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
