"""Secrets: what looks like an access key, and how a text is shown without it.

Two kinds are known. By form: the keys of common services, private keys, passwords and signatures in URLs, and long
runs of letters and digits that no person would write. By value: what environment variables hold whose names say that
it is secret. A digest (40 or 64 hex digits) is no secret, and neither is a name made of words.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

#: What stands where a secret stood.
HIDDEN = "[not shown]"

_FORMS = re.compile(
    r"\bsk-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}"
    r"|\bhf_[A-Za-z0-9]{20,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_[A-Za-z0-9_]{22,}|\bglpat-[A-Za-z0-9_-]{20,}"
    r"|\bxox[abeprs]-[A-Za-z0-9-]{10,}"
    r"|\bAIza[0-9A-Za-z_-]{35}|\bnpm_[A-Za-z0-9]{36}|\bpypi-[A-Za-z0-9_-]{50,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|(?<=://)[^/\s:@'\"]{1,200}:[^/\s@'\"]{1,200}(?=@)"
    r"|(?i:(?<=[?&])(?:x-amz-signature|x-goog-signature|x-amz-security-token|sig|signature|access_token|token|api_?key)"
    r"=[^&\s'\"]{8,})"
)
#: Letters and digits without a break; keys have such runs, words joined by '-', '_', '/' and '.' do not.
_RUN = re.compile(r"[A-Za-z0-9]{20,}")
_TOKEN = re.compile(r"[A-Za-z0-9+/=_-]{32,}")
_HEX = re.compile(r"[0-9a-fA-F]+")

_SECRET_WORDS = frozenset(
    ("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "APIKEY", "CREDENTIAL", "CREDENTIALS", "PASSPHRASE")
)
_LITERAL_NAME = re.compile(
    r"(?i)(^|_)(password|passwd|passphrase|secret|client_?secret"
    r"|(api|access|auth|secret|private|hub|hf|bearer|refresh)_?(key|token))$"
)
_LEAST = 8
_SOMEBODYS = re.compile(r"(file://)?(/home/|/Users/|/root/|[A-Za-z]:[\\/]Users[\\/]).*")


def holds_secret(text: str) -> bool:
    """Whether a text holds what looks like an access key or a private key."""
    return has_known_form(text) or any(_is_random(match[0]) for match in _TOKEN.finditer(text))


def has_known_form(text: str) -> bool:
    """Whether a text holds a key of a known service, a private key, or a password or signature in a URL."""
    return _FORMS.search(text) is not None


def names_secret(name: str, value: str) -> bool:
    """Whether a field of this name (``API_KEY``) holds a literal secret: a word, and no placeholder."""
    return _LITERAL_NAME.search(name) is not None and re.fullmatch(r"[^\s{}]{8,}", value) is not None


def redact(text: str, values: Iterable[str] = ()) -> str:
    """The text with ``[not shown]`` for each secret in it, by form and by these values."""
    for value in values:
        text = text.replace(value, HIDDEN)
    text = _FORMS.sub(HIDDEN, text)
    return _TOKEN.sub(lambda match: HIDDEN if _is_random(match[0]) else match[0], text)


def environment_secrets(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The values of all environment variables whose names say that they are secret, the longest first.

    Shorter than eight characters counts for nothing: it would be found everywhere.
    """
    found = {
        value
        for name, value in (os.environ if environment is None else environment).items()
        if _SECRET_WORDS & set(name.upper().split("_")) and len(value) >= _LEAST
    }
    return tuple(sorted(found, key=lambda value: (-len(value), value)))


def is_home_path(text: str) -> bool:
    """Whether a text is, as a whole, a path into somebody's home folder."""
    return _SOMEBODYS.fullmatch(text) is not None


def scrub_file(path: Path, values: Iterable[str]) -> None:
    """Overwrite these values with asterisks wherever a log holds them; its length stays as it is."""
    wanted = [text.encode("utf-8", "surrogateescape") for text in values]
    if not wanted or not path.exists() or not path.stat().st_size:
        return
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        for value in wanted:
            at = data.find(value)
            while at >= 0:
                data[at : at + len(value)] = b"*" * len(value)
                at = data.find(value, at)


def _is_random(token: str) -> bool:
    """Whether a token looks drawn at random: the classes of its letters and digits change as often as chance does."""
    for match in _RUN.finditer(token):
        run = match[0]
        if _HEX.fullmatch(run) or sum(char.isdigit() for char in run) < 2:
            continue
        classes = ["d" if char.isdigit() else "u" if char.isupper() else "l" for char in run]
        groups = sum(1 for _ in itertools.groupby(classes))
        if len(set(classes)) == 3 and len(run) / groups < 1.9 and _entropy(run) > 3.5:
            return True
    return False


def _entropy(text: str) -> float:
    """Bits a character by the frequencies within the text."""
    return -sum(count / len(text) * math.log2(count / len(text)) for count in Counter(text).values())
