"""Weights flow: read once, verified in that read, mapped on threads, in the order in which they come."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ingot.core.digest import FileRecord, record_files
from ingot.errors import RefusedInput, StoreDamaged
from ingot.kit import hf
from ingot.kit.safetensors_check import check_file
from ingot.kit.stream import chain, pipeline
from ingot.kit.stream.hash_sink import HashSink
from ingot.kit.stream.memory_source import MemorySource
from ingot.kit.stream.nonfinite import RefuseNonFinite
from ingot.kit.stream.safetensors_sink import SafetensorsSink
from ingot.kit.stream.safetensors_source import SafetensorsSource
from ingot.kit.stream.vocabulary import DTYPE_NAMES, Block, Route, Slot, Tap, Transform, Weights, unchanged


def tensors() -> dict[str, torch.Tensor]:
    """Layers out of alphabetical order, several dtypes, odd shapes."""
    torch.manual_seed(0)
    found: dict[str, torch.Tensor] = {"lm_head.weight": torch.randn(70, 16).bfloat16()}
    for layer in (0, 1, 2, 10, 11):
        found[f"model.layers.{layer}.w.weight"] = torch.randn(33, 16).bfloat16()
        found[f"model.layers.{layer}.norm.weight"] = torch.randn(16)
    found["model.embed.weight"] = torch.randn(70, 16).bfloat16()
    found |= {"scalar": torch.tensor(3.0), "none": torch.zeros(0, 4), "thin": torch.zeros(4, 0), "ids": torch.arange(9)}
    found |= {"flags": torch.tensor([True, False, True]), "f8": torch.randn(6, 4).to(torch.float8_e4m3fn)}
    return found


def written(
    out: Path,
    source: dict[str, torch.Tensor],
    *steps: Transform | Tap,
    shard_bytes: int = 5_000_000_000,
    window_bytes: int = pipeline.WINDOW,
) -> SafetensorsSink:
    out.mkdir()
    sink = SafetensorsSink(out, shard_bytes)
    pipeline.run(Weights(MemorySource(source), out, list(steps)), [sink], threads=2, window_bytes=window_bytes)
    return sink


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and bool((left == right).all())


class Cast:
    """To float32, in rows of ``grain``; what is not a matrix passes."""

    def __init__(self, grain: int = 1, *, whole: bool = False) -> None:
        self.grain, self.whole = grain, whole
        self.seen: set[tuple[str, int, int]] = set()
        self.finished = False

    def begin(self, slots: Sequence[Slot]) -> None:
        self.slots = list(slots)

    def routes(self, slot: Slot) -> Sequence[Route]:
        def cast(rows: torch.Tensor, start: int) -> torch.Tensor:
            self.seen.add((slot.name, start, rows.shape[0]))
            return rows.float()

        if len(slot.shape) != 2 or slot.dtype != "BF16":
            return [Route(slot, unchanged)]
        return [Route(Slot(slot.name, slot.shape, "F32"), cast, self.grain, self.whole)]

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize("shard_bytes", [1, 700, 3000, 5_000_000_000])
def test_what_is_written_reads_back_and_its_records_are_true(tmp_path: Path, shard_bytes: int) -> None:
    sink = written(tmp_path / "out", tensors(), shard_bytes=shard_bytes)
    assert sink.files == record_files(tmp_path / "out")
    found = {name: tensor for path in hf.tensor_files(tmp_path / "out") for name, tensor in load_file(path).items()}
    assert found.keys() == tensors().keys()
    assert all(same(found[name], tensor) for name, tensor in tensors().items())
    assert sink.parameters == sum(tensor.numel() for tensor in tensors().values())
    assert sink.zeros == sum(int((tensor == 0).sum()) for tensor in tensors().values())
    assert sink.data_bytes == sum(tensor.nbytes for tensor in tensors().values())
    for path in hf.tensor_files(tmp_path / "out"):
        assert sum(entry.end - entry.begin for _, entry in hf.entries(tmp_path / "out")) == sink.data_bytes, path


def test_tensors_lie_in_the_order_in_which_they_come_and_none_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HashSink, "_keep", None)  # a piece that came before its turn would be kept
    given = dict(reversed(tensors().items()))
    tap = HashSink(tmp_path, 3000)
    first = written(tmp_path / "a", given, Tap(tap), shard_bytes=3000, window_bytes=1)
    assert first.files == tap.files == record_files(tmp_path / "a")
    assert [slot.name for slot in SafetensorsSource(tmp_path / "a").slots] == list(given)


def test_a_tensor_that_would_lie_askew_begins_the_next_file(tmp_path: Path) -> None:
    odd, wide = torch.zeros(3, dtype=torch.bfloat16), torch.ones(2)
    written(tmp_path / "a", {"odd": odd, "wide": wide, "more": odd})
    found = {path.name: [entry.name for entry in check_file(path)] for path in hf.tensor_files(tmp_path / "a")}
    assert found == {
        "model-00001-of-00002.safetensors": ["odd"], "model-00002-of-00002.safetensors": ["wide", "more"]
    }  # fmt: skip
    assert same(load_file(tmp_path / "a" / "model-00002-of-00002.safetensors")["wide"], wide)


def test_one_shard_is_what_the_reference_writer_writes(tmp_path: Path) -> None:
    plain = {name: tensor for name, tensor in sorted(tensors().items()) if tensor.dtype == torch.bfloat16}
    written(tmp_path / "out", plain)
    save_file(plain, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


@pytest.mark.parametrize("shard_bytes", [700, 5_000_000_000])
def test_the_hash_of_what_is_not_written_is_that_of_what_would_be(tmp_path: Path, shard_bytes: int) -> None:
    tap, end = HashSink(tmp_path, shard_bytes), HashSink(tmp_path, shard_bytes)
    given = dict(reversed(tensors().items()))
    sink = written(tmp_path / "out", given, Tap(tap), Cast(), Tap(end), shard_bytes=shard_bytes)
    assert (end.files, end.tensors, end.zeros) == (sink.files, sink.tensors, sink.zeros)
    plain = written(tmp_path / "plain", given, shard_bytes=shard_bytes)
    assert (tap.files, tap.tensors, tap.parameters) == (plain.files, plain.tensors, plain.parameters)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "plain"}


def test_a_source_gives_the_tensors_and_their_digests(tmp_path: Path) -> None:
    sink = written(tmp_path / "out", tensors(), shard_bytes=700)
    (tmp_path / "again").mkdir()
    source = SafetensorsSource(tmp_path / "out", {record.path: record for record in sink.files})
    again = SafetensorsSink(tmp_path / "again", 700)
    pipeline.run(Weights(source, tmp_path / "out"), [again])
    assert again.files == sink.files
    assert source.tensors == sink.tensors


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("at", [20, -1])
def test_a_bit_that_flipped_is_found_in_the_read(tmp_path: Path, at: int) -> None:
    sink = written(tmp_path / "out", {"a": torch.ones(5), "b": torch.ones(3)})
    expected = {record.path: record for record in sink.files}
    path = tmp_path / "out" / "model.safetensors"
    if at < 0:
        flip(path, at)
    else:
        # another header of the same form: the name of a tensor
        path.write_bytes(path.read_bytes().replace(b'"a"', b'"c"'))
    source = SafetensorsSource(tmp_path / "out", expected)
    with pytest.raises(StoreDamaged) as error:
        pipeline.run(Weights(source, tmp_path), [HashSink(tmp_path)], threads=2)
    assert error.value.code == "E-OBJECT-DAMAGED"
    assert error.value.facts == ("model.safetensors has other content",)


def test_a_file_of_another_size_or_unknown_is_found_too(tmp_path: Path) -> None:
    written(tmp_path / "out", {"a": torch.ones(5)})
    for expected in ({}, {"model.safetensors": FileRecord("model.safetensors", 3, "", "")}):
        with pytest.raises(StoreDamaged):
            pipeline.run(
                Weights(SafetensorsSource(tmp_path / "out", expected), tmp_path), [HashSink(tmp_path)], threads=2
            )


class Slow:
    """A sink that fails at block ``at``."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error, self.taken, self.aborted, self.closed = at, error, 0, False, False

    def begin(self, slots: Sequence[Slot]) -> None: ...

    def grain(self, slot: Slot) -> int:
        return 1

    def encode(self, block: Block) -> None: ...

    def write(self, block: Block, encoded: None) -> None:
        if self.taken == self.at:
            raise self.error
        self.taken += 1

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("full")])
def test_what_fails_in_a_sink_stops_everything(tmp_path: Path, error: BaseException) -> None:
    before = set(threading.enumerate())
    sink, other = Slow(3, error), HashSink(tmp_path)
    given = {f"t{number}": torch.ones(64, 64) for number in range(200)}
    with pytest.raises(type(error)):
        pipeline.run(Weights(MemorySource(given), tmp_path, [Tap(other)]), [sink], threads=2, window_bytes=1 << 15)
    assert set(threading.enumerate()) == before
    assert (sink.aborted, sink.closed) == (True, False)


class Failing(Cast):
    """Fails in every block."""

    def routes(self, slot: Slot) -> Sequence[Route]:
        def fail(rows: torch.Tensor, start: int) -> torch.Tensor:
            raise RefusedInput("E-TEST", f"{slot.name} {start}")

        return [Route(slot, fail)]


def test_the_first_error_in_order_is_raised(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    given = {f"t{number}": torch.ones(4, 4) for number in range(50)}
    for _ in range(5):
        with pytest.raises(RefusedInput) as error:
            pipeline.run(Weights(MemorySource(given), tmp_path, [Failing()]), [HashSink(tmp_path)], threads=2)
        assert error.value.what == "t0 0"
    assert set(threading.enumerate()) == before


def test_a_map_sees_the_same_rows_whatever_else_is_in_the_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "TILE_ROWS", 16)
    given = {"w": torch.randn(100, 8).bfloat16()}
    seen = []
    for number, more in enumerate(([], [Cast(whole=True)], [Cast(grain=3)], [Cast(grain=64)])):
        cast = Cast()
        again = [Recast(step) for step in more]
        written(tmp_path / str(number), given, cast, *again)
        assert cast.finished
        seen.append(cast.seen)
    assert all(one == seen[0] for one in seen)
    assert seen[0] == {("w", start, min(16, 100 - start)) for start in range(0, 100, 16)}
    assert len({(tmp_path / str(number) / "model.safetensors").read_bytes() for number in range(4)}) == 1


class Recast(Cast):
    """As another, of F32."""

    def __init__(self, other: Cast) -> None:
        super().__init__(other.grain, whole=other.whole)

    def routes(self, slot: Slot) -> Sequence[Route]:
        return [Route(slot, lambda rows, _start: rows + 0, self.grain, self.whole)]


def test_a_map_sees_multiples_of_its_grain_or_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "TILE_ROWS", 16)
    given = {"w": torch.randn(100, 8).bfloat16()}
    for number, cast in enumerate((Cast(grain=12), Cast(grain=30), Cast(whole=True))):
        written(tmp_path / str(number), given, cast)
        starts = sorted(start for _, start, _ in cast.seen)
        step = 100 if cast.whole else cast.grain
        assert starts == list(range(0, 100, step))


def test_a_map_that_breaks_its_word_is_told(tmp_path: Path) -> None:
    class Liar(Cast):
        def routes(self, slot: Slot) -> Sequence[Route]:
            return [Route(slot, lambda rows, _start: rows[:1])]

    with pytest.raises(TypeError, match="announced"):
        written(tmp_path / "out", {"w": torch.ones(4, 4)}, Liar())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("value", "fact"), [(float("nan"), "1 NaN, 0"), (float("-inf"), "0 NaN, 1")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, dtype: torch.dtype, value: float, fact: str) -> None:
    given = {"a": torch.ones(3, 3, dtype=dtype), "b": torch.ones(3, 3, dtype=dtype), "i": torch.ones(3).int()}
    written(tmp_path / "fine", given, RefuseNonFinite())
    given["b"][1, 2] = value
    with pytest.raises(RefusedInput) as error:
        written(tmp_path / "out", given, RefuseNonFinite())
    assert error.value.code == "E-NONFINITE"
    assert "'b'" in error.value.what
    assert error.value.facts[0].startswith(fact)
    assert error.value.facts[0].endswith("in rows 0 to 2 of 3, the first in row 1")
    assert "in no quantized GGUF" in str(error.value.hint)


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    class Twins(Cast):
        def routes(self, slot: Slot) -> Sequence[Route]:
            return [Route(slot), Route(slot)]

    with pytest.raises(RefusedInput) as error:
        written(tmp_path / "out", {"w": torch.ones(4, 4)}, Twins())
    assert error.value.code == "E-ST-INDEX"


def test_an_index_lists_where_each_tensor_is(tmp_path: Path) -> None:
    sink = written(tmp_path / "out", tensors(), shard_bytes=3000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sink.data_bytes}
    where = {entry.name: path.name for path, entry in hf.entries(tmp_path / "out")}
    assert index["weight_map"] == where
    assert where["lm_head.weight"] == min(where.values())
    assert DTYPE_NAMES[torch.bfloat16] == "BF16"
