"""Importance matrices: what llama.cpp sees is what transformers sees, and both forms of the file are read."""

from __future__ import annotations

import ctypes
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llama import make_llama

from ingot.core.stage import load_kind
from ingot.errors import RefusedInput, StageFailed
from ingot.kit.gguf import collect, watch
from ingot.kit.gguf.ggml import ggml
from ingot.kit.gguf.imatrix import Entry, Imatrix, imatrix_file, read_imatrix, write_imatrix
from ingot.kit.gguf.mixture import Wish
from ingot.kit.gguf.reader import read_gguf
from ingot.kit.gguf.types import FILE_TYPES
from ingot.kit.gguf.watch import GgmlTensor, product_op
from ingot.stages.imatrix import Imatrix as ImatrixKind
from ingot.stages.imatrix import cut
from quantref import quantize
from stagekit import run_done, run_stage

CONTEXT = 64


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows are whole blocks of 256."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 64}
    return make_llama(tmp_path_factory.mktemp("wide") / "hf", dtype="float32", **sizes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = [{"id": f"{n:02}", "text": f"the cat {n} sat on the mat and the dog ran after it " * 3} for n in range(12)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def made(wide: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    out, _ = run_stage("imatrix", {"context": CONTEXT}, {"model": wide, "calibration": data}, folder)
    return out


def _seen_by_transformers(folder: Path, texts: list[list[int]]) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Sums of the squares of what goes into each linear layer, by its GGUF name."""
    from ingot.kit.hf import load_model

    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    model = load_model(folder, "float32")
    found: dict[str, Any] = {}
    for number, layer in enumerate(model.model.layers):
        for name, gguf in names.items():

            def look(_module: Any, inputs: Any, key: str = f"blk.{number}.{gguf}.weight") -> None:
                found[key] = found.get(key, 0) + inputs[0].double().square().sum((0, 1)).numpy()

            layer.get_submodule(name).register_forward_pre_hook(look)
    with torch.no_grad():
        for ids in texts:
            model(input_ids=torch.tensor([ids]), use_cache=False)
    return found


def _texts(folder: Path, data: Path, tmp_path: Path) -> list[list[int]]:
    from ingot.core.stage import Given
    from ingot.kit.hf import load_tokenizer

    given = Given({"model": (folder,), "calibration": (data,)}, {}, tmp_path)
    return ImatrixKind(context=CONTEXT)._texts(given, load_tokenizer(folder))


def test_llama_cpp_sees_what_transformers_sees(wide: Path, data: Path, made: Path, tmp_path: Path) -> None:
    matrix = read_imatrix(made / "imatrix.gguf")
    texts = _texts(wide, data, tmp_path)
    wanted = _seen_by_transformers(wide, texts)
    assert matrix.entries.keys() == wanted.keys()
    assert (matrix.chunks, matrix.chunk_size) == (len(texts), CONTEXT)
    for entry in matrix.entries.values():
        assert entry.counts.tolist() == [len(texts) * CONTEXT]
    assert _far(matrix, wanted) == []


def _far(matrix: Imatrix, wanted: dict[str, Any]) -> list[str]:
    """Entries that differ by more than rounding: llama.cpp keeps keys and values in F16."""
    entries = matrix.entries.items()
    return [name for name, entry in entries if np.abs(entry.sums - wanted[name]).max() > 0.01 * wanted[name].max()]


def test_a_wrong_sum_is_noticed(wide: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with transformers has teeth."""
    right = collect.Collector.see

    def wrong(self: collect.Collector, node: GgmlTensor) -> None:
        right(self, node)
        name = GgmlTensor.from_address(node.src[0]).name.decode()
        self.sums[name] = self.sums[name] * 1.02

    monkeypatch.setattr(collect.Collector, "see", wrong)
    out, _ = run_stage("imatrix", {"context": CONTEXT}, {"model": wide, "calibration": data}, tmp_path)
    wanted = _seen_by_transformers(wide, _texts(wide, data, tmp_path))
    assert _far(read_imatrix(out / "imatrix.gguf"), wanted)


def test_the_file_is_llama_cpps_form(made: Path, data: Path) -> None:
    from stagekit import digest_of

    read = read_gguf(made / "imatrix.gguf")
    assert read.metadata["general.type"] == "imatrix"
    assert read.metadata["imatrix.datasets"] == [digest_of(data)]
    assert read.metadata["imatrix.chunk_size"] == CONTEXT
    shapes = {info.name: info.shape for info in read.tensors}
    assert shapes["blk.0.ffn_up.weight.in_sum2"] == (1, 256)
    assert shapes["blk.0.ffn_up.weight.counts"] == (1, 1)


def test_equal_runs_give_equal_files(wide: Path, data: Path, made: Path, tmp_path: Path) -> None:
    out, _ = run_stage("imatrix", {"context": CONTEXT}, {"model": wide, "calibration": data}, tmp_path, threads=1)
    assert (out / "imatrix.gguf").read_bytes() == (made / "imatrix.gguf").read_bytes()


@pytest.mark.parametrize("kind", ["IQ2_XXS", "Q4_0"])
def test_the_quantized_file_is_llama_cpps(wide: Path, made: Path, tmp_path: Path, kind: str) -> None:
    out, _ = run_stage("gguf", {"type": kind}, {"model": wide, "imatrix": made}, tmp_path)
    plain, _ = run_stage("gguf", {"type": "F32"}, {"model": wide}, tmp_path, name="plain")
    weights = read_imatrix(made / "imatrix.gguf").weights()
    reference = quantize(plain / "model.gguf", tmp_path / "r.gguf", Wish(kind, imatrix=True), weights)
    ours = read_gguf(out / "model.gguf")
    mine = {info.name: info for info in ours.tensors}
    for info in reference.tensors:
        assert info.type == mine[info.name].type
        assert reference.raw(info).tobytes() == ours.raw(mine[info.name]).tobytes(), info.name
    assert ours.metadata["quantize.imatrix.entries_count"] == len(weights)
    assert ours.metadata["quantize.imatrix.chunks_count"] == read_imatrix(made / "imatrix.gguf").chunks
    assert "quantize.imatrix.file" not in ours.metadata
    assert len(ours.metadata["ingot.imatrix.sha256"]) == 64


@pytest.mark.slow
@pytest.mark.parametrize(("kv", "tied", "layers"), [(8, True, 3), (2, False, 9), (1, True, 10)])
def test_every_type_over_real_models(data: Path, tmp_path: Path, kv: int, tied: bool, layers: int) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "head_dim": 32,
        "num_key_value_heads": kv, "tie_word_embeddings": tied, "num_hidden_layers": layers,
    }  # fmt: skip
    folder = make_llama(tmp_path / "hf", **sizes)
    made, _ = run_stage("imatrix", {"context": CONTEXT}, {"model": folder, "calibration": data}, tmp_path, name="im")
    plain, _ = run_stage("gguf", {"type": "BF16"}, {"model": folder}, tmp_path, name="plain")
    weights = read_imatrix(made / "imatrix.gguf").weights()
    for kind in FILE_TYPES:
        inputs = {"model": folder, "imatrix": made}
        out, _ = run_stage("gguf", {"type": kind}, inputs, tmp_path, name=f"{kind}-out")
        reference = quantize(plain / "model.gguf", tmp_path / f"{kind}.gguf", Wish(kind, imatrix=True), weights)
        ours = read_gguf(out / "model.gguf")
        mine = {info.name: (info.type, ours.raw(info).tobytes()) for info in ours.tensors}
        assert mine == {info.name: (info.type, reference.raw(info).tobytes()) for info in reference.tensors}, kind


def test_a_matrix_from_a_file_is_the_same(wide: Path, made: Path, tmp_path: Path) -> None:
    by_role, _ = run_stage("gguf", {"type": "Q4_0"}, {"model": wide, "imatrix": made}, tmp_path, name="role")
    params = {"type": "Q4_0", "imatrix": {"path": "imatrix.gguf"}}
    by_file, _ = run_stage("gguf", params, {"model": wide}, tmp_path, sources=[made / "imatrix.gguf"], name="file")
    assert (by_role / "model.gguf").read_bytes() == (by_file / "model.gguf").read_bytes()


def test_the_matrix_of_another_model_is_refused(stories: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match="of another model") as caught:
        run_stage("gguf", {"type": "Q4_0"}, {"model": stories, "imatrix": made}, tmp_path)
    assert caught.value.code == "E-GGUF-IMATRIX"
    assert not list((tmp_path / "out").iterdir())


def _legacy(entries: dict[str, tuple[int, list[float]]], tail: bytes = b"") -> bytes:
    data = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        data += struct.pack(f"<{len(values)}f", *values)
    return data + tail


def test_both_forms_are_read(tmp_path: Path) -> None:
    old = tmp_path / "old.dat"
    old.write_bytes(_legacy({"blk.0.a.weight": (4, [8.0, 2.0]), "b": (0, [3.0])}, struct.pack("<ii", 7, 3) + b"txt"))
    found = read_imatrix(old)
    assert found.weights()["blk.0.a.weight"].tolist() == [2.0, 0.5]
    assert found.weights()["b"].tolist() == [3.0]
    assert (found.chunks, found.chunk_size) == (7, 0)
    old.write_bytes(_legacy({"a": (1, [1.0])}))
    assert read_imatrix(old).chunks == 0
    new = tmp_path / "new.gguf"
    entries = {"e": Entry(np.array([2, 4, 9, 9], np.float32), np.array([2, 0], np.float32))}
    write_imatrix(new, Imatrix(entries, 3, 16), ("x",))
    # an expert that saw nothing counts alike in all columns
    assert read_imatrix(new).weights()["e"].tolist() == [1.0, 2.0, 1.0, 1.0]
    assert imatrix_file(tmp_path) == new


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\1\0\0\0", struct.pack("<i", -1), struct.pack("<i", 1 << 30), _legacy({"a": (1, [1.0])}, b"x"),
        _legacy({"a": (1, [1.0])})[:-1], struct.pack("<ii", 1, -5), struct.pack("<ii", 1, 1 << 29),
        struct.pack("<ii", 1, 1) + b"\xff" + struct.pack("<iif", 1, 1, 1.0), _legacy({"a": (1, [])}),
        struct.pack("<i", 2) + _legacy({"a": (1, [1.0])})[4:] * 2,
    ],
)  # fmt: skip
def test_what_is_no_matrix_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.dat").write_bytes(data)
    with pytest.raises(RefusedInput, match="no importance matrix") as caught:
        read_imatrix(tmp_path / "x.dat")
    assert caught.value.code == "E-IMATRIX"
    assert caught.value.what.startswith("'imatrix': ")  # a parameter's file is called 'content' here


@pytest.mark.parametrize("fault", ["nothing", "half", "values"])
def test_a_gguf_that_is_no_matrix_is_refused(tmp_path: Path, fault: str) -> None:
    from ingot.kit.gguf.writer import TensorInfo, texts, u32, write_gguf

    path = tmp_path / "x.gguf"
    keys = [texts("imatrix.datasets", ()), u32("imatrix.chunk_count", 1), u32("imatrix.chunk_size", 1)]
    if fault == "nothing":
        write_gguf(path, keys, [], [])
    elif fault == "half":
        data = memoryview(np.ones(3, np.float32).tobytes())
        write_gguf(path, keys, [TensorInfo("a.in_sum2", (1, 3), "F32")], [data])
    else:
        entry = Entry(np.array([np.inf, 1], np.float32), np.array([1], np.float32))
        write_imatrix(path, Imatrix({"a": entry}, 1, 1), ())
    with pytest.raises(RefusedInput) as caught:
        read_imatrix(path).weights()
    assert caught.value.code == "E-IMATRIX"


def test_a_folder_without_a_matrix(tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match="holds no importance matrix"):
        imatrix_file(tmp_path)


def test_too_few_tokens_are_refused(wide: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match="fewer than one text of 512") as caught:
        run_stage("imatrix", {"documents": 1}, {"model": wide, "calibration": data}, tmp_path)
    assert caught.value.code == "E-DATASET-EMPTY"


def test_texts_are_cut_as_llama_cpps_tool_cuts() -> None:
    assert cut(range(7), 3, None) == [[0, 1, 2], [3, 4, 5]]
    assert cut(range(6), 3, 9) == [[9, 1, 2], [9, 4, 5]]
    assert cut(range(2), 3, 9) == []


def test_an_error_in_the_callback_ends_the_run(
    wide: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: collect.Collector, _node: GgmlTensor) -> None:
        raise StageFailed("E-IMATRIX", "planted")

    monkeypatch.setattr(collect.Collector, "see", broken)
    with pytest.raises(StageFailed, match="planted"):
        run_stage("imatrix", {"context": CONTEXT}, {"model": wide, "calibration": data}, tmp_path)


class _Moved(ctypes.Structure):
    """A tensor with one field more in its middle."""

    _fields_ = [*GgmlTensor._fields_[:5], ("added", ctypes.c_int64), *GgmlTensor._fields_[5:]]


def test_another_layout_of_tensors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert product_op(ggml().library) > 0
    monkeypatch.setattr(watch, "GgmlTensor", _Moved)
    with pytest.raises(StageFailed, match="laid out otherwise") as caught:
        product_op(ggml().library)
    assert caught.value.code == "E-GGML"


def test_what_is_measured(wide: Path, data: Path, made: Path, tmp_path: Path) -> None:
    done = run_done("imatrix", {"context": CONTEXT, "documents": 6}, {"model": wide, "calibration": data}, tmp_path)
    matrix = read_imatrix(tmp_path / "out" / "imatrix.gguf")
    assert done.metrics["entries"].value == len(matrix.entries) == 14
    assert done.metrics["chunks"].value * CONTEXT == done.metrics["tokens"].value
    assert done.metrics["chunks"].value < read_imatrix(made / "imatrix.gguf").chunks
    assert load_kind("imatrix").produces == "imatrix"
