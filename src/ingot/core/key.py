"""Keys: what a result depends on, as stored parts and as their hash.

key = SHA-256 of ``ingot-key-1`` + line feed + the RFC 8785 canonical JSON of the parts. Parts hold content only:
kind, revision, resolved parameters (each source replaced by its content digest; without those that change no byte), the
content digests of the immediate inputs, versions of the tools that change the bytes, and the seed of ``seeded`` kinds.
No names, paths, times or upstream keys. Format and golden vectors: ``docs/formats.md``.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

from ingot.core.digest import canonical_json
from ingot.core.graph import Node

_TAG = b"ingot-key-1\n"

#: Stands for the version of a tool that is not installed; nothing is ever built with it.
NOT_INSTALLED = "not installed"


def key_of(parts: Mapping[str, Any]) -> str:
    """The key of key parts, in hex."""
    return hashlib.sha256(_TAG + canonical_json(dict(parts))).hexdigest()


def key_parts(
    node: Node,
    inputs: Mapping[str, tuple[str, ...]],
    source_digests: tuple[str, ...],
    tools: Mapping[str, str],
    programs: Mapping[str, str],
) -> dict[str, Any]:
    """The parts of a node's key.

    ``inputs`` maps roles to the content digests (hex) of their targets, or to what ``by_key`` gives where a virtual
    target's digest is not known; ``source_digests`` are in the order of ``node.sources``; ``tools`` are versions of
    distributions, ``programs`` outputs of the declared command lines.
    """
    params = params_in_key(node)
    for (pointer, _source, _base), digest in zip(node.sources, source_digests, strict=True):
        place, last = _place(params, pointer)
        place[last] = {"source": digest}
    parts: dict[str, Any] = {
        "format": 1,
        "kind": node.kind,
        "revision": node.revision,
        "params": params,
        "inputs": {
            role: _tagged(digests[0]) if role in node.single_roles else [_tagged(digest) for digest in digests]
            for role, digests in inputs.items()
        },
        "tools": dict(tools),
    }
    if programs:
        parts["programs"] = dict(programs)
    if node.seed is not None:
        parts["seed"] = node.seed
    return parts


def by_key(key: str) -> str:
    """How a virtual input whose content nobody has seen yet stands in place of a digest: by its own key."""
    return f"key:sha256:{key}"


def is_by_key(text: str) -> bool:
    """Whether this is what ``by_key`` gave."""
    return text.startswith("key:")


def _tagged(digest: str) -> str:
    return digest if is_by_key(digest) else f"sha256:{digest}"


def forms_of(receipt: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys that a build is filed under: its own, and the one it had before what it streamed had a digest."""
    streamed: dict[str, str] = dict(receipt.get("streamed") or {})
    if not streamed:
        return (str(receipt["key"]),)
    parts = receipt["key_parts"]
    inputs = {**parts["inputs"], **{role: by_key(key) for role, key in streamed.items()}}
    return str(receipt["key"]), key_of({**parts, "inputs": inputs})


def params_in_key(node: Node) -> dict[str, Any]:
    """A node's parameters without those that change no byte; its sources stand as they are declared."""
    params = copy.deepcopy(dict(node.params))
    for pointer in node.keyless:
        place, last = _place(params, pointer)
        del place[last]
    return params


def _place(params: dict[str, Any], pointer: str) -> tuple[Any, Any]:
    """What holds the value at a JSON pointer (RFC 6901; our field names need no escapes), and where in it."""
    *path, last = pointer.removeprefix("/").split("/")
    place: Any = params
    for step in path:
        place = place[int(step)] if isinstance(place, list | tuple) else place[step]
    return place, int(last) if isinstance(place, list) else last
