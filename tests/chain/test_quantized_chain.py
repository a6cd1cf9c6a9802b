"""Quantized checkpoints in a chain, as a person writes it: ``doit`` in processes of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from projectkit import Sandbox
from recordkit import receipts
from tinymodels import chat_model, dataset

SPEC = """
targets:
  base:
    kind: command
    command: [sh, -c, "cp base/* {out}"]
    files: [base/*]
  data: {kind: dataset, sources: [{path: rows.jsonl}], split: {eval: 0.2}}
  pruned: {kind: prune, from: {model: base}, sparsity: 0.1}
  w8: {kind: quantize, from: {model: pruned}, scheme: W8A16}
  never: {kind: quantize, from: {model: pruned}, scheme: W4A16, group_size: 4, virtual: true}
  nf4: {kind: quantize, from: {model: pruned}, scheme: NF4}
  mixed:
    kind: quantize
    from: {model: pruned}
    scheme: FP16
    overrides: [{modules: [embed_tokens, lm_head], scheme: W8A16}]
  fitted:
    kind: quantize
    from: {model: pruned, calibration: data}
    scheme: W4A16
    matrix: {method: [gptq, awq]}
    documents: 2
    max_length: 32
    device: cpu
  gguf8: {kind: gguf, from: {model: w8}, type: Q8_0}
  gguf_never: {kind: gguf, from: {model: never}, type: Q8_0}
  gguf4: {kind: gguf, from: {model: nf4}, type: Q8_0}
  gguf_mixed: {kind: gguf, from: {model: mixed}, type: Q8_0}
  gguf_fitted: {kind: gguf, from: {model: fitted}, type: Q8_0}
  plain: {kind: convert, from: {model: nf4}, dtype: float16}
"""


@pytest.mark.slow
def test_every_quantized_target_becomes_a_gguf(stories: Path, tmp_path: Path) -> None:
    """… pruned → quantized → gguf; other calibration rows make the fitted targets stale, and no other."""
    sandbox = Sandbox.make(tmp_path)
    model = chat_model(stories, tmp_path / "model")
    shutil.copytree(model, sandbox.root / "specs" / "base")
    rows = (dataset(tmp_path / "rows") / "train.jsonl").read_text().splitlines()
    bare = [
        json.dumps({"prompt": f"Say {number}.", "completion": json.loads(row)["messages"][1]["content"]})
        for number, row in enumerate(rows)
    ]
    (sandbox.root / "specs" / "rows.jsonl").write_text("\n".join(bare) + "\n")
    sandbox.spec(SPEC)
    done = sandbox.doit(timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    told = {name.rpartition(":")[2]: receipt.get("notes", {}) for name, receipt in receipts(sandbox).items()}
    for name in ("gguf8", "gguf_never", "gguf_mixed", "gguf_fitted@gptq", "gguf_fitted@awq"):
        assert told[name]["dequantized_from"] == "compressed-tensors", name
    assert told["gguf4"]["dequantized_from"] == told["plain"]["dequantized_from"] == "bitsandbytes"
    assert told["fitted@awq"]["device"] == "cpu"
    (sandbox.root / "specs" / "rows.jsonl").write_text("\n".join(bare[:-9]) + "\n")
    states = sandbox.states()
    stale = {name.partition(":")[2] for name, state in states.items() if state not in {"fresh", "virtual"}}
    fitted = {"fitted@gptq", "fitted@awq", "gguf_fitted@gptq", "gguf_fitted@awq"}
    assert fitted <= stale, states
    assert not stale & {"w8", "nf4", "mixed", "gguf8", "gguf4", "gguf_mixed", "plain"}, states
