"""The last look at what a stage wrote, before it is published for ever: no pickle, no path of this machine, no secret.

What is read: of every file the first 64 KiB (archives: their directory and the heads of their members, as ``pickles``
says); of texts and configs the first 16 MiB; of safetensors and GGUF the header. Weights are never read again. What is
refused depends on who wrote it:

- everywhere, files that run code when they are read (E-OUTPUT-PICKLE), names that another system cannot hold
  (E-OUTPUT-NAME), the values of secret environment variables (E-OUTPUT-SECRET), and the staging folder's path;
- except in what ``fetch`` brought, whose bytes the spec pins, the paths of the project and of the home folder
  (E-OUTPUT-PATH);
- in configs and metadata that ingot's own kinds write, also keys of known services, and any value that is a path into
  somebody's home folder.

Rows of data are texts of strangers, full of examples: there only this machine's own paths and secrets count.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ingot.core import weights_facts
from ingot.core.digest import read_json, walk_files
from ingot.core.names import is_device, twins
from ingot.core.pickles import find_pickle
from ingot.core.redact import environment_secrets, has_known_form, is_home_path
from ingot.errors import StageFailed

_HEAD = 1 << 16
_WHOLE = 16 << 20
_CONFIGS = (".json", ".jinja", ".yaml", ".yml", ".toml", ".xml", ".cfg", ".ini")
_TEXTS = (*_CONFIGS, ".jsonl", ".ndjson", ".txt", ".text", ".md", ".rst", ".csv", ".tsv", ".log", ".html")
#: Lists of tokens: any words may be in them.
_VOCABULARIES = frozenset({"tokenizer.json", "vocab.json", "vocab.txt", "added_tokens.json", "merges.txt"})
#: Kinds whose bytes ingot does not write.
_PINNED, _USERS = "fetch", "command"
#: Last parts of home folders that texts use as an example.
_EXAMPLES = frozenset({"user", "username", "you", "me", "name", "ubuntu", "runner", "jovyan", "app", "work", "home"})


@dataclass(frozen=True)
class Forbidden:
    """What no output may hold. ``staging`` is the folder of this build alone."""

    staging: str
    project: str
    home: str
    secrets: tuple[str, ...] = ()

    @classmethod
    def here(cls, staging: Path, project: Path) -> Forbidden:
        """The places of this build and the secrets of this process's environment."""
        return cls(str(staging), str(project), os.path.expanduser("~"), environment_secrets())


def sweep(out: Path, kind: str, forbidden: Forbidden) -> None:
    """Look at the output of a stage. StageFailed: E-OUTPUT-PICKLE, E-OUTPUT-NAME, E-OUTPUT-SECRET, E-OUTPUT-PATH."""
    names = list(walk_files(out))
    _refuse_names(names)
    for name in names:
        path = out / name
        if what := find_pickle(path):
            raise StageFailed(
                "E-OUTPUT-PICKLE",
                f"the stage left {name}, which is {what}: it can run code when it is read",
                hint="write safetensors, GGUF or JSON, or leave such files in {scratch}",
            )
        _look(path, name, kind, forbidden)


def sweep_text(text: str, forbidden: Forbidden) -> None:
    """Look at what is recorded of a build, for ever. StageFailed (E-OUTPUT-SECRET)."""
    if any(secret in text for secret in forbidden.secrets):
        raise _secret("what is recorded of this build")


def _refuse_names(names: list[str]) -> None:
    """Two names that are one to macOS, and names that Windows cannot hold, in any folder of the output."""
    if found := twins({part for name in names for part in _prefixes(name)}):
        what = f"the stage wrote {found[0]!r} and {found[1]!r}, which are one name on some file systems"
        raise StageFailed("E-OUTPUT-NAME", what)
    for name in names:
        for part in name.split("/"):
            if is_device(part) or part.endswith((".", " ")):
                raise StageFailed("E-OUTPUT-NAME", f"the stage wrote {name!r}, a name that Windows cannot hold")


def _prefixes(name: str) -> Iterator[str]:
    """A path and the folders that it lies in."""
    parts = name.split("/")
    return ("/".join(parts[:length]) for length in range(1, len(parts) + 1))


def _look(path: Path, name: str, kind: str, forbidden: Forbidden) -> None:
    is_config = name.lower().endswith(_CONFIGS) and path.name not in _VOCABULARIES
    data, values = _read(path)
    if any(secret.encode() in data for secret in forbidden.secrets):
        raise _secret(name)
    for what, place in _places(kind, forbidden, rows=not is_config and not values):
        if re.search(re.escape(os.fsencode(place)) + rb"(?![\w.-])", data):
            raise _path(name, what)
    if kind in {_PINNED, _USERS}:
        return
    if (is_config and has_known_form(data.decode("utf-8", "replace"))) or any(map(has_known_form, values.values())):
        raise _secret(name)
    for place, value in {**values, **(_json_texts(data) if is_config else {})}.items():
        if is_home_path(value):
            raise _path(name, f"a home folder ({place})")


def _places(kind: str, forbidden: Forbidden, *, rows: bool) -> Iterator[tuple[str, str]]:
    """(what it is, path) of the places whose paths are refused."""
    yield "its staging folder", forbidden.staging
    if kind == _PINNED:
        return
    for what, place in (("the project's folder", forbidden.project), ("your home folder", forbidden.home)):
        # "/root" and "/app" are in many texts and give nobody away.
        if place.count("/") > 1 and not (rows and place.rpartition("/")[2] in _EXAMPLES):
            yield what, place


def _read(path: Path) -> tuple[bytes, Mapping[str, str]]:
    """What of a file is looked at as bytes, and the texts of its metadata by their names."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    try:
        if head.startswith(b"GGUF"):
            return _with_texts(head, weights_facts.gguf_texts(path))
        if path.name.endswith(".safetensors"):
            return _with_texts(head, weights_facts.safetensors_texts(path))
    except ValueError:
        return head, {}  # whoever reads the file as what it pretends to be will say what is wrong with it
    if not path.name.lower().endswith(_TEXTS) or len(head) < _HEAD:
        return head, {}
    with path.open("rb") as file:
        return file.read(_WHOLE), {}


def _with_texts(head: bytes, texts: Iterator[tuple[str, str]]) -> tuple[bytes, Mapping[str, str]]:
    values = dict(texts)
    return head + b"\n" + "\n".join(values.values()).encode("utf-8", "replace"), values


def _json_texts(data: bytes) -> dict[str, str]:
    """The texts of a JSON config by the key that they stand under; empty when it is none."""
    try:
        value = read_json(data)
    except (ValueError, RecursionError):
        return {}
    return dict(_texts("", value))


def _texts(key: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(f"{key}.{name}" if key else str(name), item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(f"{key}[{index}]", item)


def _secret(where: str) -> StageFailed:
    return StageFailed(
        "E-OUTPUT-SECRET",
        f"{where} holds a secret (not shown)",
        hint="an artifact and the registry cannot forget: keep tokens and keys out of what a target writes",
    )


def _path(name: str, what: str) -> StageFailed:
    return StageFailed(
        "E-OUTPUT-PATH",
        f"{name} holds the path of {what}",
        hint="write paths relative to the artifact: others have this folder elsewhere, and your name is in it",
    )
