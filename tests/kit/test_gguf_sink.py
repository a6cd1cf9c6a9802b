"""The sink's bytes are those of ``llama_model_quantize``, however the rows come, and its hashes are the files'."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
import xxhash

from ingot.core.digest import hash_file
from ingot.errors import RefusedInput
from ingot.kit.gguf import ggml as ggml_module
from ingot.kit.gguf import writer
from ingot.kit.gguf.ggml import ggml
from ingot.kit.gguf.mixture import ModelFacts, Tensor, Wish, choose
from ingot.kit.gguf.reader import Gguf, read_gguf
from ingot.kit.gguf.sink import Content, GgufSink
from ingot.kit.gguf.types import FILE_TYPES, PLAIN
from ingot.kit.stream.memory_source import MemorySource
from ingot.kit.stream.pipeline import run
from ingot.kit.stream.vocabulary import Block, Slot, Weights
from quantref import facts_fields, quantize, random_imatrix, random_weights, skeleton, write

FACTS = ModelFacts("llama", 9, 8, 2)
#: Weights for which the type has no sound block; others come out as numbers, and a transform before refuses them.
_TOO_MUCH = {"Q4_0": (float("inf"), 1e30), "Q4_K_M": (float("inf"),), "Q8_0": (1e30,), "F16": (float("nan"), 1e30)}
SLOW_TABLES = {"IQ1_S", "IQ1_M", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS"}


def _slots(tensors: Sequence[Tensor]) -> list[Slot]:
    return [Slot(tensor.name, tensor.shape, tensor.stored) for tensor in tensors]


def _content(wish: Wish, imatrix: Mapping[str, torch.Tensor] | None = None, **more: object) -> Content:
    def chosen(slots: Sequence[Slot]) -> Mapping[str, object]:
        return choose([Tensor(slot.name, slot.shape, slot.dtype) for slot in slots], FACTS, wish)

    return Content(chosen, lambda _slots: facts_fields(FACTS), imatrix=imatrix or {}, **more)  # type: ignore[arg-type]


def _drive(sinks: Sequence[GgufSink], tensors: Sequence[Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    run(Weights(MemorySource({t.name: weights[t.name] for t in tensors}), Path()), sinks, threads=3)


def _in_blocks(sink: GgufSink, tensors: Sequence[Tensor], rows: int) -> None:
    """What the pipeline does, with blocks of so many rows."""
    weights = random_weights(tensors)
    sink.begin(_slots(tensors))
    for index, tensor in enumerate(tensors):
        for start in range(0, tensor.shape[0], rows):
            block = Block(index, start, weights[tensor.name][start : start + rows])
            sink.write(block, sink.encode(block))
    sink.close()


def _made(folder: Path, wish: Wish, tensors: Sequence[Tensor], **more: object) -> tuple[GgufSink, Gguf]:
    folder.mkdir(exist_ok=True)
    sink = GgufSink(folder / "model.gguf", _content(wish, **more))  # type: ignore[arg-type]
    _drive([sink], tensors, random_weights(tensors))
    return sink, read_gguf(sink.paths()[0])


def _unequal(ours: Gguf, theirs: Gguf) -> list[str]:
    by_name = {info.name: info for info in ours.tensors}
    assert by_name.keys() == {info.name for info in theirs.tensors}
    return [
        f"{info.name}: {info.type}, {by_name[info.name].type}"
        for info in theirs.tensors
        if info.type != by_name[info.name].type or theirs.raw(info).tobytes() != ours.raw(by_name[info.name]).tobytes()
    ]


def _against_reference(folder: Path, kind: str, tensors: Sequence[Tensor], *, imatrix: bool) -> list[str]:
    weights = random_weights(tensors)
    matrix = random_imatrix(tensors) if imatrix else None
    wish = Wish(kind, imatrix=imatrix)
    source = write(folder / f"{kind}{imatrix}-source.gguf", FACTS, tensors, weights)
    theirs = quantize(source, folder / f"{kind}{imatrix}-reference.gguf", wish, matrix)
    _, ours = _made(folder / f"{kind}{imatrix}", wish, tensors, imatrix=matrix)
    return _unequal(ours, theirs)


def _needs(kind: str) -> bool:
    return kind in {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}


@pytest.mark.parametrize("kind", sorted(FILE_TYPES.keys() - SLOW_TABLES))
def test_bytes_are_llama_cpps(tmp_path: Path, kind: str) -> None:
    tensors = skeleton(ModelFacts("llama", 2, 8, 2), tied=False, stored="BF16", rows=2)
    for imatrix in {True, _needs(kind)}:
        assert _against_reference(tmp_path, kind, tensors, imatrix=imatrix) == []


@pytest.mark.parametrize("stored", ["F32", "F16"])
def test_bytes_from_other_stored_types(tmp_path: Path, stored: str) -> None:
    tensors = skeleton(ModelFacts("llama", 2, 8, 2), tied=True, stored=stored, rows=4)
    for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M", "IQ4_NL"):
        assert _against_reference(tmp_path, kind, tensors, imatrix=False) == []


@pytest.mark.slow
@pytest.mark.parametrize("columns", [256, 768, 288, 172])
@pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
def test_bytes_of_every_type(tmp_path: Path, stored: str, columns: int) -> None:
    for tied in (True, False):
        tensors = skeleton(FACTS, tied=tied, stored=stored, rows=9, columns=columns)
        for kind in FILE_TYPES:
            for imatrix in {True, _needs(kind)}:
                folder = tmp_path / f"{tied}"
                folder.mkdir(exist_ok=True)
                assert _against_reference(folder, kind, tensors, imatrix=imatrix) == []


@pytest.mark.parametrize("columns", [288, 172])
def test_fall_backs_have_llama_cpps_bytes(tmp_path: Path, columns: int) -> None:
    tensors = skeleton(ModelFacts("llama", 2, 8, 2), tied=True, stored="BF16", columns=columns, rows=4)
    for kind in ("Q4_K_M", "Q6_K", "Q2_K", "Q8_0", "IQ4_XS", "TQ1_0", "F16"):
        assert _against_reference(tmp_path, kind, tensors, imatrix=False) == []


def test_overrides_have_llama_cpps_bytes(tmp_path: Path) -> None:
    tensors = skeleton(FACTS, tied=False, stored="BF16", rows=3)
    wish = Wish("Q4_K_M", overrides=(("ffn_(up|gate)", "Q8_0"), ("attn_v", "BF16")), embedding="Q5_1", output="F16")
    source = write(tmp_path / "source.gguf", FACTS, tensors, random_weights(tensors))
    theirs = quantize(source, tmp_path / "reference.gguf", wish)
    assert _unequal(_made(tmp_path / "ours", wish, tensors)[1], theirs) == []


def test_how_rows_come_changes_nothing(tmp_path: Path) -> None:
    tensors = skeleton(ModelFacts("llama", 2, 8, 2), tied=True, stored="BF16", rows=7)
    matrix = random_imatrix(tensors)
    for kind in ("Q4_0", "Q5_K_M", "IQ3_S", "F16"):
        digests = set()
        for rows in (1, 2, 3, 100):
            sink = GgufSink(tmp_path / f"{kind}{rows}.gguf", _content(Wish(kind, imatrix=True), matrix))
            _in_blocks(sink, tensors, rows)
            digests.add(sink.records()[0].sha256)
        assert len(digests) == 1


def test_large_blocks_go_in_parts_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(50, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole = ggml().encode(rows, "Q4_K")
    monkeypatch.setattr(ggml_module, "_FLOATS", 3 * 512)
    assert torch.equal(ggml().encode(rows, "Q4_K"), whole)


def _spoil_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ggml_module.Ggml.encode

    def wrong(self: object, rows: torch.Tensor, kind: str, *args: object, **more: object) -> torch.Tensor:
        encoded = right(self, rows, kind, *args, **more)  # type: ignore[arg-type]
        if kind == "Q6_K":
            encoded[-1] ^= 1
        return encoded

    monkeypatch.setattr(ggml_module.Ggml, "encode", wrong)


def _forget_imatrix(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ggml_module.Ggml.encode
    monkeypatch.setattr(
        ggml_module.Ggml, "encode", lambda self, rows, kind, _weights, **more: right(self, rows, kind, None, **more)
    )


@pytest.mark.parametrize("fault", [_spoil_scale, _forget_imatrix])
def test_one_wrong_bit_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None]
) -> None:
    tensors = skeleton(ModelFacts("llama", 2, 8, 2), tied=True, rows=4)
    fault(monkeypatch)
    assert _against_reference(tmp_path, "Q4_K_M", tensors, imatrix=True)


@pytest.mark.parametrize("split", [None, 3000])
def test_hashes_are_those_of_the_files(tmp_path: Path, split: int | None) -> None:
    tensors = skeleton(ModelFacts("llama", 2, 8, 2), tied=True, rows=5)
    sink, _ = _made(tmp_path / "x", Wish("Q4_0"), tensors, split_bytes=split)
    for record, path in zip(sink.records(), sink.paths(), strict=True):
        assert (record.path, record.size, record.sha256, record.xxh3_128) == (path.name, *hash_file(path))
    assert sink.bytes_written == sum(path.stat().st_size for path in sink.paths())
    written = {info.name: read.raw(info).tobytes() for read in map(read_gguf, sink.paths()) for info in read.tensors}
    assert sink.tensors == {name: xxhash.xxh3_128_hexdigest(data) for name, data in written.items()}
    assert sink.parameters == sum(slot.elements for slot in _slots(tensors))


def test_parts_hold_what_the_whole_holds(tmp_path: Path) -> None:
    tensors = skeleton(ModelFacts("llama", 2, 8, 2), tied=False, rows=5)
    _, whole = _made(tmp_path / "whole", Wish("Q4_0"), tensors)
    sink, first = _made(tmp_path / "parts", Wish("Q4_0"), tensors, split_bytes=3000)
    paths = sink.paths()
    count = len(paths)
    assert [path.name for path in paths] == [f"model-{n:05d}-of-{count:05d}.gguf" for n in range(1, count + 1)]
    parts = [read_gguf(path) for path in paths]
    assert count > 3
    joined = {info.name: part.raw(info).tobytes() for part in parts for info in part.tensors}
    assert joined == {info.name: whole.raw(info).tobytes() for info in whole.tensors}
    # as llama-gguf-split cuts: a part takes tensors, padded, up to the limit; the metadata is in the first
    sizes = [sum(-(-info.size // 32) * 32 for info in part.tensors) for part in parts]
    assert all(size <= 3000 for size in sizes)
    for part, following in itertools.pairwise(parts):
        assert sum(-(-i.size // 32) * 32 for i in part.tensors) + following.tensors[0].size > 3000
    split = {"split.count": count, "split.tensors.count": len(tensors)}
    assert first.metadata == {**whole.metadata, "split.no": 0, **split}
    assert [part.metadata for part in parts[1:]] == [{"split.no": n, **split} for n in range(1, count)]


def test_a_tensor_over_the_limit_has_a_part_of_its_own(tmp_path: Path) -> None:
    tensors = skeleton(ModelFacts("llama", 1, 8, 8), tied=True)
    sink, _ = _made(tmp_path / "x", Wish("F32"), tensors, split_bytes=1)
    assert [len(read_gguf(path).tensors) for path in sink.paths()] == [1] * len(tensors)


def test_several_files_from_one_read(tmp_path: Path) -> None:
    tensors = skeleton(ModelFacts("llama", 2, 8, 2), tied=True, stored="BF16", rows=4)
    kinds = ("Q4_K_M", "Q8_0", "F16")
    sinks = [GgufSink(tmp_path / f"{kind}.gguf", _content(Wish(kind))) for kind in kinds]
    _drive(sinks, tensors, random_weights(tensors))
    for sink, kind in zip(sinks, kinds, strict=True):
        alone, _ = _made(tmp_path / kind, Wish(kind), tensors)
        assert sink.records()[0].sha256 == alone.records()[0].sha256
        assert sink.tensors == alone.tensors


def test_a_digest_that_is_known_late(tmp_path: Path) -> None:
    """The file is the one that is written when the digest is known before."""
    tensors = skeleton(ModelFacts("llama", 1, 8, 8), tied=True, rows=3)

    def content(digest: str, *, late: bool) -> Content:
        fields = [*facts_fields(FACTS), writer.text("ingot.model.digest", digest)]
        plain = _content(Wish("Q8_0"))
        return Content(plain.choose, lambda _slots: fields, late=late)

    early = GgufSink(tmp_path / "early.gguf", content("7" * 64, late=False))
    late = GgufSink(tmp_path / "late.gguf", content("0" * 64, late=True))
    for sink in (early, late):
        _drive([sink], tensors, random_weights(tensors))
    late.complete([writer.text("ingot.model.digest", "7" * 64)])
    done = late.records()[0]
    assert done.sha256 == early.records()[0].sha256
    assert done.sha256 == hash_file(tmp_path / "late.gguf")[1]
    with pytest.raises(ValueError, match="changed the size"):
        late.complete([writer.text("ingot.model.digest", "7" * 163)])


def test_tensors_that_no_source_holds_come_first(tmp_path: Path) -> None:
    tensors = skeleton(ModelFacts("llama", 1, 8, 8), tied=True)
    extra = {"rope_freqs.weight": torch.arange(4, dtype=torch.float32)}
    _, read = _made(tmp_path / "x", Wish("Q4_0"), tensors, extra=extra)
    assert read.tensors[0].name == "rope_freqs.weight"
    assert read.dequantized(read.tensors[0]).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("kind", "value"),
    [(k, v) for k, vs in _TOO_MUCH.items() for v in vs],
)
def test_weights_that_no_block_can_hold(tmp_path: Path, kind: str, value: float) -> None:
    tensors = skeleton(ModelFacts("llama", 1, 8, 8), tied=True)
    weights = random_weights(tensors)
    weights["blk.0.ffn_up.weight"][1, 3] = value
    sink = GgufSink(tmp_path / "x.gguf", _content(Wish(kind)))
    with pytest.raises(RefusedInput, match="do not fit") as caught:
        _drive([sink], tensors, weights)
    assert caught.value.code == "E-GGUF-NONFINITE"
    assert "blk.0.ffn_up.weight" in str(caught.value.facts)


@pytest.mark.parametrize("fault", ["missing", "size"])
def test_an_importance_matrix_that_does_not_fit(tmp_path: Path, fault: str) -> None:
    tensors = skeleton(ModelFacts("llama", 1, 8, 8), tied=True)
    matrix = random_imatrix(tensors)
    if fault == "missing":
        del matrix["blk.0.ffn_up.weight"]
    else:
        matrix["blk.0.ffn_up.weight"] = torch.ones(255)
    sink = GgufSink(tmp_path / "x.gguf", _content(Wish("IQ2_XXS", imatrix=True), matrix))
    with pytest.raises(RefusedInput, match=r"blk\.0\.ffn_up\.weight") as caught:
        sink.begin(_slots(tensors))
    assert caught.value.code == "E-GGUF-IMATRIX"
    assert not (tmp_path / "x.gguf").exists()


def test_tensors_may_come_in_any_order(tmp_path: Path) -> None:
    """Tensors that were made from one come in turns; the file is the same."""
    tensors = skeleton(ModelFacts("llama", 2, 8, 2), tied=False, rows=3)
    weights = random_weights(tensors)
    straight, _ = _made(tmp_path / "straight", Wish("Q4_0"), tensors)
    sink = GgufSink(tmp_path / "model.gguf", _content(Wish("Q4_0")))
    sink.begin(_slots(tensors))
    for start in range(0, 256, 2):
        for index, tensor in reversed(list(enumerate(tensors))):
            if start < tensor.shape[0]:
                block = Block(index, start, weights[tensor.name][start : start + 2])
                sink.write(block, sink.encode(block))
    sink.close()
    assert sink.records() == straight.records()
    assert sink.tensors == straight.tensors
    assert sink.records()[0].sha256 == hash_file(tmp_path / "model.gguf")[1]


@pytest.mark.parametrize("fault", ["twice", "short"])
def test_blocks_that_do_not_add_up(tmp_path: Path, fault: str) -> None:
    tensors = skeleton(ModelFacts("llama", 1, 8, 8), tied=True)
    weights = random_weights(tensors)
    sink = GgufSink(tmp_path / "x.gguf", _content(Wish("F32")))
    sink.begin(_slots(tensors))
    block = Block(0, 0, weights[tensors[0].name])
    sink.write(block, sink.encode(block))
    if fault == "twice":
        with pytest.raises(ValueError, match="too many bytes"):
            sink.write(block, sink.encode(block))
    else:
        with pytest.raises(ValueError, match="not whole"):
            sink.close()
    sink.abort()


def test_the_library_is_the_one_it_was_written_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from ingot.errors import MissingTool, StageFailed
    from ingot.kit.gguf.types import GGML_TYPES, GgmlType

    assert ggml().version.count(".") == 2
    assert ggml().requires_imatrix("IQ2_XXS")
    assert not ggml().requires_imatrix("Q4_K")
    assert GGML_TYPES.keys() >= PLAIN
    monkeypatch.setitem(GGML_TYPES, "Q4_K", GgmlType(12, 256, 140))
    ggml_module.ggml.cache_clear()
    with pytest.raises(StageFailed, match="another Q4_K"):
        ggml()
    monkeypatch.setattr(ggml_module, "_NAMES", {"linux": "no-such.so"})
    with pytest.raises(MissingTool, match=r"no-such\.so"):
        ggml()
    ggml_module.ggml.cache_clear()
