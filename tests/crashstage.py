"""The stage of ``crashlab``: writes small files in this process, by the functions that a ``Machine`` sees."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingot.core.executor import Outcome


class Stage:
    """Stands for the executor: writes what the parameters say."""

    def run(self, job: Mapping[str, Any], _log: Path, _lock_fd: int, _listener: object) -> Outcome:
        out = Path(job["out"])
        identity = repr((job["params"], job["digests"])).encode()
        if job["digests"]:
            for number in range(6):
                _write(out / f"{'long-name-' * 20}{number}", hashlib.sha256(identity).digest() * (number + 1))
        else:
            (out / "deep").mkdir()
            _write(out / "deep" / "weights", identity * 20, b"the second half" * 40)
            _write(out / "card", hashlib.sha256(identity).digest())
        return Outcome({}, "isolated", 0.0, None, None)

    def close(self) -> None:
        """Nothing was started."""


def _write(path: Path, *parts: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    for part in parts:
        os.write(descriptor, part)
    os.close(descriptor)
