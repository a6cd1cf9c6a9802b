"""Pickles are known by their bytes; ordinary files are not taken for them."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ingot.core.pickles import find_pickle, is_pickle, refuse_pickles
from ingot.errors import RefusedInput


class Harmful:
    """Would run a program when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("true",))


@pytest.mark.fault("M1", "a pickle of each protocol, short, and cut off by the limit of what is read")
@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_is_known(protocol: int) -> None:
    assert is_pickle(pickle.dumps(Harmful(), protocol=protocol))
    long = pickle.dumps([Harmful()] * 20_000, protocol=protocol)
    assert is_pickle(long[: 1 << 16])


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
