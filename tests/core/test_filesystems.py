"""Where a project may lie: told from what the system says is mounted."""

from __future__ import annotations

from pathlib import Path

import pytest

import doitkit
from ingot.core import filesystems
from ingot.core.doctor import file_system
from ingot.core.filesystems import ALLOW, is_network, kind_of, require_local, warnings
from ingot.errors import DiskFailed
from projectkit import Sandbox
from recordkit import simple

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /home rw,nosuid shared:2 master:1 - nfs4 server:/export rw,vers=4.2
24 23 0:22 / /home/me/local rw - xfs /dev/vdb rw
25 22 0:23 / /mnt/a\\040b rw - cifs //server/share rw
26 22 0:24 / /mnt/over rw - ext4 /dev/vdc rw
27 26 0:25 / /mnt/over rw - fuse.sshfs me@there:/ rw
28 22 0:26 / /srv rw - fuseblk /dev/sdb1 rw
29 22 0:27 / /tmp rw - tmpfs tmpfs rw
not a line of this kind
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/homes", "ext4"),
        ("/home", "nfs4"),
        ("/home/me/project/cache", "nfs4"),
        ("/home/me/local/project", "xfs"),
        ("/mnt/a b/x", "cifs"),
        ("/mnt/over/x", "fuse.sshfs"),
        ("/srv/x", "fuseblk"),
    ],
)
def test_the_longest_mount_point_and_of_equals_the_last(path: str, kind: str) -> None:
    assert kind_of(Path(path), MOUNTS) == kind


def test_a_link_is_followed_to_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/home/me")
    assert kind_of(tmp_path / "link" / "cache", MOUNTS) == "nfs4"


def test_a_system_that_says_nothing_refuses_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(filesystems, "_MOUNTS", tmp_path / "none")
    assert kind_of(tmp_path) == ""
    require_local([tmp_path])


@pytest.mark.fault("D9", "the store lies on a network file system")
@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "vboxsf", "fuse.sshfs", "fuse", "ceph", "lustre"]
)
def test_a_network_file_system_is_refused(kind: str) -> None:
    assert is_network(kind)
    mounts = f"23 22 0:21 / /far rw - {kind} x rw\n"
    with pytest.raises(DiskFailed) as caught:
        require_local([Path("/far/project/cache")], mounts, {})
    assert (caught.value.code, caught.value.exit_code) == ("E-FS-NETWORK", 7)
    assert f"/far/project/cache lies on a network file system ({kind})" in str(caught.value)
    assert f"{ALLOW}=1" in str(caught.value)
    require_local([Path("/far/project/cache")], mounts, {ALLOW: "1"})


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "apfs", "tmpfs", "overlay", "fuseblk", ""])
def test_a_local_one_is_not(kind: str) -> None:
    assert not is_network(kind)


def test_doctor_says_it_before_a_build_does(monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = file_system(Path("/home/me/p/cache"), MOUNTS)
    assert (check.word, check.fix) == ("missing", f"export {ALLOW}=1  # if only this machine uses it")
    (check,) = file_system(Path("/tmp/p/cache"), MOUNTS)
    assert check.word == "note"
    assert list(file_system(Path("/home/me/local/cache"), MOUNTS)) == []
    monkeypatch.setenv(ALLOW, "1")
    assert list(file_system(Path("/home/me/p/cache"), MOUNTS)) == []


def test_what_keeps_nothing_is_said_once_a_kind() -> None:
    (said,) = warnings([Path("/tmp/p/cache"), Path("/tmp/p/registry"), Path("/srv/p")], MOUNTS)
    assert said == "/tmp/p/cache lies on tmpfs, which lies in memory: nothing there outlives a restart"
    overlay = "1 0 0:1 / / rw - overlay overlay rw\n"
    assert "mount a volume" in warnings([Path("/p/cache")], overlay)[0]


@pytest.mark.fault("D9", "the store lies on a network file system")
def test_a_build_is_refused_before_anything_runs(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = sandbox.home / "mountinfo"
    mounts.parent.mkdir()
    mounts.write_text(f"1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / {sandbox.root} rw - nfs4 x rw\n")
    monkeypatch.setattr(filesystems, "_MOUNTS", mounts)
    sandbox.spec("targets:\n" + simple("a"))
    with doitkit.prepared():
        code, text = doitkit.run(sandbox)
        assert code == 2
        assert f"E-FS-NETWORK: {sandbox.root}/cache lies on a network file system (nfs4)" in text
        assert not (sandbox.root / "registry").exists()
        assert doitkit.run(sandbox, "plan")[0] == 0, "looking is harmless"
        sandbox.extra_env[ALLOW] = "1"
        assert doitkit.run(sandbox)[0] == 0


@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_the_first_build_warns_of_what_does_not_last(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mounts = sandbox.home / "mountinfo"
    mounts.parent.mkdir()
    mounts.write_text(f"1 0 0:1 / / rw - {kind} x rw\n")
    monkeypatch.setattr(filesystems, "_MOUNTS", mounts)
    sandbox.spec("targets:\n" + simple("a"))
    with doitkit.prepared():
        assert f"note: {sandbox.root}/cache lies on {kind}" in doitkit.run(sandbox)[1]
        sandbox.spec("targets:\n" + simple("a", content="other"))
        assert "note:" not in doitkit.run(sandbox)[1], "it was said"
