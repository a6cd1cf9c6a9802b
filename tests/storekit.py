"""Artifacts put into a store, without a project around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingot.core.store import Store

FILES = {"a.txt": b"alpha", "deep/er/b.bin": bytes(range(256)) * 64, "with space": b"", "uni-é": b"x"}


def publish(store: Store, files: Mapping[str, bytes]) -> tuple[str, list[dict[str, Any]]]:
    """The digest and the file list of an artifact of these files."""
    with store.staging() as staging:
        for name, data in files.items():
            path = staging.out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        digest, records = store.publish(staging)
    return digest, [record.to_dict() for record in records]
