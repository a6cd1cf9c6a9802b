"""Seals: whether a derived file is as this user's ingot wrote it, and in its place.

What is derived in ``cache/`` (the index, results, resolved specs, the stat cache) saves time and decides what is fresh.
A file there that was damaged, copied in, or written by somebody who can write to the cache must not decide anything.
So each is sealed with a secret that lies in the user's state folder, and one whose seal does not hold is as good as
absent: it is made anew from the logs and the specs, which prove themselves.

A sealed file is 64 hex digits, a line feed and the content; the digits are HMAC-SHA256 over the file's name below
``cache/``, a zero byte and the content. Losing the secret costs time only.
"""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path

from ingot.core import disk
from ingot.core.user_dirs import state_dir
from ingot.errors import DiskFailed

_SECRET_BYTES = 32


class Seal:
    """Seals and opens with the secret at ``path``, which is made when something is sealed for the first time.

    Without a path, or where the secret cannot be kept, what this object has sealed is opened by it alone.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._secret: bytes | None = None

    def wrap(self, name: str, content: bytes) -> bytes:
        """The content as a file named ``name`` (relative to ``cache/``) is written."""
        secret = self._known() or self._make()
        return _mac(secret, name, content) + b"\n" + content

    def unwrap(self, name: str, data: bytes) -> bytes | None:
        """The content of a file; None when it is not as it was sealed, or was sealed as another or by another."""
        mac, _, content = data.partition(b"\n")
        secret = self._known()
        return content if secret is not None and hmac.compare_digest(mac, _mac(secret, name, content)) else None

    def _known(self) -> bytes | None:
        if self._secret is None and self._path is not None:
            self._secret = _read(self._path)
        return self._secret

    def _make(self) -> bytes:
        made = secrets.token_bytes(_SECRET_BYTES)
        if self._path is not None:
            try:
                disk.make_dirs(self._path.parent, 0o700)
                # Not durable: after a power cut that loses it, or leaves it empty, another one is made.
                disk.write_file_atomic(self._path, made.hex().encode() + b"\n", 0o600, durable=False)
                # Of two processes that make one at once, both go on with the one that stays.
                made = _read(self._path) or made
            except DiskFailed:
                # A home that cannot be written to: the caches then help this process alone.
                pass
        self._secret = made
        return made


def user_seal() -> Seal:
    """The seal of this user: ``$XDG_STATE_HOME/ingot/seal``."""
    return Seal(state_dir() / "seal")


def _mac(secret: bytes, name: str, content: bytes) -> bytes:
    return hmac.digest(secret, name.encode() + b"\0" + content, "sha256").hex().encode()


def _read(path: Path) -> bytes | None:
    try:
        secret = bytes.fromhex(path.read_text("ascii").strip())
    except (OSError, ValueError):
        return None
    return secret if len(secret) == _SECRET_BYTES else None
