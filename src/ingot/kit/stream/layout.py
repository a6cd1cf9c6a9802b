"""How a model is laid out in safetensors files: which tensors in which file, and where, from their slots alone.

Tensors lie in the order in which they come, so that a file is hashed, or written, as its tensors pass and nothing waits
for its turn; whoever reads the files meets them in that order again. A tensor that would not begin at a multiple of its
element size begins the next file: a reader that maps it needs that, and the format
(https://github.com/huggingface/safetensors) has no room for padding between tensors.
"""

from __future__ import annotations

import json
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
    for index, slot in enumerate(slots):
        if groups[-1] and (held + slot.nbytes > shard_bytes or held % ELEMENT_BYTES[slot.dtype]):
            groups.append([])
            held = 0
        groups[-1].append(index)
        held += slot.nbytes
    count = len(groups)
    names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    if count == 1:
        return Layout((_shard("model.safetensors", slots, groups[0]),), None)
    shards = tuple(_shard(name, slots, group) for name, group in zip(names, groups, strict=True))
    weight_map = {slots[index].name: shard.name for shard in shards for index, _ in shard.tensors}
    total = {"total_size": sum(slot.nbytes for slot in slots)}
    value = {"metadata": total, "weight_map": weight_map}
    return Layout(shards, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def _shard(name: str, slots: Sequence[Slot], group: Sequence[int]) -> Shard:
    head = header([slots[index] for index in group])
    places, position = [], len(head)
    for index in group:
        places.append((index, position))
        position += slots[index].nbytes
    return Shard(name, head, tuple(places), position)


def header(slots: Sequence[Slot]) -> bytes:
    """What stands before the data in a safetensors file of these tensors in this order."""
    value: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for slot in slots:
        offsets = [position, position + slot.nbytes]
        value[slot.name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": offsets}
        position += slot.nbytes
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
