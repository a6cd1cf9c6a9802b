"""GGUF files bent in every field are refused before any library sees them."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from ggufkit import raw_gguf, tensor_info, text, write_llama
from ingot.errors import RefusedInput
from ingot.kit.gguf.reader import find_gguf, read_gguf

KEY = text("general.alignment") + struct.pack("<II", 4, 32)
INFO = tensor_info("a", [32], 0, 0)
HUGE = struct.pack("<Q", 1 << 62)


@pytest.mark.fault("M6", "a GGUF bent in each field")
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GGUF", "E-GGUF-LENGTH"),
        (raw_gguf(magic=b"GGML"), "E-GGUF-MAGIC"),
        (raw_gguf(version=1), "E-GGUF-VERSION"),
        (raw_gguf(version=3 << 24), "E-GGUF-VERSION"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "E-GGUF-COUNT"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "E-GGUF-COUNT"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 16, 0), "E-GGUF-LENGTH"),
        (raw_gguf([HUGE + b"key"]), "E-GGUF-LENGTH"),
        (raw_gguf([text("k") + struct.pack("<I", 8) + HUGE]), "E-GGUF-LENGTH"),
        (raw_gguf([text("k") + struct.pack("<II", 9, 4) + HUGE]), "E-GGUF-LENGTH"),
        (raw_gguf([text("k") + struct.pack("<II", 9, 8) + HUGE]), "E-GGUF-LENGTH"),
        (raw_gguf([text("k") + struct.pack("<IIQ", 9, 9, 0)]), "E-GGUF-VALUE"),
        (raw_gguf([text("k") + struct.pack("<I", 99)]), "E-GGUF-VALUE"),
        (raw_gguf([struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", 4, 1)]), "E-GGUF-VALUE"),
        (raw_gguf([KEY, KEY]), "E-GGUF-DUPLICATE"),
        (raw_gguf([text("general.alignment") + struct.pack("<II", 4, 33)]), "E-GGUF-VALUE"),
        (raw_gguf([text("general.alignment") + struct.pack("<II", 4, 0)]), "E-GGUF-VALUE"),
        (raw_gguf(tensors=[tensor_info("a", [], 0, 0)]), "E-GGUF-VALUE"),
        (raw_gguf(tensors=[tensor_info("a", [1] * 5, 0, 0)]), "E-GGUF-VALUE"),
        (raw_gguf(tensors=[tensor_info("a", [0], 0, 0)]), "E-GGUF-VALUE"),
        (raw_gguf(tensors=[tensor_info("a", [1 << 40, 1 << 40], 0, 0)]), "E-GGUF-VALUE"),
        (raw_gguf(tensors=[tensor_info("a", [33], 8, 0)], data=b"\0" * 64), "E-GGUF-VALUE"),
        (raw_gguf(tensors=[tensor_info("a", [32], 4000, 0)], data=b"\0" * 128), "E-GGUF-TYPE"),
        (raw_gguf(tensors=[INFO], data=b"\0" * 127), "E-GGUF-BOUNDS"),
        (raw_gguf(tensors=[tensor_info("a", [32], 0, 4)], data=b"\0" * 256), "E-GGUF-BOUNDS"),
        (raw_gguf(tensors=[tensor_info("a", [32], 0, (1 << 64) - 32)], data=b"\0" * 128), "E-GGUF-BOUNDS"),
        (raw_gguf(tensors=[INFO, INFO], data=b"\0" * 128), "E-GGUF-DUPLICATE"),
        (raw_gguf(tensors=[INFO, tensor_info("b", [32], 0, 96)], data=b"\0" * 256), "E-GGUF-OVERLAP"),
    ],
)
def test_a_bent_file_is_refused(tmp_path: Path, data: bytes, code: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(RefusedInput) as error:
        read_gguf(path)
    assert error.value.code == code


@pytest.mark.fault("M6", "a GGUF with bytes changed or cut off at random")
def test_random_damage_is_refused_or_read_but_never_a_crash(tmp_path: Path) -> None:
    good = write_llama(tmp_path / "good.gguf").read_bytes()
    path = tmp_path / "bad.gguf"
    rng = random.Random(1)
    refused = 0
    for _ in range(300):
        data = bytearray(good[: rng.choice([len(good), rng.randrange(len(good))])])
        for _ in range(rng.randrange(4)):
            data[rng.randrange(min(len(data), 8000))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            read_gguf(path)
        except RefusedInput:
            refused += 1
    assert 100 < refused < 300


def test_tensors_and_metadata_equal_those_of_the_reference_reader(stories_gguf: Path) -> None:
    ours, theirs = read_gguf(stories_gguf), gguf.GGUFReader(stories_gguf)
    assert {info.name for info in ours.tensors} == {tensor.name for tensor in theirs.tensors}
    by_name = {info.name: info for info in ours.tensors}
    for tensor in theirs.tensors:
        np.testing.assert_array_equal(ours.dequantized(by_name[tensor.name]).ravel(), tensor.data.ravel())
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            value = ours.metadata[key]
            assert (value.tolist() if isinstance(value, np.ndarray) else value) == field.contents()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "F16", "BF16"])
def test_quantized_tensors_are_dequantized_row_by_row(tmp_path: Path, kind: str) -> None:
    known = gguf.GGMLQuantizationType[kind]
    weights = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)
    packed = gguf.quants.quantize(weights, known)
    path = tmp_path / "x.gguf"
    path.write_bytes(raw_gguf(tensors=[tensor_info("a", [64, 5], known.value, 0)], data=packed.tobytes()))
    found = read_gguf(path)
    got = found.dequantized(found.tensors[0])
    assert got.shape == (5, 64)
    np.testing.assert_array_equal(got, gguf.quants.dequantize(packed, known))


def test_a_gguf_is_found_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_bytes(b"no weights")
    assert find_gguf(tmp_path) is None
    (tmp_path / "file").write_bytes(raw_gguf())
    assert find_gguf(tmp_path) == tmp_path / "file"
    (tmp_path / "other").write_bytes(raw_gguf())
    with pytest.raises(RefusedInput) as error:
        find_gguf(tmp_path)
    assert error.value.code == "E-GGUF-MANY"
