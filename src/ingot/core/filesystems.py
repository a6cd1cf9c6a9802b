"""On which kind of file system a folder lies, as the system says, and what that means for what is promised.

A network file system may hide another machine's locks, serve stale folders and report a lost write when it is too late,
so a build on one is refused (E-FS-NETWORK) unless ``INGOT_ALLOW_NETWORK_FS=1`` says that only one machine uses it.
Linux alone says what is mounted where; elsewhere nothing is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ingot.errors import DiskFailed

ALLOW = "INGOT_ALLOW_NETWORK_FS"

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = frozenset(
    {"9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs"}
    | {"nfs4", "ocfs2", "orangefs", "prl_fs", "pvfs2", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs"}
)
#: FUSE that stands for a local file system.
_LOCAL_FUSE = frozenset({"fuseblk", "fuse.fuse-overlayfs"})
#: What a power cut, or the end of a container, takes away.
_FLEETING = {
    "tmpfs": "which lies in memory: nothing there outlives a restart",
    "ramfs": "which lies in memory: nothing there outlives a restart",
    "overlay": "a container's own file system: nothing there outlives the container, so mount a volume",
    "fuse.fuse-overlayfs": "a container's own file system: nothing there outlives the container, so mount a volume",
}


def kind_of(path: Path, mounts: str | None = None) -> str:
    """The type of the file system that ``path`` (or what exists above it) lies on; empty where nobody says.

    ``mounts`` is the text of ``/proc/self/mountinfo``, by default this system's.
    """
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text("utf-8", "surrogateescape")
        except OSError:
            return ""
    real, best, kind = os.path.realpath(path), -1, ""
    for point, name in _mounted(mounts):
        # Of several mounts on one folder the last one hides the others.
        if len(point) >= best and (real == point or real.startswith(point.rstrip("/") + "/")):
            best, kind = len(point), name
    return kind


def _mounted(mounts: str) -> Iterable[tuple[str, str]]:
    """(mount point, type) of each line: the point is the fifth field, the type the first after the hyphen."""
    for line in mounts.splitlines():
        before, hyphen, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if hyphen and len(fields) > 4 and rest[0]:
            yield re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]), rest[0]


def is_network(kind: str) -> bool:
    """Whether a type of file system is served by another machine, or by a program that may be anything."""
    return kind in _NETWORK or (kind.startswith("fuse") and kind not in _LOCAL_FUSE)


def require_local(places: Iterable[Path], mounts: str | None = None, environ: Mapping[str, str] = os.environ) -> None:
    """DiskFailed (E-FS-NETWORK) when one of the folders lies on a network file system, unless that is allowed."""
    if environ.get(ALLOW) == "1":
        return
    for place in places:
        kind = kind_of(place, mounts)
        if is_network(kind):
            raise DiskFailed(
                "E-FS-NETWORK",
                f"{place} lies on a network file system ({kind})",
                facts=["there, locks and writes of several machines are not safe, and a lost write may go unseen"],
                hint=f"work on a local disk; when only this machine uses the folder: {ALLOW}=1 doit",
            )


def warnings(places: Iterable[Path], mounts: str | None = None) -> list[str]:
    """What a person should know of file systems that keep nothing: one sentence a kind."""
    found: dict[str, str] = {}
    for place in places:
        kind = kind_of(place, mounts)
        if kind in _FLEETING:
            found.setdefault(kind, f"{place} lies on {kind}, {_FLEETING[kind]}")
    return list(found.values())
