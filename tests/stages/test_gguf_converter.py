"""``converter: {llama_cpp: PATH}``: an architecture that ingot does not know, through a checkout's own converter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archmodels import stories_tokenizer
from ingot.core.digest import record_files, sha256_bytes, tree_digest
from ingot.core.sources import SourceReader
from ingot.core.stage import Done, Files, Given, load_kind
from ingot.core.statcache import StatCache
from ingot.errors import RefusedInput
from ingot.kit import hf
from ingot.kit.gguf.foreign_converter import Conversion, Snapshots
from ingot.kit.gguf.reader import read_gguf
from ingot.kit.llama_cpp import open_model
from llamasource import llama_cpp_source
from projectkit import Sandbox
from stagekit import digest_of, run_stage

PARAMS: dict[str, Any] = {"converter": {"llama_cpp": "vendor/llama.cpp"}}


@pytest.fixture
def granite(stories: Path, tmp_path: Path) -> Path:
    from transformers import GraniteConfig, GraniteForCausalLM

    folder = tmp_path / "a folder of mine"
    config = GraniteConfig(
        vocab_size=stories_tokenizer(stories, folder), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, embedding_multiplier=2.0,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    GraniteForCausalLM(config).save_pretrained(str(folder))
    return folder


@pytest.fixture
def snapshots(tmp_path: Path) -> list[Path]:
    """What the builder copies of a checkout."""
    root = llama_cpp_source()
    shutil.copyfile(root / "convert_hf_to_gguf.py", tmp_path / "content")
    hidden = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "conversion", tmp_path / "conversion", ignore=hidden)
    shutil.copytree(root / "gguf-py" / "gguf", tmp_path / "gguf", ignore=hidden)
    return [tmp_path / "content", tmp_path / "conversion", tmp_path / "gguf"]


@pytest.mark.slow
def test_an_unknown_architecture_is_converted(granite: Path, snapshots: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RefusedInput) as caught:
        run_stage("gguf", {"type": "F32"}, {"model": granite}, tmp_path, name="without")
    assert caught.value.code == "E-GGUF-ARCH"
    params = {**PARAMS, "type": "F32"}
    out, metrics = run_stage("gguf", params, {"model": granite}, tmp_path, sources=snapshots, name="with")
    metadata = read_gguf(out / "model.gguf").metadata
    assert metadata["general.architecture"] == "granite"
    assert metadata["ingot.converter"].startswith("llama.cpp ")
    assert metrics["parameters"].value == sum(tensor.numel() for _, tensor in hf.iter_tensors(granite))
    stored = sum(tensor.numel() * tensor.element_size() for _, tensor in hf.iter_tensors(granite))
    assert metrics["compression"].value == stored / (out / "model.gguf").stat().st_size
    ids = torch.randint(3, 500, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = hf.load_model(granite, "float32")(input_ids=ids).logits[0].numpy()
    with open_model(out / "model.gguf", context=64, threads=2) as model:
        assert np.abs(model.logits(ids[0].tolist()) - wanted).max() < 4e-3 * np.abs(wanted).max()


@pytest.mark.slow
def test_equal_bytes_wherever_the_model_and_the_checkout_lie(
    granite: Path, snapshots: list[Path], tmp_path: Path
) -> None:
    params = {**PARAMS, "type": "Q8_0"}
    first, metrics = run_stage("gguf", params, {"model": granite}, tmp_path, sources=snapshots, name="first")
    assert metrics["tensors_q8_0"].value == 16
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    there = [Path(shutil.move(path, moved / path.name)) for path in snapshots]
    model = Path(shutil.move(granite, moved / "other"))
    second, _ = run_stage("gguf", params, {"model": model}, tmp_path, sources=there, name="second", threads=1)
    assert digest_of(first) == digest_of(second)
    data = (first / "model.gguf").read_bytes()
    assert str(tmp_path).encode() not in data
    assert b"folder" not in data


def test_a_converter_that_fails_is_told_in_its_own_words(granite: Path, tmp_path: Path) -> None:
    (tmp_path / "content").write_text("raise SystemExit('the architecture is not supported')")
    for name in ("conversion", "gguf"):
        (tmp_path / name).mkdir()
    sources = [tmp_path / name for name in ("content", "conversion", "gguf")]
    with pytest.raises(RefusedInput, match="status 1") as caught:
        run_stage("gguf", {**PARAMS, "type": "F16"}, {"model": granite}, tmp_path, sources=sources)
    assert caught.value.code == "E-GGUF-CONVERTER"
    assert caught.value.facts == ("the architecture is not supported",)
    assert not list((tmp_path / "out").iterdir())


def test_the_file_names_the_model_that_was_converted_not_the_one_that_was_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    given = Given({}, {"model": ("ab" * 32,)}, tmp_path / "scratch")
    (tmp_path / "scratch").mkdir()
    conversion = Conversion(given, Snapshots(tmp_path, tmp_path, tmp_path), "F32", finite=True)
    assert conversion.digest == "ab" * 32
    files = record_files(tmp_path)
    conversion.passed = {"model": Done({}, files=files)}
    assert conversion.digest == tree_digest(files)


def test_code_in_the_model_is_refused_before_the_converter_sees_it(granite: Path, tmp_path: Path) -> None:
    (tmp_path / "content").write_text("open('ran', 'x')")
    (granite / "modeling.py").write_text("")
    (granite / "config.json").write_text('{"auto_map": {"AutoConfig": "modeling.Config"}, "model_type": "mine"}')
    with pytest.raises(RefusedInput) as caught:
        run_stage("gguf", {**PARAMS, "type": "F16"}, {"model": granite}, tmp_path, sources=[tmp_path / "content"] * 3)
    assert caught.value.code == "E-CONFIG-CODE"
    assert not list(tmp_path.rglob("ran"))


def test_the_content_of_the_checkout_is_what_counts(tmp_path: Path) -> None:
    def digests(root: str) -> list[str]:
        params = {"type": "F16", "converter": {"llama_cpp": root}}
        stage = load_kind("gguf").model_validate(params)
        again = load_kind("gguf").model_validate_json(stage.model_dump_json(), strict=True)
        assert again == stage
        reader = SourceReader(tmp_path, StatCache(tmp_path / "stats"))
        found = dict(stage.found_sources())
        assert list(found) == [f"/converter/llama_cpp/{name}" for name in ("script", "conversion", "gguf")]
        assert not any(isinstance(source, Files) for source in found.values())
        return [reader.digest(source.model_dump(exclude_none=True)) for source in found.values()]

    for root in ("vendor/llama.cpp", "other"):
        for name in ("convert_hf_to_gguf.py", "conversion/base.py", "gguf-py/gguf/quants.py", "gguf-py/gguf/a/b.py"):
            (tmp_path / root / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / root / name).write_text(sha256_bytes(name.encode()))
    first = digests("vendor/llama.cpp")
    assert digests("other/") == first
    (tmp_path / "other/conversion/__pycache__").mkdir()
    (tmp_path / "other/conversion/__pycache__/base.cpython-311.pyc").write_text("")
    assert digests("other") == first
    (tmp_path / "other/gguf-py/gguf/a/b.py").write_text("")
    assert digests("other") != first


@pytest.mark.parametrize(
    ("more", "role"),
    [
        ({"overrides": [{"tensors": "x", "type": "F16"}]}, "overrides"),
        ({"split_bytes": 1000}, "split_bytes"),
        ({"strict": True}, "strict"),
    ],
)
def test_what_llama_cpp_would_not_be_told_is_refused(more: dict[str, Any], role: str) -> None:
    import json

    stage = load_kind("gguf").model_validate_json(json.dumps({**PARAMS, "type": "Q8_0", **more}), strict=True)
    assert role in dict(stage.misfits(frozenset()))


@pytest.mark.slow
def test_a_project_with_a_checkout_of_its_own(granite: Path, sandbox: Sandbox) -> None:
    """Through doit: the checkout's place is relative to the spec, and only a change of its content builds again."""
    shutil.copytree(granite, sandbox.root / "specs" / "granite")
    root = llama_cpp_source()
    for name in ("convert_hf_to_gguf.py", "conversion", "gguf-py"):
        copy = shutil.copytree if (root / name).is_dir() else shutil.copyfile
        (sandbox.root / "specs" / "llama.cpp").mkdir(exist_ok=True)
        copy(root / name, sandbox.root / "specs" / "llama.cpp" / name)
    sandbox.spec("""targets:
  made: {kind: command, command: [cp, -r, granite/., "{out}"], files: [granite]}
  model: {kind: convert, from: {model: made}, dtype: float32}
  file: {kind: gguf, from: {model: model}, type: F16, converter: {llama_cpp: llama.cpp}}
""")
    first = sandbox.doit("s:file", timeout=600)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "built" in first.stdout
    (sandbox.root / "specs" / "llama.cpp" / "README.md").write_text("more")
    assert "built" not in sandbox.doit("s:file").stdout
    with (sandbox.root / "specs" / "llama.cpp" / "conversion" / "base.py").open("a") as file:
        file.write("# changed\n")
    again = sandbox.doit("s:file", timeout=600)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "built" in again.stdout
