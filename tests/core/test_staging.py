"""What lies beside an artifact while it is built is measured, and nothing that vanishes meanwhile is in the way."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ingot.core import staging
from ingot.core.staging import Staging, Watch, bytes_below


def test_bytes_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "deep" / "er" / "b").write_bytes(b"4567")
    (tmp_path / "deep" / "link").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    assert bytes_below(tmp_path) == 7, "each file once; a link takes no room"
    assert bytes_below(tmp_path / "not there") == 0


def test_a_file_that_is_gone_at_the_end_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_LOOK_S", 0.001)
    made = Staging(tmp_path, -1)
    for folder in (made.scratch, made.sources):
        folder.mkdir()
    (made.sources / "snapshot").write_bytes(b"x" * 10)
    seen = threading.Event()
    looked = made.__class__.bytes_beside

    def look(self: Staging) -> int:
        found = looked(self)
        if found > 10:
            seen.set()
        return found

    monkeypatch.setattr(Staging, "bytes_beside", look)
    with Watch(made) as watch:
        (made.scratch / "temporary").write_bytes(b"x" * 100)
        assert seen.wait(30)
        (made.scratch / "temporary").unlink()
    assert watch.most == 110
    assert made.bytes_beside() == 10
