"""How a model is laid out in safetensors files: which tensors in which file, and where, from their slots alone.

Shards are filled in order of names with their numbers counted (layer 2 before layer 10; the output embedding last), so
they do not depend on the order in which tensors come. Within one, tensors lie by falling element size, then name, as
the reference writer lays them (https://github.com/huggingface/safetensors, ``prepare``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ingot.kit.stream.vocabulary import ELEMENT_BYTES, Slot

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Shard:
    """One file to come: its name, its bytes before the data, and per tensor in order of bytes (slot, first byte)."""

    name: str
    head: bytes
    tensors: tuple[tuple[int, int], ...]
    size: int


@dataclass(frozen=True)
class Layout:
    """All files of a model; ``index`` is the text of the index file, None where there is one shard."""

    shards: tuple[Shard, ...]
    index: bytes | None


def lay_out(slots: Sequence[Slot], shard_bytes: int) -> Layout:
    """Shards of at most ``shard_bytes`` of data, or of one tensor."""
    groups: list[list[int]] = [[]]
    held = 0
    for index in sorted(range(len(slots)), key=lambda index: _counted(slots[index].name)):
        if groups[-1] and held + slots[index].nbytes > shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(index)
        held += slots[index].nbytes
    count = len(groups)
    names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    if count == 1:
        return Layout((_shard("model.safetensors", slots, groups[0]),), None)
    shards = tuple(_shard(name, slots, group) for name, group in zip(names, groups, strict=True))
    weight_map = {slots[index].name: shard.name for shard in shards for index, _ in shard.tensors}
    total = {"total_size": sum(slot.nbytes for slot in slots)}
    value = {"metadata": total, "weight_map": weight_map}
    return Layout(shards, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def _counted(name: str) -> tuple[bool, list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", name)
    return name.startswith("lm_head"), [(int(part) if at % 2 else -1, part) for at, part in enumerate(parts)], name


def _shard(name: str, slots: Sequence[Slot], group: Sequence[int]) -> Shard:
    order = sorted(group, key=lambda index: (-ELEMENT_BYTES[slots[index].dtype], slots[index].name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    places, position = [], 0
    for index in order:
        slot = slots[index]
        places.append((index, position))
        offsets = [position, position + slot.nbytes]
        header[slot.name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": offsets}
        position += slot.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return Shard(name, head, tuple((index, len(head) + at) for index, at in places), len(head) + position)
