"""Facts that follow from bytes, and that the kinds record exactly those."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ingot.core import weights_facts
from ingot.core.rederive import derive, disagreements
from ingot.core.stage import Metric
from ingot.core.weights_facts import Tensor, crowded, facts_of, read_gguf, zeros
from stagekit import digest_of, run_stage


def safetensors(path: Path, tensors: Mapping[str, tuple[str, list[int], bytes]]) -> Path:
    """A safetensors file, written by hand."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def bf16(values: list[float]) -> bytes:
    return b"".join(struct.pack("<f", value)[2:] for value in values)


@pytest.mark.parametrize(("dtype", "pack"), [("F32", "<f"), ("F16", "<e"), ("BF16", "")])
def test_zeros_are_counted_as_a_loop_counts_them(tmp_path: Path, dtype: str, pack: str) -> None:
    draw = random.Random(1)
    # Values whose bytes are partly zero must not count: 1.0 is 0x3f80, 256 ulps are 0x00.. in one byte.
    values = [draw.choice([0.0, -0.0, 1.0, -2.0, 0.5, 2.0**-14]) for _ in range(10_001)]
    raw = bf16(values) if not pack else b"".join(struct.pack(pack, value) for value in values)
    safetensors(tmp_path / "model.safetensors", {"w": (dtype, [len(values)], raw)})
    (tensor,) = facts_of(tmp_path).tensors
    assert zeros(tensor) == sum(value == 0 for value in values)


def test_crowded_blocks_are_counted_as_a_loop_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over more than one piece, with -0.0, and with a block size that no piece of a round size divides."""
    values = [0.0 if (place * 7919) % 5 < 2 else -0.0 if place % 11 == 0 else 1.5 for place in range(3 * 7 * 1000)]
    monkeypatch.setattr(weights_facts, "_CHUNK", 10_000)
    raw = b"".join(struct.pack("<e", value) for value in values)
    safetensors(tmp_path / "model.safetensors", {"w": ("F16", [len(values)], raw)})
    (tensor,) = facts_of(tmp_path).tensors
    for keep, block in ((1, 3), (2, 3), (4, 7), (6, 21)):
        blocks = [values[at : at + block] for at in range(0, len(values), block)]
        expected = sum(sum(value != 0 for value in one) > keep for one in blocks)
        assert crowded(tensor, keep, block) == expected > 0
    for keep, block in ((2, 11), (3, 3), (0, 4)):
        with pytest.raises(ValueError, match="cannot hold"):
            crowded(tensor, keep, block)


def test_zeros_of_packed_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be counted"):
        zeros(Tensor("w", "Q4_0", 32))


def test_sizes_and_elements_of_shards(tmp_path: Path) -> None:
    first = safetensors(tmp_path / "model-00001-of-00002.safetensors", {"a": ("F32", [2, 3], b"x" * 24)})
    second = safetensors(tmp_path / "model-00002-of-00002.safetensors", {"b": ("I8", [5], b"y" * 5)})
    (tmp_path / "config.json").write_text("{}")
    facts = facts_of(tmp_path)
    assert facts.weight_bytes == first.stat().st_size + second.stat().st_size
    assert (facts.total_bytes, facts.file_count) == (facts.weight_bytes + 2, 3)
    assert (facts.elements, facts.tensor_bytes, dict(facts.types())) == (11, 29, {"F32": 1, "I8": 1})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 16,
        (2).to_bytes(8, "little") + b"[]",
        (9).to_bytes(8, "little") + b'{"a":1,}x',
        (64).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}'.ljust(64) + b"1234",
        (64).to_bytes(8, "little") + b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}'.ljust(64) + b"1234",
    ],
)
def test_malformed_safetensors_end_in_a_value_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"safetensors|JSON|Expecting|Illegal"):
        facts_of(tmp_path)


def gguf(values: bytes, count: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, count) + struct.pack("<Q", 1) + b"k" + values


@pytest.mark.parametrize(
    "content",
    [
        b"GGML" + b"\0" * 20,
        b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
        gguf(struct.pack("<IQ", 8, 1 << 62)),
        gguf(struct.pack("<IIQ", 9, 0, 1 << 60)),
        gguf(struct.pack("<IIQ", 9, 8, 1 << 60)),
        gguf(struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 0, 1)),
        gguf(struct.pack("<I", 77)),
        gguf(struct.pack("<IB", 0, 1), count=1 << 62),
    ],
)
def test_malformed_gguf_end_in_a_value_error_at_once(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"past the end|not a GGUF|unknown type"):
        list(read_gguf(path))


def recorded(kind: str, out: Path, metrics: Mapping[str, Metric], **inputs: Path) -> dict[str, Any]:
    """What a receipt says of one run."""
    return {
        "kind": kind,
        "digest": digest_of(out),
        "inputs": {role: {"target": role, "digest": digest_of(path)} for role, path in inputs.items()},
        "metrics": {name: metric.to_dict() for name, metric in metrics.items()},
    }


class Chain:
    """convert → prune → quantize and gguf over a real small model, each with its receipt."""

    def __init__(self, gguf_file: Path, tmp_path: Path) -> None:
        self.folders: dict[str, Path] = {}
        weights = tmp_path / "weights"
        weights.mkdir()
        (weights / "model.gguf").write_bytes(gguf_file.read_bytes())
        self.base, self.converted = self.run("convert", {"to": "hf", "dtype": "bfloat16"}, tmp_path, model=weights)
        prune = {"method": "magnitude", "sparsity": {"attention": 0.3}, "pattern": {"gate_proj": "2:4"}}
        self.pruned, self.prune = self.run("prune", prune, tmp_path, model=self.base)
        _, self.quantize = self.run("quantize", {"scheme": "W8A16"}, tmp_path, model=self.pruned)
        _, self.gguf = self.run("gguf", {"type": "Q8_0"}, tmp_path, model=self.pruned)

    def run(self, kind: str, params: dict[str, Any], tmp: Path, **inputs: Path) -> tuple[Path, dict[str, Any]]:
        out, metrics = run_stage(kind, params, inputs, tmp, name=kind)
        self.folders |= {digest_of(path): path for path in (out, *inputs.values())}
        return out, recorded(kind, out, metrics, **inputs)


@pytest.fixture(scope="module")
def chain(stories_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(stories_gguf, tmp_path_factory.mktemp("chain"))


EXPECTED = {
    "converted": {"parameters", "tensors", "weight_bytes", "bits_per_weight"},
    "prune": {
        "zeros",
        "sparsity",
        "sparsity_lowest",
        "sparsity_highest",
        "pruned_parameters",
        "pruned_layers",
        "attention_sparsity",
        "feed_forward_sparsity",
        "crowded_blocks",
    },
    "quantize": {"weight_bytes", "bits_per_weight", "compression"},
    "gguf": {"bytes", "parameters", "bits_per_weight", "compression", "tensors_q8_0", "tensors_f32"},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_kinds_record_what_their_bytes_say(chain: Chain, name: str) -> None:
    receipt = getattr(chain, name)
    derived = derive(receipt, chain.folders.get)
    assert disagreements(receipt, derived) == []
    assert EXPECTED[name] <= derived.keys() & receipt["metrics"].keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_any_other_number_disagrees(chain: Chain, name: str) -> None:
    receipt = getattr(chain, name)
    derived = derive(receipt, chain.folders.get)
    for metric in EXPECTED[name]:
        value = receipt["metrics"][metric]["value"]
        lie = receipt | {"metrics": {metric: {"value": value * 1.0001 or 1}}}
        assert len(disagreements(lie, derived)) == 1, metric


def test_files_of_any_content_are_counted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "broken.gguf").write_bytes(b"GGUF and nothing more")
    (source / "readme.txt").write_bytes(b"text")
    out, metrics = run_stage("fetch", {"path": "source"}, {}, tmp_path, sources=[source])
    receipt = recorded("fetch", out, metrics)
    derived = derive(receipt, lambda _digest: out)
    assert derived == {"bytes": 25, "files": 2}
    assert disagreements(receipt, derived) == []


def test_rows_of_a_data_set_are_counted(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    rows = [json.dumps({"text": f"document {number} has words of its own, {number * 7919}"}) for number in range(40)]
    source.write_text("\n".join(rows) + "\n")
    params = {"sources": [{"path": "rows.jsonl"}], "split": {"eval": 0.25}}
    out, metrics = run_stage("dataset", params, {}, tmp_path, sources=[source])
    receipt = recorded("dataset", out, metrics)
    derived = derive(receipt, lambda _digest: out)
    assert sum(derived.values()) > 1
    assert derived.keys() == {"documents_train", "documents_eval"} <= receipt["metrics"].keys()
    assert disagreements(receipt, derived) == []


def test_the_package_is_what_core_ml_metrics_are_about(tmp_path: Path) -> None:
    (tmp_path / "model.mlpackage").mkdir()
    (tmp_path / "model.mlpackage" / "weights").write_bytes(b"12345678")
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    metrics = {"parameters": Metric(16, "parameters", "m")}
    receipt = recorded("coreml", tmp_path, metrics)
    assert derive(receipt, lambda _digest: tmp_path) == {"bytes": 8, "bits_per_weight": 4.0}


def test_the_model_and_its_weights_are_what_onnx_metrics_are_about(tmp_path: Path) -> None:
    for name, size in (("model.onnx", 6), ("model.onnx.data", 10), ("tokenizer.json", 99)):
        (tmp_path / name).write_bytes(bytes(size))
    receipt = recorded("onnx", tmp_path, {"parameters": Metric(16, "parameters", "m")})
    assert derive(receipt, lambda _digest: tmp_path) == {"bytes": 16, "bits_per_weight": 8.0}


def test_without_the_bytes_nothing_is_derived(chain: Chain) -> None:
    assert derive(chain.gguf, lambda _digest: None) == {}


def test_the_weights_of_a_packed_checkpoint_are_not_its_words(tmp_path: Path) -> None:
    from ingot.kit.gguf.writer import TensorInfo, write_gguf

    out, model = tmp_path / "out", tmp_path / "model"
    out.mkdir()
    model.mkdir()
    write_gguf(out / "model.gguf", [], [TensorInfo("t", (4,), "F32")], [memoryview(bytes(16))])
    for name, wanted in (("l.weight", {"parameters", "bits_per_weight", "compression"}), ("l.weight_packed", set())):
        safetensors(model / "model.safetensors", {name: ("I32", [4], bytes(16))})
        receipt = recorded("gguf", out, {}, model=model)
        derived = derive(receipt, {receipt["digest"]: out, receipt["inputs"]["model"]["digest"]: model}.get)
        assert derived.keys() == {"bytes", "tensors_f32"} | wanted


def lines(path: Path, *items: object) -> dict[str, Any]:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return {"digest": "d", "inputs": {}, "metrics": {}}


def test_what_was_said_matched_and_judged_is_counted_again(tmp_path: Path) -> None:
    def derived(kind: str, name: str, *items: object) -> dict[str, float]:
        return derive({**lines(tmp_path / name, *items), "kind": kind}, {"d": tmp_path}.get)

    said = [{"tokens": 3, "ended": "end"}, {"tokens": 4, "ended": "limit"}]
    assert derived("samples", "samples.jsonl", *said) == {"samples": 2, "tokens": 7, "ended": 1 / 2}
    scored = [{"exact": True, "rouge_l": 0.5}, {"exact": False, "rouge_l": 0.25}]
    assert derived("match", "items.jsonl", *scored) == {"exact_match": 1 / 2, "rouge_l": 0.375}
    assert derived("match", "items.jsonl", {"exact": True, "rouge_l": None}) == {"exact_match": 1}
    orders = [("first", "second"), ("second", "first"), ("first", "first"), ("tie", "tie"), (None, None)]
    pairs = [{"first_shown": one, "second_shown": two} for one, two in orders]
    assert derived("judge", "pairs.jsonl", *pairs) == {
        "pairs": 5, "win_rate": 1 / 5, "loss_rate": 1 / 5, "tie_rate": 3 / 5,
        "agreement": 3 / 4, "position_bias": 2 / 8,
    }  # fmt: skip
    assert set(derived("judge", "pairs.jsonl", pairs[-1])) == {"pairs", "win_rate", "loss_rate", "tie_rate"}
    assert derived("judge", "pairs.jsonl") == {}
    for kind, name, item in (
        ("samples", "samples.jsonl", {"ended": "end"}),
        ("match", "items.jsonl", {"rouge_l": "high"}),
        ("judge", "pairs.jsonl", ["first"]),
    ):
        with pytest.raises(ValueError, match=r"a line has no number for|does not list objects"):
            derived(kind, name, item)
