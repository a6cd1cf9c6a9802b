"""Proofs, checkpoints and keys as files that somebody was sent, read within limits; what is wrong with them is said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ingot.core.files import read_regular
from ingot.core.note import Checkpoint, Note, VerifierKey
from ingot.core.proof import HEADER
from ingot.errors import RegistryDamaged, UsageError

#: What helps who has no key, or a wrong one.
KEY_HINT = "--key FILE or --key TEXT: the log.vkey of that log, from somebody whom you trust"
#: More is no proof: one entry and its log's checkpoint, each at most 64 KiB and one of them in base64.
_MOST = 1 << 18


def read(name: str, what: str) -> bytes:
    """The bytes of a file. UsageError (E-FILE): it cannot be read; RegistryDamaged (E-PROOF): it is too large."""
    try:
        data = read_regular(Path(name), _MOST + 1)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UsageError("E-FILE", f"the {what} {name!r} cannot be read: {why}") from error
    if len(data) > _MOST:
        raise RegistryDamaged("E-PROOF", f"{name!r} has more than {_MOST:,} bytes: it is no {what}")
    return data


@contextmanager
def about(name: str, wanted: str = "") -> Iterator[None]:
    """Say of which file something is wrong; ``wanted`` is what it should be, where it cannot be read as that."""
    try:
        yield
    except RegistryDamaged as error:
        if wanted:
            raise RegistryDamaged(error.code, f"{name!r} is not {wanted}: {error.what}") from error
        raise RegistryDamaged(error.code, error.what, facts=[*error.facts, f"in {name}"], hint=error.hint) from error


def checkpoint_of(note: bytes) -> Checkpoint:
    """What a signed checkpoint says, whoever signed it; RegistryDamaged (E-REG-NOTE)."""
    return Checkpoint.parse(Note.parse(note).text)


def read_checkpoint(name: str) -> bytes:
    """A checkpoint that somebody kept, in an e-mail perhaps; UsageError (E-FILE), RegistryDamaged (E-REG-NOTE).

    Line ends and what is around it may have changed on the way: that alters nothing of what is signed.
    """
    data = read(name, "checkpoint").replace(b"\r\n", b"\n").strip() + b"\n"
    with about(name, "the signed checkpoint of a log"):
        checkpoint_of(data)
    return data


def no_proof(name: str, data: bytes) -> RegistryDamaged:
    """The error for a file that begins as no proof does, with what it may be instead."""
    hint = None
    if data.startswith(f"{HEADER}\r\n".encode()):
        hint = "its line ends were changed on the way: send it as a file, not as text"
    with suppress(RegistryDamaged):
        checkpoint_of(data)
        hint = f"it is a checkpoint: doit registry consistency {name} proves that the log grew from it"
    what = f"{name!r} is no proof: it begins neither with {HEADER!r} nor with 'old NUMBER'"
    return RegistryDamaged("E-PROOF", what, hint=hint)


def key_of(given: str, origin: str) -> VerifierKey:
    """The public key of the log ``origin``, from its text or from a file that holds it.

    UsageError (E-KEY): it is no public key; it is not repeated, since it may be the secret one. RegistryDamaged
    (E-REG-SIGNATURE): it is of another log.
    """
    # A path may have a plus in it, too.
    is_text = "+" in given and not os.path.exists(given)
    text = (given if is_text else read(given, "key").decode("utf-8", "replace")).strip()
    try:
        key = VerifierKey.parse(text)
    except RegistryDamaged:
        found = "the SECRET key of a log: keep it" if text.startswith("PRIVATE+KEY+") else "no public key of a log"
        what = f"{'the text of --key' if is_text else repr(given)} is {found}"
        raise UsageError("E-KEY", what, hint=KEY_HINT) from None
    if key.name != origin:
        what = f"this is of the log {origin}, and the key is that of {key.name}"
        raise RegistryDamaged("E-REG-SIGNATURE", what, hint=KEY_HINT)
    return key
