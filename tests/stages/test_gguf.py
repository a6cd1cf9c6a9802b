"""GGUF files: the reference's bytes, equal runs, and a self-check that finds planted faults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import make_llama

from ingot.errors import RefusedInput, StageFailed
from ingot.kit.gguf import check, layout, pretokenizers
from ingot.kit.gguf.reader import read_gguf
from stagekit import digest_of, run_stage


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("tiny") / "hf")


def _copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    for path in to.iterdir():
        path.chmod(0o644)
    return to


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_weights_equal_the_published_gguf(stories: Path, stories_gguf: Path, tmp_path: Path) -> None:
    out, metrics = run_stage("gguf", {"type": "F32"}, {"model": stories}, tmp_path)
    ours, reference = read_gguf(out / "model.gguf"), read_gguf(stories_gguf)
    theirs = {info.name: info for info in reference.tensors}
    # the published file repeats the tied embedding as its output layer
    assert {info.name for info in ours.tensors} == set(theirs) - {"output.weight"}
    for info in ours.tensors:
        assert ours.raw(info).tobytes() == reference.raw(theirs[info.name]).tobytes(), info.name
    for key in ("tokens", "scores", "token_type"):
        name = f"tokenizer.ggml.{key}"
        assert np.array_equal(ours.metadata[name], reference.metadata[name]), name
    assert metrics["bytes"].value == (out / "model.gguf").stat().st_size
    assert metrics["parameters"].value == 260032
    assert metrics["tensors_f32"].value == 47
    assert metrics["fallback_tensors"].value == 0


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_K_M"])
def test_types_and_fallbacks_are_counted(stories: Path, tmp_path: Path, kind: str) -> None:
    out, metrics = run_stage("gguf", {"type": kind}, {"model": stories}, tmp_path)
    found = {key: m.value for key, m in metrics.items() if key.startswith("tensors_")}
    wanted: dict[str, dict[str, int]] = {
        "F16": {"tensors_f16": 36, "tensors_f32": 11},
        "BF16": {"tensors_bf16": 36, "tensors_f32": 11},
        "Q8_0": {"tensors_q8_0": 31, "tensors_f16": 5, "tensors_f32": 11},
        "Q4_0": {"tensors_q4_0": 30, "tensors_q8_0": 1, "tensors_f16": 5, "tensors_f32": 11},
    }
    if kind in wanted:
        assert found == wanted[kind]
    # rows of 172 are no multiple of 32, and no row is one of 256
    assert metrics["fallback_tensors"].value == {"Q8_0": 5, "Q4_0": 5, "Q5_K_M": 36}.get(kind, 0)
    assert sorted(path.name for path in out.iterdir()) == ["model.gguf"]


def test_equal_bytes_at_other_thread_counts(tiny: Path, tmp_path: Path) -> None:
    runs = [
        run_stage("gguf", {"type": "Q4_0"}, {"model": tiny}, tmp_path, threads=threads, name=f"run{threads}")[0]
        for threads in (1, 2, 3)
    ]
    assert len({digest_of(out) for out in runs}) == 1
    data = (runs[0] / "model.gguf").read_bytes()
    assert str(tmp_path).encode() not in data
    assert b"general.name" not in data


def test_a_quantized_file_comes_from_exact_weights(tiny: Path, tmp_path: Path) -> None:
    """Through F32 by hand gives the bytes that the stage gives through the stored type."""
    from ingot.kit.llama_cpp import quantize

    out, _ = run_stage("gguf", {"type": "Q8_0"}, {"model": tiny}, tmp_path)
    plain, _ = run_stage("gguf", {"type": "F32"}, {"model": tiny}, tmp_path, name="f32")
    quantize(plain / "model.gguf", tmp_path / "by_hand.gguf", "Q8_0", threads=1)
    a, b = read_gguf(out / "model.gguf"), read_gguf(tmp_path / "by_hand.gguf")
    assert [(i.name, i.type) for i in a.tensors] == [(i.name, i.type) for i in b.tensors]
    assert all(a.raw(i).tobytes() == b.raw(j).tobytes() for i, j in zip(a.tensors, b.tensors, strict=True))


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            }
        },
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    ],
    ids=["tied", "untied-biased", "llama3", "linear"],
)  # fmt: skip
def test_llama_cpp_computes_what_transformers_computes(tmp_path: Path, sizes: dict[str, Any]) -> None:
    import torch

    from ingot.kit.hf import load_model
    from ingot.kit.llama_cpp import open_model

    folder = make_llama(tmp_path / "hf", dtype="float32", **sizes)
    out, _ = run_stage("gguf", {"type": "F32"}, {"model": folder}, tmp_path)
    ids = torch.randint(3, 300, (1, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = load_model(folder, "float32")(input_ids=ids).logits[0].numpy()
    with open_model(out / "model.gguf", context=256, threads=2) as model:
        found = model.logits(ids[0].tolist())
        np.testing.assert_allclose(found[-1:], model.logits(ids[0].tolist(), last=True), atol=1e-4)
    # llama.cpp keeps keys and values in F16
    assert np.abs(found - wanted).max() < 1e-2 * np.abs(wanted).max()


def test_chat_is_rendered_and_tokenized_as_in_training(tiny: Path, tmp_path: Path) -> None:
    from ingot.kit.hf import load_tokenizer
    from ingot.kit.llama_cpp import open_model, render_chat, token_ids

    out, metrics = run_stage("gguf", {"type": "BF16"}, {"model": tiny}, tmp_path)
    tokenizer = load_tokenizer(tiny)
    messages = [{"role": "user", "content": "Hello 42!"}]
    with open_model(out / "model.gguf", context=64, threads=1) as model:
        text = render_chat(model, messages, add_generation_prompt=True)
        assert text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert token_ids(model, text) == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert model.ends_turn(2)
        assert model.metadata("general.no_such_key") is None
    assert metrics["probe_texts"].value == len(check.PROBES) + len(set(tokenizer.all_special_tokens)) + 1


def test_sentencepiece_without_its_model_file(stories: Path, tmp_path: Path) -> None:
    """tokenizer.json alone gives scores in the order of its merges, and passes the self-check."""
    folder = _copy(stories, tmp_path / "hf")
    (folder / "tokenizer.model").unlink()
    out, _ = run_stage("gguf", {"type": "BF16"}, {"model": folder}, tmp_path)
    metadata = read_gguf(out / "model.gguf").metadata
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert list(metadata["tokenizer.ggml.token_type"][:4]) == [2, 3, 3, 6]


def test_an_unknown_architecture_is_refused_with_the_list(tiny: Path, tmp_path: Path) -> None:
    folder = _copy(tiny, tmp_path / "hf")
    _edit(folder / "config.json", architectures=["MambaForCausalLM"])
    with pytest.raises(RefusedInput, match="MambaForCausalLM") as caught:
        run_stage("gguf", {"type": "F16"}, {"model": folder}, tmp_path)
    assert caught.value.code == "E-GGUF-ARCH"
    assert "LlamaForCausalLM" in str(caught.value)


@pytest.mark.parametrize("change", ["unknown", "missing"])
def test_tensors_that_do_not_fit_are_refused(tiny: Path, tmp_path: Path, change: str) -> None:
    import torch

    from ingot.kit.hf import iter_tensors, write_safetensors

    folder = _copy(tiny, tmp_path / "hf")
    tensors = dict(iter_tensors(tiny))
    name = "model.layers.0.self_attn.q_norm.weight"
    if change == "unknown":
        tensors[name] = torch.ones(16)
    else:
        name = "blk.1.ffn_up.weight"
        del tensors["model.layers.1.mlp.up_proj.weight"]
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(RefusedInput, match=name) as caught:
        run_stage("gguf", {"type": "F16"}, {"model": folder}, tmp_path)
    assert caught.value.code == "E-GGUF-TENSOR"


def test_an_unknown_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    from tokenizers import Regex, pre_tokenizers

    pre = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{Han}+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    folder = make_llama(tmp_path / "hf", pre=pre)
    with pytest.raises(RefusedInput, match="pre-tokenizer") as caught:
        run_stage("gguf", {"type": "F16"}, {"model": folder}, tmp_path)
    assert caught.value.code == "E-GGUF-TOKENIZER"
    assert "Han" in str(caught.value)


def test_the_self_check_finds_a_wrong_pre_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import pre_tokenizers

    folder = make_llama(tmp_path / "hf", pre=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
    _, metrics = run_stage("gguf", {"type": "F16"}, {"model": folder}, tmp_path, name="right")
    assert metrics["probe_texts"].value
    # this vocabulary joins digits, which the smollm rule keeps apart
    monkeypatch.setattr(pretokenizers, "RULES", (pretokenizers.Rule(("smollm",), (pretokenizers.GPT2,)),))
    with pytest.raises(StageFailed, match="other token ids") as caught:
        run_stage("gguf", {"type": "F16"}, {"model": folder}, tmp_path)
    assert caught.value.code == "E-GGUF-SELFCHECK"


def test_the_self_check_finds_weights_that_are_not_finite(tiny: Path, tmp_path: Path) -> None:
    from ingot.kit.hf import iter_tensors, write_safetensors

    folder = _copy(tiny, tmp_path / "hf")
    tensors = dict(iter_tensors(tiny))
    tensors["model.layers.1.mlp.down_proj.weight"][3, 3] = float("nan")
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(StageFailed, match="not finite") as caught:
        run_stage("gguf", {"type": "F16"}, {"model": folder}, tmp_path)
    assert caught.value.code == "E-GGUF-SELFCHECK"


def test_the_self_check_finds_a_file_that_llama_cpp_refuses(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = layout.Layout.fields

    def without_eps(*args: Any) -> Any:
        return [field for field in original(*args) if not field.key.endswith("layer_norm_rms_epsilon")]

    monkeypatch.setattr(layout.Layout, "fields", without_eps)
    with pytest.raises(StageFailed, match="does not open") as caught:
        run_stage("gguf", {"type": "F16"}, {"model": tiny}, tmp_path)
    assert caught.value.code == "E-GGUF-SELFCHECK"
    assert any("layer_norm_rms_epsilon" in fact for fact in caught.value.facts)
