"""Pickles are known by their bytes; ordinary files are not taken for them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from ingot.core.pickles import find_pickle, is_pickle, refuse_pickles
from ingot.errors import RefusedInput
from plantkit import Harmful, pickled, tarred, zipped


def bad_tar() -> bytes:
    """A tar whose first header has a right checksum and no size."""
    block = bytearray(tarred({"a.txt": b"x"}))
    block[124:136], block[148:156] = b"z" * 12, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


PICKLE = pickled(2)
OBJECTS = b"\x93NUMPY\x01\0\x46\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(80)


@pytest.mark.fault("M1", "a pickle of each protocol, short, and cut off by the limit of what is read")
@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_is_known(protocol: int) -> None:
    assert is_pickle(pickle.dumps(Harmful(), protocol=protocol))
    long = pickle.dumps([Harmful()] * 20_000, protocol=protocol)
    assert is_pickle(long[: 1 << 16])


@pytest.mark.fault("M1", "a pickle of which one part claims more bytes than any file has")
@pytest.mark.parametrize("length", [1 << 33, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_what_comes_before_a_part_without_end_counts(tmp_path: Path, length: int) -> None:
    endless = b"\x8e" + length.to_bytes(8, "little") + b"x"
    for start, found in ((PICKLE[:-1], True), (b"S'text'\n", False)):
        (tmp_path / "x").write_bytes(start + endless)
        assert is_pickle(start + endless) is found
        assert (find_pickle(tmp_path / "x") is not None) is found


@pytest.mark.fault("M1", "an archive with a pickle under an empty name")
def test_a_member_without_a_name_is_looked_into(tmp_path: Path) -> None:
    for content, found in ((PICKLE, True), (b"text", False)):
        data = bytearray(zipped({"a": content}))
        # What was the name's one byte is an extra field now, in the member's header and in the directory at the end.
        for at in (26, data.index(b"PK\x01\x02") + 28):
            data[at : at + 4] = b"\0\0\1\0"
        (tmp_path / "x").write_bytes(data)
        assert (find_pickle(tmp_path / "x") is not None) is found


@pytest.mark.fault("M1", "archives and arrays that hold pickles, as torch and numpy write them")
def test_what_holds_pickles_is_known(tmp_path: Path) -> None:
    data = pickle.dumps(Harmful())
    torch.save({"a": torch.ones(3)}, tmp_path / "zip.bin")
    torch.save({"a": torch.ones(3)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    np.save(tmp_path / "array.npy", np.array([Harmful()], dtype=object))
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
        archive.writestr("weights", data)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        entry = tarfile.TarInfo("weights")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(RefusedInput) as error:
            refuse_pickles(path)
        assert error.value.code == "E-FORMAT-PICKLE", path.name


def test_ordinary_files_pass(shared_data: Path, stories: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "numbers.npy", np.ones(4))
    (tmp_path / "text.txt").write_text("cat\ndog\n(and more).\n")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", "CMake is one.\n")
    files = [
        *tmp_path.iterdir(),
        *stories.iterdir(),
        *(shared_data / "sets/gsm8k").iterdir(),
        *Path(__file__).parent.glob("*.py"),
    ]
    for path in files:
        if path.is_file():
            assert find_pickle(path) is None, path
    refuse_pickles(stories)


@pytest.mark.parametrize(
    "wrapped",
    [
        gzip.compress(PICKLE, mtime=0), zlib.compress(PICKLE), bz2.compress(PICKLE), lzma.compress(PICKLE),
        lzma.compress(PICKLE, format=lzma.FORMAT_ALONE), zipped({"inner.zip": zipped({"a/data.pkl": PICKLE})}),
        tarred({"pickle.txt": b"x", "a.pickle": b""}), zipped({"a.pkl": b""}),
        zipped({"x.npz": zipped({"w.npy": OBJECTS})}),
        b"V" + b"x" * 200_000 + b"\n" + b"0" + pickle.dumps(Harmful(), protocol=0),
        b"N0" * 150_000,
    ],
)  # fmt: skip
@pytest.mark.fault("M1", "pickles compressed, nested, behind padding")
def test_wrappings_are_looked_into(tmp_path: Path, wrapped: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(wrapped)
    with pytest.raises(RefusedInput):
        refuse_pickles(tmp_path)


@pytest.mark.parametrize(
    "harmless",
    [
        gzip.compress(b"rows", mtime=0), b"\x1f\x8bbroken", b"BZhbroken",
        b"PK\x03\x04" + b"\0" * 40 + b"PK\x05\x06" + b"\0" * 18, bad_tar(),
        zipped({"folder/": b"", "a.csv": b"1,2\n"}), tarred({"a.txt": b"x"}),
        zipped({"a": gzip.compress(b"x", mtime=0)}),
        zipped({"a": b"x"}).replace(b"PK\x03\x04", b"PK\x03\x05"),
        b"\x89HDF\r\n\x1a\n" + b"\0" * 100, b"", b"t", b"(", b"cat\ndog\nRun", b"S'never closed",
        tarred({"a.txt": b"x"})[:512] + b"\xff" * 600, b"\x80\x02" + b"\0" * 6 + b"{}",
    ],
)  # fmt: skip
def test_what_only_looks_so_passes(tmp_path: Path, harmless: bytes) -> None:
    (tmp_path / "x").write_bytes(harmless)
    assert find_pickle(tmp_path / "x") is None
