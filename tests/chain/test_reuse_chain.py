"""Variants of one base as a person builds them: what did not change is copied, and nobody could tell from the bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from projectkit import Sandbox
from recordkit import codes, object_of, receipts, writable

TOUCHED = 2


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama whose rows hold whole blocks, and two adapters of its upper layer."""
    import torch
    from safetensors.torch import save_file
    from tiny_llama import make_llama

    folder = tmp_path_factory.mktemp("parts")
    make_llama(folder / "base", hidden_size=256, intermediate_size=512, head_dim=64)
    for number, name in enumerate("ab"):
        (folder / name).mkdir()
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
        (folder / name / "adapter_config.json").write_text(json.dumps(config))
        torch.manual_seed(number)
        tensors = {}
        for layer, rows in (("q_proj", 256), ("v_proj", 128)):
            place = f"base_model.model.model.layers.1.self_attn.{layer}"
            tensors[f"{place}.lora_A.weight"] = torch.randn(4, 256) * 0.1
            tensors[f"{place}.lora_B.weight"] = torch.randn(rows, 4) * 0.1
        save_file(tensors, folder / name / "adapter_model.safetensors")
    return folder


def made(folder: Path, parts: Path) -> Sandbox:
    sandbox = Sandbox.make(folder)
    shutil.copytree(parts, sandbox.root / "specs" / "parts")
    return sandbox


def spec(*variants: str, overrides: str = "") -> str:
    """For each letter the merge of its adapter, virtual or (capital) written, and a file of it."""
    text = "targets:\n  base: {kind: fetch, path: parts/base}\n"
    for name in variants:
        virtual = ", virtual: true" if name.islower() else ""
        adapter = name.lower()
        text += (
            f"  adapter-{adapter}: {{kind: fetch, path: parts/{adapter}}}\n"
            f"  merged-{adapter}: {{kind: merge, from: {{model: base, adapter: adapter-{adapter}}}{virtual}}}\n"
            f"  file-{adapter}: {{kind: gguf, from: {{model: merged-{adapter}}}, type: Q4_K_M{overrides}}}\n"
        )
    return text


def metric(receipt: dict[str, Any], name: str) -> float | None:
    found = receipt["metrics"].get(name)
    return None if found is None else float(found["value"])


@pytest.mark.slow
def test_a_second_adapter_copies_what_it_does_not_touch(parts: Path, tmp_path: Path) -> None:
    alone = made(tmp_path / "alone", parts)
    alone.spec(spec("b"))
    alone.ok()
    fresh = receipts(alone)["s:file-b"]
    assert metric(fresh, "reused_tensors") is None

    sandbox = made(tmp_path / "both", parts)
    sandbox.spec(spec("a"))
    sandbox.ok()
    first = receipts(sandbox)["s:file-a"]
    matrices = sum(value["value"] for name, value in first["metrics"].items() if name.startswith("tensors_q"))
    sandbox.spec(spec("a", "B"))
    sandbox.ok()
    second = receipts(sandbox)["s:file-b"]
    assert second["digest"] == fresh["digest"] != first["digest"]
    assert metric(second, "reused_tensors") == matrices - TOUCHED
    assert 0 < (metric(second, "reused_bytes") or 0) < sum(file["size"] for file in second["files"])
    assert "saved_s" in sandbox.ok("show", "s:file-b")
    assert codes(sandbox) == []

    # damaged in the store: found when it is copied, and made anew
    path = writable(object_of(sandbox, "s:file-b") / "model.gguf")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    shutil.rmtree(writable(writable(object_of(sandbox, "s:file-a").parent) / first["digest"]))
    overrides = ", overrides: [{tensors: attn_k, type: Q8_0}]"
    for each in (sandbox, alone):
        each.spec(spec("b", overrides=overrides))
        each.ok()
    third = receipts(sandbox)["s:file-b"]
    assert third["digest"] == receipts(alone)["s:file-b"]["digest"] != fresh["digest"]
    assert metric(third, "reused_tensors") is None
    assert "not as recorded" in third["notes"]["reuse"]
    assert metric(receipts(alone)["s:file-b"], "reused_tensors") == matrices - 2
