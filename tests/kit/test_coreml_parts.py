"""The parts of the Core ML export that need no conversion: traced graphs, stored forms, blobs, a Mac's figures."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llama import make_llama
from torch import nn

from ingot.errors import StageFailed

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


@pytest.mark.parametrize(
    "sizes",
    [
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 4, "head_dim": 8},
    ],
    ids=["untied-biased", "no-grouping"],
)
def test_the_traced_module_computes_what_transformers_computes(tmp_path: Path, sizes: dict[str, Any]) -> None:
    from ingot.kit.coreml.prefill import Prefill
    from ingot.kit.decoder.build import build_decoder
    from ingot.kit.decoder.layers import Form
    from ingot.kit.decoder.shape import decoder_shape
    from ingot.kit.hf import iter_tensors, load_model, read_config

    folder = make_llama(tmp_path / "hf", **sizes)
    shape = decoder_shape(read_config(folder), "E-COREML-ARCH")
    module = Prefill(build_decoder(shape, iter_tensors(folder), Form(), "E-COREML-TENSOR"), 64)
    reference = load_model(folder, "float32")
    for length in (1, 7, 64):
        ids = torch.randint(300, (1, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            torch.testing.assert_close(module(ids.int()), reference(input_ids=ids).logits, atol=2e-4, rtol=1e-4)


def test_the_norm_survives_large_activations_in_float16() -> None:
    """Squares of 1,000 overflow in fp16; the norm divides first."""
    from ingot.kit.decoder.layers import RmsNorm

    norm = RmsNorm(64, 1e-5)
    for scale in (1e-4, 1.0, 3e4):
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).clamp(-2, 2) * scale
        wanted = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        torch.testing.assert_close(norm(x), wanted)
        torch.testing.assert_close(norm.half()(x.half()).float(), wanted, atol=2e-3, rtol=5e-3)
        norm.float()


class _Masked(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """Attention whose mask is made of positions of a given type."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("places", torch.arange(4, dtype=kind))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = self.places + 1
        hidden = (places[None] > places[:, None]).to(x.dtype) * -1e4
        return torch.softmax(x @ x.transpose(-1, -2) + hidden, dim=-1) @ x


def test_int64_on_the_way_to_attention_is_found_before_conversion() -> None:
    from ingot.kit.coreml.traced import refuse_wide_integers

    x = torch.zeros(1, 4, 8)
    refuse_wide_integers(torch.jit.trace(_Masked(torch.int32), x))
    with pytest.raises(StageFailed, match="int64") as caught:
        refuse_wide_integers(torch.jit.trace(_Masked(torch.int64), x))
    assert caught.value.code == "E-COREML-INT64"
    assert [fact.split()[0] for fact in caught.value.facts[:2]] == ["buffer", "aten::add"]


def test_int64_ids_are_found_too() -> None:
    from ingot.kit.coreml.traced import refuse_wide_integers

    class Model(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(8, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.embed(ids)
            return x @ x.transpose(-1, -2)

    with torch.no_grad():
        refuse_wide_integers(torch.jit.trace(Model(), torch.zeros(1, 3, dtype=torch.int32)))
        with pytest.raises(StageFailed, match="int64") as caught:
            refuse_wide_integers(torch.jit.trace(Model(), torch.zeros(1, 3, dtype=torch.int64)))
    assert caught.value.facts == ("input ids",)


def _settings(**given: Any) -> Any:
    from ingot.kit.coreml.settings import Lengths, Settings

    return Settings(Lengths.of(8), **{"target": "iOS18", **given})


def _matrix(rows: int = 24, columns: int = 64, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(0, 0.3, (rows, columns)).astype(np.float16)


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
@pytest.mark.parametrize("weights", ["int8", "int4", "palettized4", "palettized6", "palettized8"])
def test_what_a_matrix_becomes_has_the_sizes_and_types_that_were_announced(weights: str, target: str) -> None:
    from ingot.kit.coreml.encode import encode, parts, stored_bytes

    if weights == "int4" and target == "iOS17":
        pytest.skip("iOS 17 has no integers of four bits")
    settings = _settings(weights=weights, target=target, block=32 if weights == "int4" else 0)
    announced = parts((24, 64), settings)
    found = encode(_matrix(), settings)
    assert set(found) == set(announced)
    for name, (sizes, kind) in announced.items():
        assert found[name].shape == sizes
        assert found[name].dtype == kind
        assert stored_bytes(found[name], kind) == stored_bytes(encode(_matrix(), settings)[name], kind)


@pytest.mark.parametrize("width", [4, 6, 8])
def test_a_palette_is_the_nearest_that_there_is(width: int) -> None:
    """Exact k-means of coremltools over the same numbers, and each weight by its nearest entry."""
    from coremltools.models.neural_network.quantization_utils import _get_kmeans_lookup_table_and_weight

    from ingot.kit.coreml.encode import encode

    weight = _matrix(48, 64)
    found = encode(weight, _settings(weights=f"palettized{width}"))
    table = found["lut"].reshape(-1).astype(np.float64)
    lut, wanted = _get_kmeans_lookup_table_and_weight(width, weight, force_kmeans1d=True)
    np.testing.assert_array_equal(table[found["indices"]].reshape(-1), lut.astype(np.float16)[wanted])
    exact = lut[found["indices"]]
    nearest = np.abs(weight[..., None].astype(np.float64) - lut[: len(np.unique(weight))]).min(-1)
    np.testing.assert_allclose(np.abs(weight - exact), nearest, atol=1e-12)


def test_groups_of_rows_have_tables_of_their_own() -> None:
    from ingot.kit.coreml.encode import encode

    weight = np.concatenate([_matrix(8), 10 * _matrix(16, seed=1)])
    found = encode(weight, _settings(weights="palettized4", block=8))
    assert found["lut"].shape == (3, 1, 16, 1)
    for group in range(3):
        alone = encode(weight[8 * group : 8 * group + 8], _settings(weights="palettized4"))
        np.testing.assert_array_equal(found["lut"][group], alone["lut"][0])
        np.testing.assert_array_equal(found["indices"][8 * group : 8 * group + 8], alone["indices"])


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from ingot.kit.coreml import encode

    wanted: dict[str, dict[str, bytes]] = {}
    for piece in (1 << 20, 256):
        monkeypatch.setattr(encode, "_PIECE", piece)
        for weights in ("int8", "int4", "palettized6"):
            settings = _settings(weights=weights, block=32 if weights == "int4" else 0)
            parts = encode.parts((24, 64), settings)
            found = {k: encode.stored_bytes(v, parts[k][1]) for k, v in encode.encode(_matrix(), settings).items()}
            assert wanted.setdefault(weights, found) == found


def _file(path: Path, *values: bytes) -> Path:
    """A file of blobs as coremltools' own writer makes it."""
    from coremltools.libmilstoragepython import _BlobStorageWriter

    writer = _BlobStorageWriter(str(path))
    for value in values:
        writer.write_uint8_data(np.frombuffer(value, np.uint8))
    del writer
    return path


def test_what_two_files_share_is_stored_once(tmp_path: Path) -> None:
    from ingot.kit.coreml.blobs import append_missing, blob_at, blobs

    same, one, two = bytes(range(200)), b"a" * 70, b"b" * 64
    first, second = _file(tmp_path / "a", same, one), _file(tmp_path / "b", two, same)
    with second.open("rb") as file:
        before = [(blob.record, blob.size) for blob in blobs(file)]
    moved = append_missing(first, second)
    assert first.read_bytes() == _file(tmp_path / "c", same, one, two).read_bytes()
    with first.open("rb") as file:
        for (record, size), value in zip(before, (two, same), strict=True):
            blob = blob_at(file, moved[record])
            file.seek(blob.begin)
            assert (blob.size, file.read(size)) == (size, value)


def test_a_place_without_a_blob_is_refused(tmp_path: Path) -> None:
    from ingot.kit.coreml.blobs import blob_at

    path = _file(tmp_path / "a", b"x" * 64)
    with path.open("rb") as file:
        assert blob_at(file, 64).size == 64
        for record in (0, 128, 1 << 20):
            with pytest.raises(StageFailed, match=f"no blob at byte {record}"):
                blob_at(file, record)
    path.write_bytes(path.read_bytes()[:64] + struct.pack("<IIQQQ", 0xDEADBEEF, 3, 64, 0, 0).ljust(128, b"\0"))
    with path.open("rb") as file, pytest.raises(StageFailed, match="no blob"):
        blob_at(file, 64)


def test_a_mac_is_asked_on_a_mac_only(tmp_path: Path) -> None:
    from ingot.kit.coreml import mac

    if sys.platform != "darwin":
        assert mac.measure(tmp_path, _settings(), "ALL") == {}
    devices = ["MLNeuralEngineComputeDevice", "MLCPUComputeDevice", None, "MLNeuralEngineComputeDevice"]
    found = mac.residency("main", devices)
    assert {name: metric.value for name, metric in found.items()} == {
        "main_on_cpu": 1, "main_on_gpu": 0, "main_on_neural_engine": 2,
    }  # fmt: skip
    with pytest.raises(ValueError, match="TPU"):
        mac.residency("main", ["TPU"])
