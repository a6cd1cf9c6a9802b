"""``cache/latest/``: links to the results in force, for people."""

from __future__ import annotations

import os
from pathlib import Path

from ingot.core import disk


class Latest:
    """The folder ``latest/`` of a store. No command reads a result through it."""

    root: Path

    def object_path(self, digest: str) -> Path:
        """Where an object lies, or would lie."""
        return self.root / "objects" / digest[:2] / digest

    def link_latest(self, spec: str, name: str, digest: str) -> Path:
        """Point ``cache/latest/<spec>/<target>`` at an object; returns the link."""
        folder = self.root / "latest" / spec
        # Whatever the umask, others may not put links where a person looks for results.
        disk.make_dirs(folder)
        link = folder / name
        goal = os.path.relpath(self.object_path(digest), folder)
        if not link.is_symlink() or os.readlink(link) != goal:
            disk.replace_link(link, goal)
        return link

    def has_latest(self, spec: str, name: str, digest: str) -> bool:
        """Whether the link of a target points at this object."""
        folder = self.root / "latest" / spec
        try:
            return os.readlink(folder / name) == os.path.relpath(self.object_path(digest), folder)
        except OSError:
            return False

    def is_linked(self, spec: str, name: str) -> bool:
        """Whether a target has a link at all."""
        return (self.root / "latest" / spec / name).is_symlink()

    def unlink_latest(self, spec: str, name: str) -> bool:
        """Remove the link of a target; whether there was one."""
        link = self.root / "latest" / spec / name
        if not link.is_symlink():
            return False
        link.unlink()
        return True
