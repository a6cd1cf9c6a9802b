"""llama.cpp's own converter, gguf-py and test vocabularies, from llama-cpp-python's source distribution.

Where they come from, first match: the folder ``INGOT_LLAMA_CPP_SOURCE`` (an unpacked distribution); the cache
``ingot-tests/`` below XDG_CACHE_HOME or ~/.cache; the package index that pip is configured with, whose file must have
the SHA-256 below. A test that asks for them skips, with the reason, where none of the three has them.
"""

from __future__ import annotations

import base64
import hashlib
import html
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
_NAME = f"llama_cpp_python-{VERSION}"
_WANTED = re.compile(r"(convert_[^/]*\.py|(conversion|gguf-py/gguf|models)/.+)")
_SECONDS = 120


def llama_cpp_source() -> Path:
    """The folder ``vendor/llama.cpp`` of the distribution; skips the test where it cannot be had."""
    found = _find()
    if isinstance(found, str):
        pytest.skip(f"needs the source distribution of llama-cpp-python {VERSION}: {found}")
    return found


def vocabulary(name: str) -> Path:
    """The file ``ggml-vocab-NAME.gguf`` of the distribution."""
    return llama_cpp_source() / "models" / f"ggml-vocab-{name}.gguf"


@cache
def _find() -> Path | str:
    """The folder, or why there is none; tried once a run."""
    given = os.environ.get("INGOT_LLAMA_CPP_SOURCE")
    if given:
        folder = Path(given) / "vendor" / "llama.cpp"
        return folder if folder.is_dir() else "INGOT_LLAMA_CPP_SOURCE has no vendor/llama.cpp"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ingot-tests"
    folder = home / f"{_NAME}-{SHA256[:16]}"
    if folder.is_dir():
        return folder
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            archive = Path(scratch) / "sdist.tar.gz"
            _download(archive)
            unpack(archive, Path(scratch) / "tree")
            _move(Path(scratch) / "tree", folder)
    except (OSError, ValueError, tarfile.TarError, http.client.HTTPException) as error:
        return f"{type(error).__name__} while fetching it from pip's package index"
    return folder


def _move(tree: Path, folder: Path) -> None:
    """Put the whole tree in place at once; of several runs that come here together one wins, and all are equal."""
    try:
        tree.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def unpack(archive: Path, to: Path) -> None:
    """Unpack the wanted regular files of ``vendor/llama.cpp``; ValueError for a name that leaves the folder."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = member.name.removeprefix(f"{_NAME}/vendor/llama.cpp/")
            if name == member.name or not member.isreg() or not _WANTED.fullmatch(name):
                continue
            if ".." in PurePosixPath(name).parts:
                raise ValueError(f"the archive holds {member.name!r}")
            path = to / name
            path.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None
            with content, path.open("wb") as file:
                shutil.copyfileobj(content, file)


def _download(to: Path) -> None:
    """Fetch the archive; ValueError when the index does not have it or its bytes are others."""
    index = _index().rstrip("/") + "/llama-cpp-python/"
    page = urllib.parse.urljoin(index, ".")
    with _open(index, "application/vnd.pypi.simple.v1+json, text/html;q=0.5") as answer:
        page, body = answer.geturl(), answer.read().decode()
    links = [urllib.parse.urljoin(page, link) for link in links_of(body)]
    mine = [link for link in links if urllib.parse.urlsplit(link).path.endswith(f"/{_NAME}.tar.gz")]
    if not mine:
        raise ValueError("the index does not list it")
    digest = hashlib.sha256()
    with _open(mine[0], "*/*") as answer, to.open("wb") as file:
        while block := answer.read(1 << 20):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != SHA256:
        raise ValueError("the file has another SHA-256")


def links_of(body: str) -> Iterator[str]:
    """The links of a project's page, in either form of the simple API (PEP 503 HTML, PEP 691 JSON)."""
    if body.lstrip().startswith("{"):
        yield from (str(item["url"]) for item in json.loads(body)["files"])
    else:
        yield from map(html.unescape, re.findall(r'href="([^"#]+)', body))


def _index() -> str:
    """The index that pip uses: the environment's, else its configuration's, else PyPI."""
    if found := os.environ.get("PIP_INDEX_URL"):
        return found
    for command in ([sys.executable, "-m", "pip"], ["pip"], ["pip3"]):
        try:
            asked = subprocess.run(
                [*command, "config", "get", "global.index-url"], capture_output=True, text=True, check=False, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if asked.returncode == 0 and asked.stdout.strip():
            return asked.stdout.strip()
    return "https://pypi.org/simple"


def _open(url: str, accept: str) -> Any:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https"}:
        raise ValueError("the index is not on the web")
    headers = {"Accept": accept}
    if parts.username:
        secret = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(secret.encode()).decode()
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT"))
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_SECONDS, context=context)
