"""How much memory is available: of the machine, or of the control group that allows less."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingot.core import procfs

GB = 1 << 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of 16 GiB, half of it available; the process is in the group ``/box/job``."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: {16 * GB // 1024} kB\nMemAvailable: {8 * GB // 1024} kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("4:cpu:/box/job\n0::/box/job\n")
    return tmp_path


def group(root: Path, name: str, limit: int | str, used: int, stat: str = "inactive_file 0") -> None:
    folder = root / "sys" / "fs" / "cgroup" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{stat}\n")


def test_without_a_group_the_machine_counts(root: Path) -> None:
    assert procfs.available(root) == (8 * GB, 16 * GB)
    group(root, "box/job", "max", 5)
    assert procfs.available(root) == (8 * GB, 16 * GB)
    (root / "proc" / "self" / "cgroup").unlink()
    assert procfs.available(root) == (8 * GB, 16 * GB)


def test_a_group_that_allows_less_counts(root: Path) -> None:
    group(root, "box/job", 4 * GB, 3 * GB)
    assert procfs.available(root) == (GB, 4 * GB)
    group(root, "box/job", 4 * GB, 3 * GB, f"inactive_file {2 * GB}")
    assert procfs.available(root) == (3 * GB, 4 * GB), "clean pages of files can be taken back"
    group(root, "box", 2 * GB, 3 * GB)
    assert procfs.available(root) == (0, 2 * GB), "the group around it allows less"
    group(root, "box", 64 * GB, 0)
    assert procfs.available(root) == (3 * GB, 4 * GB), "more than there is, is no limit"


def test_a_group_of_the_first_version_counts(root: Path) -> None:
    (root / "proc" / "self" / "cgroup").write_text("9:name=systemd:/\n4:memory:/box\n")
    folder = root / "sys" / "fs" / "cgroup" / "memory" / "box"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(str(4 * GB))
    (folder / "memory.usage_in_bytes").write_text(str(2 * GB))
    (folder / "memory.stat").write_text(f"inactive_file 0\ntotal_inactive_file {GB}\n")
    assert procfs.available(root) == (3 * GB, 4 * GB)


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert procfs.available(tmp_path) == (0, 0)
