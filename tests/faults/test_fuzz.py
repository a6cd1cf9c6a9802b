"""A short fuzz of everything that reads what a stranger wrote: specs, safetensors and GGUF headers.

Whatever the bytes are, there is a result or one of our refusals, soon and in little memory. The everyday tier tries
10,000 mutations with fixed seeds; ``-m slow`` tries 10^5 specs and 10^6 headers of models with the same code.
"""

from __future__ import annotations

import copy
import json
import os
import random
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ggufkit import raw_gguf, tensor_info, text
from ingot.core.spec import load_spec
from ingot.core.sweep import Forbidden, sweep
from ingot.errors import RefusedInput, SpecError, StageFailed
from ingot.kit.gguf.reader import read_gguf
from ingot.kit.safetensors_check import check_file
from plantkit import F32, pickled, put, safetensors, zipped
from speckit import CHAIN, kinds_in_use

Mutate = Callable[[random.Random, bytes], bytes]

#: No input may take longer; a test that runs beside others on a busy machine counts processor time.
MOST_SECONDS = 2.0
MOST_BYTES = 64 << 20
_WORDS = (
    b"[", b"]", b"{", b"}", b": ", b"- ", b"&a ", b"*a", b"<<: ", b"!!", b"|\n", b"'", b'"', b"\\", b"\0", b"\xff",
    b"\n", b"\t", b"#", b"%", b"@", b"---\n", b"...\n", b"? ", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"999999999999999999",
    b"1e999", b".nan", b"-", b"~", b"true", b"${x}", b"\xed\xa0\x80", b"\xc2\x85", b"../", b"extends: a.yaml\n",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**53, 10**400, 1.5, -0.0, 1e308, "", "x" * 300, "a\0b", "../x", "w@x", "@", "ü",
    "\ud83e", [], {}, [[]], [{}], {"a": {}}, {"": ""}, ["w"] * 50, "{out}", "no", "3.10",
    {"path": "/etc/passwd"}, "w.bytes",
)  # fmt: skip


def byte_mutations(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, repeat, move and insert bytes and words that formats live on."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(found) + 1)
        what = rng.randrange(6)
        if what == 0 and found:
            found[min(at, len(found) - 1)] = rng.randrange(256)
        elif what == 1:
            del found[at : at + rng.choice((1, 4, 40))]
        elif what == 2:
            found[at:at] = rng.choice(_WORDS) * rng.choice((1, 1, 1, 2, 30))
        elif what == 3:
            found[at:at] = found[at : at + rng.choice((8, 64))] * rng.choice((1, 2, 20))
        elif what == 4:
            other = rng.randrange(len(found) + 1)
            found[other:other] = found[at : at + 16]
        else:
            found[at : at + 8] = struct.pack(
                "<Q", rng.choice((0, 1, 1 << 31, 1 << 53, 1 << 60, 1 << 63, (1 << 64) - 1))
            )
    return bytes(found)


def tree_mutations(rng: random.Random, data: bytes) -> bytes:
    """Change the JSON value of a text: put values, keys and parts of it in each other's places."""
    value = json.loads(data)
    for _ in range(rng.choice((1, 2, 4))):
        places = list(_places(value))
        holder, key = rng.choice(places)
        what = rng.randrange(4)
        if what == 0:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))
        elif what == 1:
            del holder[key]
        elif what == 2:
            other, from_key = rng.choice(places)
            if other.__class__ is not list or from_key < len(other):
                holder[key] = copy.deepcopy(other.get(from_key) if isinstance(other, dict) else other[from_key])
        elif isinstance(holder, dict):
            holder[rng.choice(("x", "kind", "from", "matrix", "seed", "name", "W", "a b", "shape", "__metadata__"))] = (
                holder.pop(key)
            )
        if not list(_places(value)):
            break
    # JSON is YAML; a lone surrogate goes out as an escape, as an attacker would write it.
    return json.dumps(value).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)


def attack(
    rng: random.Random, count: int, seeds: list[bytes], mutate: Mutate, reader: Callable[[bytes], object]
) -> int:
    """Hand ``count`` mutations to a reader; how many it refused. Anything but our refusals fails the test."""
    refused = 0
    for number in range(count):
        data = mutate(rng, rng.choice(seeds))
        started = time.process_time()
        try:
            reader(data)
        except (SpecError, RefusedInput, StageFailed):
            refused += 1
        except Exception as error:
            error.add_note(f"mutation {number}: {data[:2000]!r}")
            raise
        assert time.process_time() - started < MOST_SECONDS, data[:2000]
    return refused


def within_memory(run: Callable[[], int]) -> int:
    """Run, and assert that no more than ``MOST_BYTES`` were in use at any moment."""
    tracemalloc.start()
    try:
        refused = run()
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    return refused


def spec_seeds() -> tuple[list[bytes], list[bytes]]:
    """Small valid specs as YAML, and the same chain as JSON."""
    one = (
        "format: 1\nname: s\ntargets:\n"
        "  w: {kind: fetch, matrix: {note: [a, {b: c}]}}\n  b: {kind: convert, from: {model: w@a}}\n"
    )
    two = (
        "format: 1\nname: s\nextends: parent.yaml\ndescription: >\n  text\n"
        "targets:\n  c:\n    kind: command\n    command: [sh, -c, 'x {out}']\n    files: [a/*.py]\n"
        "gates:\n  c.bytes: {max: 1}\n"
    )
    tree = {
        "format": 1, "name": "s", "seed": 3,
        "targets": {
            "w": {"kind": "fetch", "note": "x"},
            "b": {"kind": "convert", "from": {"model": "w"}},
            "d": {"kind": "dataset", "sources": [{"path": "x"}], "dedup": {"threshold": 0.5}},
            "n": {"kind": "node", "matrix": {"x": [1, {"two": 2}]}, "from": {"many": ["w", "d"]}},
            "r": {"kind": "report", "from": {"data": "d", "reference": "b", "candidates": ["b"]}},
        },
        "gates": {"n@1.bytes": {"max": 1}},
    }  # fmt: skip
    return [CHAIN.encode(), one.encode(), two.encode()], [json.dumps(tree).encode()]


def fuzz_specs(folder: Path, count: int, seed: int) -> int:
    """Load ``count`` mutated specs."""
    rng = random.Random(seed)
    put(folder / "specs" / "parent.yaml", b"format: 1\nname: p\ntargets: {w: {kind: fetch}}\n")

    def read(data: bytes) -> None:
        load_spec(put(folder / "specs" / "a.yaml", data), folder)

    texts, trees = spec_seeds()
    with kinds_in_use():
        # A good mix: bytes find the reader's edges, trees those of everything behind it.
        half = attack(rng, count // 2, texts, byte_mutations, read)
        half += attack(rng, count // 4, trees, tree_mutations, read)
    return half + attack(rng, count // 4, [json.dumps(real_chain()).encode()], tree_mutations, read)


def real_chain() -> dict[str, Any]:
    """A chain of the kinds that there are, with the parameters that have rules of their own."""
    return {
        "format": 1, "name": "s",
        "targets": {
            "w": {"kind": "fetch", "url": "https://example.org/m.gguf", "sha256": "ab" * 32, "as": "m.gguf"},
            "b": {"kind": "convert", "from": {"model": "w"}},
            "d": {"kind": "dataset", "sources": [{"path": "x.jsonl", "fields": {"text": "t"}}], "split": {"eval": 0.1}},
            "a": {"kind": "adapter", "from": {"model": "b", "data": "d"}, "steps": 4, "target_modules": ["q_proj"]},
            "p": {"kind": "prune", "from": {"model": "b"}, "pattern": "2:4"},
            "c": {"kind": "command", "command": ["sh", "-c", "x {m} {out}"], "from": {"m": "p"}, "env": {"A": "{out}"}},
            "m": {"kind": "coreml", "from": {"model": "p"}, "sequence_lengths": [8, 16]},
            "r": {"kind": "report", "from": {"data": "d", "reference": "b", "candidates": ["p", "m"]}},
        },
    }  # fmt: skip


def st_seeds() -> tuple[list[bytes], list[bytes]]:
    """Sound safetensors files, and headers."""
    two = {"a": F32, "b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [8, 20]}, "__metadata__": {"format": "pt"}}
    headers: list[Any] = [{"a": F32}, two, {}]
    files = [
        safetensors(headers[0]),
        safetensors(headers[1], b"\1" * 20),
        safetensors({}, b""),
        zipped({"a": pickled()}),
    ]
    return files, [json.dumps(header).encode() for header in headers[:2]]


def fuzz_safetensors(folder: Path, count: int, seed: int) -> int:
    """Check ``count`` mutated safetensors files."""
    rng = random.Random(seed)
    path = folder / "x.safetensors"
    files, headers = st_seeds()

    def as_header(rng: random.Random, data: bytes) -> bytes:
        return safetensors(tree_mutations(rng, data), b"\0" * rng.choice((0, 8, 20)))

    def read(data: bytes) -> None:
        check_file(put(path, data))

    half = attack(rng, count // 2, files, byte_mutations, read)
    return half + attack(rng, count - count // 2, headers, as_header, read)


def gguf_seeds() -> list[bytes]:
    """Sound GGUF files: numbers, texts, arrays, two tensors."""
    keys = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("general.alignment") + struct.pack("<II", 4, 32),
        text("tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("b") + text("c"),
        text("scores") + struct.pack("<IIQ3f", 9, 6, 3, 1.0, 2.0, 3.0),
        text("flag") + struct.pack("<I?", 7, True),
    ]
    infos = [tensor_info("a", [32], 0, 0), tensor_info("b", [32, 2], 8, 128)]
    return [raw_gguf(keys, infos, b"\0" * 224), raw_gguf(keys[:1]), raw_gguf((), infos[:1], b"\0" * 128)]


def fuzz_gguf(folder: Path, count: int, seed: int) -> int:
    """Read ``count`` mutated GGUF files."""
    path = folder / "x.gguf"
    return attack(random.Random(seed), count, gguf_seeds(), byte_mutations, lambda data: read_gguf(put(path, data)))


def fuzz_sweep(folder: Path, count: int, seed: int) -> int:
    """Sweep ``count`` mutated outputs: archives, pickles, weights and configs under the names of one another."""
    rng = random.Random(seed)
    names = ("a.json", "model.safetensors", "model.gguf", "x.zip", "x", "rows.jsonl")
    seeds = [*gguf_seeds(), *st_seeds()[0], pickled(0), pickled(4), b'{"a": ["/home/x/y", 1]}']
    forbidden = Forbidden("/data/staging/01", "/data/projects/one", "/data/homes/one", ("canary-canary",))

    def read(data: bytes) -> None:
        for old in folder.iterdir():
            old.unlink()
        sweep(put(folder / rng.choice(names), data).parent, rng.choice(("merge", "fetch")), forbidden)

    return attack(rng, count, seeds, byte_mutations, read)


FUZZ = {
    "specs": (fuzz_specs, 4000, "Y", "mutated specs"),
    "safetensors": (fuzz_safetensors, 3000, "M4", "mutated safetensors headers"),
    "gguf": (fuzz_gguf, 3000, "M6", "mutated GGUF headers"),
    "sweep": (fuzz_sweep, 1000, "M3", "mutated outputs"),
}
_EVERYDAY = [pytest.param(name, marks=pytest.mark.fault(*item[2:])) for name, item in FUZZ.items()]


@pytest.mark.parametrize("name", _EVERYDAY)
def test_mutations_are_read_or_refused(name: str, tmp_path: Path, cases: Callable[[int], None]) -> None:
    fuzz, count = FUZZ[name][:2]
    refused = fuzz(tmp_path, count, 1)
    cases(count)
    # Some mutations leave a file sound, and most do not: a reader that takes all, or none, reads nothing.
    assert count * 0.05 < refused < count


@pytest.mark.parametrize("name", list(FUZZ))
def test_no_mutation_takes_much_memory(name: str, tmp_path: Path) -> None:
    fuzz, count = FUZZ[name][:2]
    assert within_memory(lambda: fuzz(tmp_path, count // 20, 2)) > 0


#: How many the slow tests try, in turns of so many; ``INGOT_TESTS_FUZZ=0.01`` has them try a hundredth.
MANY = {"specs": 100_000, "safetensors": 500_000, "gguf": 500_000, "sweep": 30_000}
_TURN = 2000
_MANY = [pytest.param(name, marks=pytest.mark.fault(*item[2:])) for name, item in FUZZ.items()]


@pytest.mark.slow
@pytest.mark.parametrize("name", _MANY)
def test_many_more_mutations_are_read_or_refused(name: str, tmp_path: Path, cases: Callable[[int], None]) -> None:
    fuzz, total = FUZZ[name][0], int(MANY[name] * float(os.environ.get("INGOT_TESTS_FUZZ", "1")))
    for seed in range(10, 10 + -(-total // _TURN)):
        fuzz(tmp_path, _TURN, seed)
        cases(_TURN)


def test_a_reader_that_is_slow_or_raises_what_is_not_ours_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "MOST_SECONDS", 0.02)

    def slow(_data: bytes) -> None:
        started = time.process_time()
        while time.process_time() - started < MOST_SECONDS:
            pass

    def wrong(data: bytes) -> None:
        if b"x" not in data:
            raise KeyError(data)

    with pytest.raises(AssertionError):
        attack(random.Random(1), 1, [b"x"], byte_mutations, slow)
    with pytest.raises(KeyError) as caught:
        attack(random.Random(1), 100, [b"x"], byte_mutations, wrong)
    assert caught.value.__notes__[0].startswith("mutation ")
