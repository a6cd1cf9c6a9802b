"""A repository of the Hugging Face hub at one immutable commit, through huggingface_hub."""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ingot.core.stage import Progress
from ingot.errors import RefusedInput

_BLOCK = 1 << 20
_POLL = 0.5


def snapshot(repository: str, revision: str, patterns: Sequence[str], folder: Path, progress: Progress) -> None:
    """Download the files that match ``patterns`` into ``folder`` and compare each with what the commit lists.

    RefusedInput: E-FETCH-NOTFOUND, E-FETCH-GATED, E-FETCH-NETWORK, E-FETCH-HUB (another answer of the hub),
    E-FETCH-TRUNCATED or E-FETCH-DIGEST (a file is not what the commit lists).
    """
    progress.phase(f"listing {repository}")
    try:
        listed = _listed(repository, revision, patterns)
        total = sum(item.size or 0 for item in listed)
        progress.phase(f"downloading {repository}")
        with _Watch(folder, total, progress):
            snapshot_download(repository, revision=revision, allow_patterns=list(patterns), local_dir=folder)
    except GatedRepoError as error:
        raise RefusedInput(
            "E-FETCH-GATED",
            f"{repository} is gated",
            hint="accept its licence on the hub, then set HF_TOKEN",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise RefusedInput("E-FETCH-NOTFOUND", f"the hub has no {repository} at {revision}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError) as error:
        raise RefusedInput(
            "E-FETCH-NETWORK",
            f"{repository} could not be downloaded: the hub cannot be reached",
            hint="run it again when the network is back; what was finished is kept",
        ) from error
    except HfHubHTTPError as error:
        raise RefusedInput("E-FETCH-HUB", f"the hub did not give {repository}: {str(error)[:200]}") from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the library's own notes, with times in them
    for item in listed:
        _compare(folder / item.rfilename, item)


def _listed(repository: str, revision: str, patterns: Sequence[str]) -> list[Any]:
    info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    if info.sha != revision:
        raise RefusedInput("E-FETCH-DIGEST", f"the hub answered with commit {info.sha}, asked for {revision}")
    files = sorted(info.siblings or [], key=lambda item: item.rfilename)
    chosen = [item for item in files if any(fnmatch.fnmatch(item.rfilename, pattern) for pattern in patterns)]
    if not chosen:
        raise RefusedInput(
            "E-FETCH-NOTFOUND",
            f"no file of {repository} matches {', '.join(patterns)}",
            facts=[f"it has: {', '.join(item.rfilename for item in files[:12])}"],
        )
    return chosen


def _compare(path: Path, item: Any) -> None:
    """A file against the commit: LFS files by SHA-256, the others by git's blob id."""
    if not path.is_file() or (item.size is not None and path.stat().st_size != item.size):
        raise RefusedInput("E-FETCH-TRUNCATED", f"{item.rfilename} did not come whole ({item.size} bytes expected)")
    if item.lfs is not None:
        expected, digest = item.lfs.sha256, hashlib.sha256()
    else:
        # git names a blob by the SHA-1 of this header and its bytes; it is no protection here, the commit is
        expected, digest = item.blob_id, hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if expected is not None and digest.hexdigest() != expected:
        raise RefusedInput(
            "E-FETCH-DIGEST",
            f"{item.rfilename} is not the file that the commit names",
            facts=[f"expected {expected}", f"got      {digest.hexdigest()}"],
        )


class _Watch:
    """Reports how much of a folder has arrived, from a thread, while the library downloads."""

    def __init__(self, folder: Path, total: int, progress: Progress) -> None:
        self._folder = folder
        self._total = total
        self._progress = progress
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_POLL):
            arrived = 0
            for path in self._folder.rglob("*"):
                try:
                    arrived += path.stat().st_size if path.is_file() else 0
                except FileNotFoundError:
                    continue  # the library moved it meanwhile
            self._progress(min(arrived, self._total), self._total, "B")
