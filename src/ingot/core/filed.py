"""What is known of each key, filed for a quick look: derived from the registry, and made again from it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ingot.core import disk
from ingot.core.seal import Seal


class Filed:
    """The folder ``results/`` of a store: the receipts of a key in a file each, which counts under ``seal`` alone."""

    root: Path
    seal: Seal

    def read_result(self, key: str) -> list[dict[str, Any]]:
        """The receipts seen for a key, oldest first; empty when none is known."""
        return self.result(key) or []

    def result(self, key: str) -> list[dict[str, Any]] | None:
        """As ``read_result``; None when there is a file and it is damaged, or was written by another (``seal``).

        Results are not synced, so a power cut can damage them.
        """
        path = self.root / "results" / f"{key}.json"
        try:
            data = json.loads(self.seal.unwrap(f"results/{key}.json", path.read_bytes()) or b"")
        except FileNotFoundError:
            return []
        except ValueError:
            return None
        except OSError as error:
            raise disk.failure(error, path) from error
        builds = data.get("builds") if isinstance(data, dict) and data.get("format") == 1 else None
        return builds if isinstance(builds, list) else None

    def file_results(self, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """File all results anew, by key; what is not among them is dropped. Called under the lock of who files.

        Each file is replaced whole and none is missing meanwhile: others read without the lock, and one that found
        nothing would build again what is there.
        """
        folder = self.root / "results"
        disk.make_dirs(folder)
        for key, builds in results.items():
            self._file(key, builds)
        with disk.explained(folder):
            for name in sorted(set(os.listdir(folder)) - {f"{key}.json" for key in results}):
                (folder / name).unlink(missing_ok=True)

    def add_result(self, key: str, receipt: Mapping[str, Any]) -> None:
        """File one receipt under its key; the same entry (origin, index) is filed once."""
        builds = self.read_result(key)
        place = (receipt["origin"], receipt["index"])
        if place not in [(build["origin"], build["index"]) for build in builds]:
            disk.make_dirs(self.root / "results")
            self._file(key, [*builds, receipt])

    def _file(self, key: str, builds: Sequence[Mapping[str, Any]]) -> None:
        listed = sorted(builds, key=lambda build: (_since(build), str(build["origin"]), int(build["index"])))
        text = json.dumps({"format": 1, "key": key, "builds": listed}, separators=(",", ":"), sort_keys=True)
        name = f"results/{key}.json"
        disk.write_file_atomic(self.root / name, self.seal.wrap(name, text.encode()), durable=False)


def _since(result: Mapping[str, Any]) -> str:
    """When a result was built, or accepted under its key."""
    return str(result["accepted"]["time"] if "accepted" in result else result["timings"]["finished"])
