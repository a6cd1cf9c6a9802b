"""Write artifacts and entries into a sandbox as a build would, or as a liar with the key would."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ingot.core.audit import Audit, audit
from ingot.core.digest import FileRecord
from ingot.core.key import key_of
from ingot.core.log import logs_in
from ingot.core.registry import Registry
from ingot.core.seal import Seal
from ingot.core.statement import build_statement, receipt_of
from ingot.core.store import Store
from projectkit import Sandbox


def registry_of(sandbox: Sandbox) -> Registry:
    """The sandbox's registry with its own keys and pins."""
    root = sandbox.root
    return Registry(
        root / "registry",
        lock_file=root / "ingot.lock",
        quarantine=root / "cache" / "quarantine",
        keys=sandbox.home / "config" / "ingot" / "keys",
        pins=sandbox.home / "state" / "ingot" / "pins",
    )


def store_of(sandbox: Sandbox) -> Store:
    """The sandbox's store, opened by its user."""
    return Store(sandbox.root / "cache", Seal(sandbox.home / "state" / "ingot" / "seal"))


def audited(sandbox: Sandbox) -> Audit:
    """The audit of a sandbox, in this process."""
    origins = [log.origin for log in logs_in(sandbox.root / "registry")]
    return audit(registry_of(sandbox), store_of(sandbox), origins, lambda _done, _total: None)


def codes(sandbox: Sandbox) -> list[str]:
    """The codes of all problems that an audit finds."""
    return sorted({problem.code for problem in audited(sandbox).problems})


def receipts(sandbox: Sandbox) -> dict[str, dict[str, Any]]:
    """The newest receipt of each target, as the log has it."""
    registry = registry_of(sandbox)
    builds = [entry for entry in registry.entries() if entry.type == "build"]
    found = [receipt_of(entry.statement, registry.read_evidence) for entry in builds]
    return {receipt["target"]: receipt for receipt in found}


def object_of(sandbox: Sandbox, target: str) -> Path:
    """The folder of a target's artifact."""
    return store_of(sandbox).object_path(receipts(sandbox)[target]["digest"])


def publish(sandbox: Sandbox, files: Mapping[str, bytes]) -> tuple[str, Sequence[FileRecord]]:
    """Put an artifact into the store; its digest and its files. No entry names it yet."""
    store = store_of(sandbox)
    with store.staging() as staging:
        for name, content in files.items():
            path = staging.out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return store.publish(staging)


def append(sandbox: Sandbox, like: str, **changes: Any) -> dict[str, Any]:
    """Sign one more build like the newest of a target, with some fields changed; the key follows the key parts."""
    receipt = copy.deepcopy(receipts(sandbox)[like]) | changes
    if "key" not in changes:
        receipt["key"] = key_of(receipt["key_parts"])
    registry_of(sandbox).append([build_statement(receipt)])
    return receipt


def writable(path: Path) -> Path:
    """Make a file or folder of the store writable, as damage by another program does; gives the path."""
    os.chmod(path, 0o755 if path.is_dir() else 0o644)
    return path


def simple(name: str, *, content: str = "x", depends: str = "") -> str:
    """A ``command`` target that writes ``content``, and after it what its input wrote; it names no folder."""
    script = f"echo {content} > {{out}}/out.txt" + ("; cat {data}/out.txt >> {out}/out.txt" if depends else "")
    inputs = f", from: {{data: {depends}}}" if depends else ""
    return f"  {name}: {{kind: command, command: [sh, -c, {json.dumps(script)}]{inputs}}}\n"


def copied(template: Sandbox, folder: Path) -> Sandbox:
    """A copy of a built project with its keys and pins, that a test may change and damage."""
    shutil.copytree(template.root, folder / "project", symlinks=True)
    shutil.copytree(template.home, folder / "home")
    return Sandbox(folder / "project", folder / "home")
