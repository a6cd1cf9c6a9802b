"""Signed notes and checkpoints: the C2SP formats ``signed-note`` and ``tlog-checkpoint``, with Ed25519.

A note is text, an empty line, and signature lines ``— NAME BASE64(key id ‖ signature)``. The text of a
checkpoint is three lines: origin, tree size, base64 of the root. Reading is strict (each value has one
spelling), since two readings of one signed text would be two histories. ``cryptography`` is imported only
when something is signed or verified. Formats: c2sp.org/signed-note, c2sp.org/tlog-checkpoint;
``docs/formats.md`` has the whole shape.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from ingot.errors import RegistryDamaged

_ED25519 = 0x01
_MAX_NOTE = 65_535
_MAX_SIGNATURES = 16
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_SIGNATURE_LINE = re.compile(r"— (?P<name>[^\s+]+) (?P<blob>[A-Za-z0-9+/]+={0,2})")
_SIZE = re.compile(r"0|[1-9][0-9]{0,15}")


def _bad(what: str) -> RegistryDamaged:
    return RegistryDamaged("E-REG-NOTE", what)


def decode_base64(text: str) -> bytes:
    """Standard base64 in its one canonical spelling; ValueError for any other."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not base64: {text[:80]!r}") from error
    if base64.b64encode(data).decode() != text:
        raise ValueError(f"not canonical base64: {text[:80]!r}")
    return data


def key_id(name: str, public: bytes) -> bytes:
    """The first four bytes of SHA-256(name ‖ line feed ‖ 0x01 ‖ public key)."""
    return hashlib.sha256(name.encode() + b"\n" + bytes([_ED25519]) + public).digest()[:4]


@dataclass(frozen=True)
class VerifierKey:
    """The public half of a log's key: its name (the origin) and 32 bytes of Ed25519."""

    name: str
    public: bytes

    def __str__(self) -> str:
        """The ``vkey`` spelling: ``<name>+<hex key id>+<base64(0x01 ‖ public key)>``."""
        encoded = base64.b64encode(bytes([_ED25519]) + self.public).decode()
        return f"{self.name}+{key_id(self.name, self.public).hex()}+{encoded}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Read a vkey; RegistryDamaged (E-REG-NOTE) when it is not exactly one."""
        name, _, rest = text.partition("+")
        hash_hex, _, encoded = rest.partition("+")
        try:
            data = decode_base64(encoded)
        except ValueError as error:
            raise _bad(f"a verifier key is malformed: {error}") from error
        if not _is_name(name) or len(data) != 33 or data[0] != _ED25519 or key_id(name, data[1:]).hex() != hash_hex:
            raise _bad(f"a verifier key is malformed: {text[:120]!r}")
        return cls(name, data[1:])


@dataclass(frozen=True, repr=False)
class SigningKey:
    """The private half: 32 bytes of Ed25519 seed. Has no repr, so that no log or traceback shows it."""

    name: str
    seed: bytes

    def __str__(self) -> str:
        """The spelling of Go's note package: ``PRIVATE+KEY+<name>+<hex key id>+<base64(0x01 ‖ seed)>``."""
        encoded = base64.b64encode(bytes([_ED25519]) + self.seed).decode()
        return f"PRIVATE+KEY+{self.name}+{key_id(self.name, self.verifier().public).hex()}+{encoded}"

    @classmethod
    def parse(cls, text: str) -> SigningKey:
        """Read a signing key; RegistryDamaged (E-REG-KEY), which never shows the text."""
        parts = text.split("+", 4)
        try:
            data = decode_base64(parts[4]) if parts[:2] == ["PRIVATE", "KEY"] and len(parts) == 5 else b""
        except ValueError:
            data = b""
        key = cls(parts[2], data[1:]) if len(data) == 33 and data[0] == _ED25519 and _is_name(parts[2]) else None
        if key is None or str(key) != text:
            raise RegistryDamaged("E-REG-KEY", "a signing key is malformed")
        return key

    @classmethod
    def generate(cls, name: str) -> SigningKey:
        """A fresh key."""
        import secrets

        return cls(name, secrets.token_bytes(32))

    def verifier(self) -> VerifierKey:
        """The public half."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return VerifierKey(self.name, Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw())

    def sign(self, text: str) -> bytes:
        """The note over ``text``, which ends in a line feed. Ed25519 is deterministic: same text, same note."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        private = Ed25519PrivateKey.from_private_bytes(self.seed)
        identifier = key_id(self.name, private.public_key().public_bytes_raw())
        blob = base64.b64encode(identifier + private.sign(text.encode())).decode()
        return f"{text}\n— {self.name} {blob}\n".encode()


@dataclass(frozen=True)
class Note:
    """A parsed note, not yet verified: its text and (name, key id, signature) of each signature line."""

    text: str
    signatures: tuple[tuple[str, bytes, bytes], ...]

    @classmethod
    def parse(cls, data: bytes) -> Note:
        """Read a note strictly: at most 65,535 bytes and 16 signatures, no control characters (E-REG-NOTE)."""
        if len(data) > _MAX_NOTE:
            raise _bad("a signed note is longer than 65,535 bytes")
        try:
            whole = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _bad("a signed note is not UTF-8") from error
        if _CONTROL.search(whole):
            raise _bad("a signed note holds a control character")
        text, separator, block = whole.rpartition("\n\n")
        lines = block.split("\n")
        if not separator or lines.pop() != "" or not 1 <= len(lines) <= _MAX_SIGNATURES:
            raise _bad("a signed note has no proper signature block")
        return cls(text + "\n", tuple(_signature(line) for line in lines))

    def verify(self, key: VerifierKey) -> None:
        """Raise RegistryDamaged (E-REG-SIGNATURE) unless ``key`` signed the text.

        Lines of unknown keys are passed over, as C2SP wants; each line of this key must hold.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        wanted = (key.name, key_id(key.name, key.public))
        ours = [signature for name, identifier, signature in self.signatures if (name, identifier) == wanted]
        if not ours:
            raise RegistryDamaged("E-REG-SIGNATURE", f"a signed note bears no signature of {key.name}")
        for signature in ours:
            try:
                Ed25519PublicKey.from_public_bytes(key.public).verify(signature, self.text.encode())
            except InvalidSignature as error:
                raise RegistryDamaged("E-REG-SIGNATURE", f"a signature of {key.name} does not verify") from error


def _signature(line: str) -> tuple[str, bytes, bytes]:
    match = _SIGNATURE_LINE.fullmatch(line)
    if match is None:
        raise _bad(f"a signature line is malformed: {line[:120]!r}")
    try:
        blob = decode_base64(match["blob"])
    except ValueError as error:
        raise _bad(f"a signature line is malformed: {error}") from error
    if len(blob) < 5:
        raise _bad("a signature is too short")
    return match["name"], blob[:4], blob[4:]


def _is_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(char.isspace() or ord(char) < 0x21 for char in name)


@dataclass(frozen=True)
class Checkpoint:
    """What a log's signature says: the origin, the number of entries, their root (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The signed text: three lines."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read the text of a checkpoint; one spelling only, no extension lines (E-REG-NOTE)."""
        lines = text.split("\n")
        if len(lines) != 4 or lines[3] or not _is_name(lines[0]) or not _SIZE.fullmatch(lines[1]):
            raise _bad("a checkpoint is not the three lines origin, size, root")
        try:
            root = decode_base64(lines[2])
        except ValueError as error:
            raise _bad(f"the root of a checkpoint is malformed: {error}") from error
        if len(root) != 32:
            raise _bad("the root of a checkpoint is not 32 bytes")
        return cls(lines[0], int(lines[1]), root)
