"""Tensors taken over from earlier files: the file is the one that would have been made, whatever those hold by now."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import load_file, save_file
from tiny_llama import make_llama

from ingot.core.digest import FileRecord, hash_file, record_files, tree_digest
from ingot.core.stage import Done, Earlier, Given, Virtual
from ingot.errors import RefusedInput
from ingot.kit.gguf import reuse
from ingot.kit.gguf.reader import read_gguf
from ingot.kit.stream.chain import Origin
from ingot.kit.stream.vocabulary import Slot
from stagekit import Recorder, digest_of, stage_of

LAYERS = 3
#: Matrices of the model: seven in each layer, and the tied embedding.
MATRICES = 7 * LAYERS + 1


@dataclass(frozen=True)
class Model:
    """What a stage wrote, or the stage that would, with what it would be given."""

    folder: Path | None = None
    tensors: Mapping[str, str] | None = None
    virtual: Virtual | None = None


@dataclass(frozen=True)
class Made:
    """A file that was built, and what came back."""

    folder: Path
    done: Done

    @property
    def digest(self) -> str:
        return hash_file(self.folder / "model.gguf")[1]

    @property
    def earlier(self) -> Earlier:
        return Earlier(self.folder, self.done.tensors, json.loads(json.dumps(self.done.blocks)))

    @property
    def reused(self) -> int:
        found = self.done.metrics.get("reused_tensors")
        return 0 if found is None else int(found.value)


class Bench:
    """Runs stages in folders of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def _new(self) -> tuple[Path, Path]:
        self.count += 1
        out, scratch = self.folder / f"{self.count}", self.folder / f"{self.count}-scratch"
        out.mkdir()
        scratch.mkdir()
        return out, scratch

    def given(self, model: Model, **inputs: Path) -> Given:
        folders = {role: (path,) for role, path in inputs.items()}
        folders |= {"model": (model.folder,)} if model.folder else {}
        files: dict[str, tuple[Mapping[str, FileRecord], ...]] = {
            role: ({record.path: record for record in record_files(path)},) for role, (path,) in folders.items()
        }
        return Given(
            inputs=folders,
            digests={role: (digest_of(path),) for role, (path,) in folders.items()},
            scratch=self._new()[1],
            threads=2,
            files=files,
            virtual={"model": model.virtual} if model.virtual else {},
            tensors={"model": model.tensors} if model.tensors else {},
        )

    def merge(self, base: Path, adapter: Path, *, virtual: bool) -> Model:
        stage, given = stage_of("merge", {}), self.given(Model(base), adapter=adapter)
        if virtual:
            return Model(virtual=Virtual(stage, given))
        out, _ = self._new()
        return Model(out, Done.of(stage.run(given, out, Recorder())).tensors)

    def gguf(self, params: Mapping[str, Any], model: Model | Path, *earlier: Made | Earlier, **inputs: Path) -> Made:
        return self.several([params], model, *earlier, **inputs)[0]

    def several(
        self, wanted: list[Mapping[str, Any]], model: Model | Path, *earlier: Made | Earlier, **inputs: Path
    ) -> list[Made]:
        given = self.given(Model(model) if isinstance(model, Path) else model, **inputs)
        given = replace(given, earlier=tuple(item.earlier if isinstance(item, Made) else item for item in earlier))
        stages = [stage_of("gguf", params) for params in wanted]
        outs = [self._new()[0] for _ in stages]
        found = type(stages[0]).run_many(stages, given, outs, Recorder())
        return [Made(out, Done.of(done)) for out, done in zip(outs, found, strict=True)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "hf"
    return make_llama(folder, hidden_size=256, intermediate_size=512, num_hidden_layers=LAYERS, head_dim=64)


@pytest.fixture(scope="module")
def first(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The base in Q4_K_M, made by itself."""
    return Bench(tmp_path_factory.mktemp("first")).gguf({"type": "Q4_K_M"}, base)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two adapters of the attention of the upper layers."""
    found = []
    for number in range(2):
        folder = tmp_path_factory.mktemp("adapter") / "lora"
        folder.mkdir()
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        torch.manual_seed(number)
        tensors = {}
        for layer in range(1, LAYERS):
            for name, rows in (("q_proj", 256), ("v_proj", 128)):
                place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
                tensors[f"{place}.lora_A.weight"] = torch.randn(4, 256) * 0.1
                tensors[f"{place}.lora_B.weight"] = torch.randn(rows, 4) * 0.1
        save_file(tensors, folder / "adapter_model.safetensors")
        found.append(folder)
    return found[0], found[1]


#: Weights that the adapters change.
TOUCHED = 2 * (LAYERS - 1)


def changed(base: Path, folder: Path, name: str) -> Path:
    """The base with one tensor negated."""
    shutil.copytree(base, folder)
    path = folder / "model.safetensors"
    path.chmod(0o644)
    tensors = load_file(path)
    save_file({**tensors, name: -tensors[name]}, path, metadata={"format": "pt"})
    return folder


def test_all_of_the_same_model_is_taken_over(bench: Bench, base: Path, first: Made) -> None:
    again = bench.gguf({"type": "Q4_K_M"}, base, first)
    assert again.digest == first.digest
    assert (first.reused, again.reused) == (0, MATRICES)
    gguf = read_gguf(again.folder / "model.gguf")
    quantized = [info for info in gguf.tensors if info.type != "F32"]
    assert again.done.metrics["reused_bytes"].value == sum(info.size for info in quantized)
    assert "saved_s" not in first.done.metrics
    saved = again.done.metrics["saved_s"].value
    spent = sum(block["encode_ns"] for block in first.earlier.blocks["tensors"].values()) / 1e9
    assert saved < spent, "copying is not free"
    assert "reuse" not in again.done.notes
    # what encoding took is handed on to those that come after
    assert again.done.blocks == first.done.blocks
    assert {info.name: info.begin for info in quantized} == {
        name: block["at"] for name, block in first.earlier.blocks["tensors"].items()
    }


@pytest.mark.parametrize("virtual", [True, False], ids=["virtual", "written"])
def test_what_an_adapter_does_not_touch_is_taken_over(
    bench: Bench, base: Path, first: Made, adapters: tuple[Path, Path], *, virtual: bool
) -> None:
    one, two = (bench.merge(base, adapter, virtual=virtual) for adapter in adapters)
    fresh = bench.gguf({"type": "Q4_K_M"}, two)
    reusing = bench.gguf({"type": "Q4_K_M"}, two, bench.gguf({"type": "Q4_K_M"}, one))
    assert reusing.digest == fresh.digest
    assert (fresh.reused, reusing.reused) == (0, MATRICES - TOUCHED)
    of_base = bench.gguf({"type": "Q4_K_M"}, two, first)
    assert of_base.digest == fresh.digest
    # the tensors of the base are known by name; of a merged folder, by the digests in its receipt
    assert of_base.reused == MATRICES - TOUCHED
    if not virtual:
        unknown = bench.gguf({"type": "Q4_K_M"}, replace(two, tensors=None), first)
        assert (unknown.digest, unknown.reused) == (fresh.digest, 0)


def test_an_adapter_is_known_again(bench: Bench, base: Path, adapters: tuple[Path, Path]) -> None:
    """The same merge again with other types elsewhere; half of the merge is another merge."""
    merged = bench.merge(base, adapters[0], virtual=True)
    before = bench.gguf({"type": "Q4_K_M"}, merged)
    params = {"type": "Q4_K_M", "overrides": [{"tensors": "ffn_down", "type": "Q8_0"}]}
    assert bench.gguf(params, merged, before).reused == MATRICES - LAYERS
    assert merged.virtual is not None
    half = replace(merged, virtual=replace(merged.virtual, stage=stage_of("merge", {"weights": [0.5]})))
    fresh = bench.gguf({"type": "Q4_K_M"}, half)
    again = bench.gguf({"type": "Q4_K_M"}, half, before)
    assert again.digest == fresh.digest != before.digest
    assert again.reused == MATRICES - TOUCHED


def test_another_merging_code_counts_where_it_merges(
    bench: Bench, base: Path, adapters: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = bench.merge(base, adapters[0], virtual=True)
    before = bench.gguf({"type": "Q4_K_M"}, merged)
    assert bench.gguf({"type": "Q4_K_M"}, merged, before).reused == MATRICES
    assert merged.virtual is not None
    monkeypatch.setattr(type(merged.virtual.stage), "revision", 99)
    assert bench.gguf({"type": "Q4_K_M"}, merged, before).reused == MATRICES - TOUCHED


def test_a_type_is_never_taken_for_another(bench: Bench, base: Path, first: Made) -> None:
    fresh = bench.gguf({"type": "Q4_0"}, base)
    again = bench.gguf({"type": "Q4_0"}, base, first)
    assert again.digest == fresh.digest
    # the output layer is Q6_K in both mixtures
    assert again.reused == 1
    params = {"type": "Q4_K_M", "overrides": [{"tensors": "attn_q", "type": "Q5_K"}]}
    fresh, again = bench.gguf(params, base), bench.gguf(params, base, first)
    assert again.digest == fresh.digest
    assert again.reused == MATRICES - LAYERS
    assert bench.gguf({"type": "F16"}, base, first).reused == 0


def test_one_pass_takes_over_for_each_of_its_files(bench: Bench, base: Path, first: Made) -> None:
    types: list[Mapping[str, Any]] = [{"type": "Q4_0"}, {"type": "Q4_K_M"}, {"type": "Q8_0"}]
    fresh = bench.several(types, base)
    again = bench.several(types, base, first)
    assert [made.digest for made in again] == [made.digest for made in fresh]
    assert [made.reused for made in again] == [1, MATRICES, 0]
    once_more = bench.several(types, base, first, fresh[0], fresh[2])
    assert [made.digest for made in once_more] == [made.digest for made in fresh]
    assert [made.reused for made in once_more] == [MATRICES] * 3


def test_parts_are_read_where_they_lie(bench: Bench, base: Path, first: Made) -> None:
    parts = bench.gguf({"type": "Q4_K_M", "split_bytes": 200_000}, base)
    assert len(list(parts.folder.iterdir())) > 3
    whole = bench.gguf({"type": "Q4_K_M"}, base, parts)
    assert (whole.digest, whole.reused) == (first.digest, MATRICES)
    again = bench.gguf({"type": "Q4_K_M", "split_bytes": 200_000}, base, first)
    assert (digest_of(again.folder), again.reused) == (digest_of(parts.folder), MATRICES)


def imatrix(folder: Path, scale: float) -> Path:
    """An importance matrix of llama.cpp's older form with entries for the query projections."""
    import struct

    folder.mkdir()
    names = [f"blk.{layer}.attn_q.weight" for layer in range(LAYERS)]
    data = struct.pack("<i", len(names))
    for name in names:
        values = (torch.arange(256) * scale % 7 + 0.5).tolist()
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 1, 256)
        data += struct.pack("<256f", *values)
    (folder / "imatrix.dat").write_bytes(data)
    return folder


def test_another_importance_is_another_tensor(bench: Bench, base: Path, first: Made, tmp_path: Path) -> None:
    one, two = imatrix(tmp_path / "one", 1.0), imatrix(tmp_path / "two", 2.0)
    before = bench.gguf({"type": "Q4_K_M"}, base, first, imatrix=one)
    assert before.reused == MATRICES - LAYERS
    assert bench.gguf({"type": "Q4_K_M"}, base, before, imatrix=one).reused == MATRICES
    fresh = bench.gguf({"type": "Q4_K_M"}, base, imatrix=two)
    again = bench.gguf({"type": "Q4_K_M"}, base, before, first, imatrix=two)
    assert again.digest == fresh.digest != before.digest
    assert again.reused == MATRICES - LAYERS


def test_another_ggml_is_another_tensor(bench: Bench, base: Path, first: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "_library", lambda: "0" * 64)
    assert bench.gguf({"type": "Q4_K_M"}, base, first).reused == 0


def test_the_forms_of_the_tensor_count() -> None:
    """Equal bytes are another tensor in another dtype or shape, or on another way."""
    slot = Slot("a", (8, 64), "BF16")
    known = reuse.recipe(Origin(slot, ("", "x")), slot, "Q4_0", None, [["merge", 1]])
    assert known is not None
    assert reuse.recipe(Origin(replace(slot, name="b"), ("", "", "x")), slot, "Q4_0", None, []) == known
    for other in (
        reuse.recipe(Origin(replace(slot, dtype="F16"), ("", "x")), slot, "Q4_0", None, []),
        reuse.recipe(Origin(replace(slot, shape=(64, 8)), ("", "x")), slot, "Q4_0", None, []),
        reuse.recipe(Origin(slot, ("", "x")), replace(slot, shape=(16, 32)), "Q4_0", None, []),
        reuse.recipe(Origin(slot, ("", "y")), slot, "Q4_0", None, []),
        reuse.recipe(Origin(slot, ("x", "")), slot, "Q4_0", None, [["merge", 1]]),
        reuse.recipe(Origin(slot, ("", "x")), slot, "Q4_0", torch.ones(64), []),
    ):
        assert other not in (None, known)
    assert reuse.recipe(Origin(slot, (None, "x")), slot, "Q4_0", None, []) is None


# --- what is not as it was recorded ---------------------------------------------------------------------------------


def _of(made: Made, folder: Path) -> Earlier:
    """A copy that a test may damage."""
    shutil.copytree(made.folder, folder)
    (folder / "model.gguf").chmod(0o644)
    return replace(made.earlier, folder=folder)


def _flip(earlier: Earlier) -> Earlier:
    block = earlier.blocks["tensors"]["blk.1.ffn_up.weight"]
    with (earlier.folder / block["file"]).open("r+b") as file:
        file.seek(block["at"] + 1000)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))
    return earlier


def _other_digest(earlier: Earlier) -> Earlier:
    return replace(earlier, tensors={**earlier.tensors, "blk.0.attn_k.weight": "0" * 32})


def _other_place(earlier: Earlier) -> Earlier:
    earlier.blocks["tensors"]["blk.0.attn_k.weight"]["at"] += 32
    return earlier


@pytest.mark.fault("B3", "an earlier file whose tensors are copied is damaged: they are made anew")
@pytest.mark.parametrize("damage", [_flip, _other_digest, _other_place], ids=lambda f: f.__name__)
def test_bytes_that_are_not_as_recorded_are_made_anew(
    bench: Bench, base: Path, first: Made, tmp_path: Path, damage: Callable[[Earlier], Earlier]
) -> None:
    again = bench.gguf({"type": "Q4_K_M"}, base, damage(_of(first, tmp_path / "damaged")))
    assert again.digest == first.digest
    assert again.reused == 0
    assert "not as recorded" in str(again.done.notes["reuse"])
    assert again.done.files == tuple(record_files(again.folder))


def _cut(earlier: Earlier) -> Earlier:
    with (earlier.folder / "model.gguf").open("r+b") as file:
        file.truncate(100_000)
    return earlier


def _gone(earlier: Earlier) -> Earlier:
    (earlier.folder / "model.gguf").unlink()
    return earlier


def _link(earlier: Earlier) -> Earlier:
    path = earlier.folder / "model.gguf"
    path.rename(earlier.folder / "other")
    path.symlink_to("other")
    return earlier


def _outside(earlier: Earlier) -> Earlier:
    for block in earlier.blocks["tensors"].values():
        block["file"] = "../damaged/model.gguf"
    return earlier


def _nonsense(earlier: Earlier) -> Earlier:
    return replace(earlier, blocks={"tensors": ["a"], "source": 3})


@pytest.mark.fault("B3", "an earlier file whose tensors are copied is damaged: they are made anew")
@pytest.mark.parametrize("damage", [_cut, _gone, _link, _outside, _nonsense], ids=lambda f: f.__name__)
def test_files_that_cannot_be_read_are_passed_over(
    bench: Bench, base: Path, first: Made, tmp_path: Path, damage: Callable[[Earlier], Earlier]
) -> None:
    again = bench.gguf({"type": "Q4_K_M"}, base, damage(_of(first, tmp_path / "damaged")))
    assert again.digest == first.digest
    assert again.reused == 0 or (damage is _cut and again.reused < MATRICES)
    assert "reuse" not in again.done.notes


@pytest.mark.fault("B3", "an earlier file whose tensors are copied is damaged: they are made anew")
def test_a_file_that_ends_while_it_is_read_is_passed_over(
    bench: Bench, base: Path, first: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = _of(first, tmp_path / "damaged")
    read = reuse.Shelf.read

    def cut(self: reuse.Shelf, *wanted: Any) -> torch.Tensor:
        os.truncate(earlier.folder / "model.gguf", 0)
        return read(self, *wanted)

    monkeypatch.setattr(reuse.Shelf, "read", cut)
    again = bench.gguf({"type": "Q4_K_M"}, base, earlier)
    assert again.digest == first.digest
    assert "not as recorded" in str(again.done.notes["reuse"])


def test_a_source_that_is_not_what_was_told_of_it_is_encoded(
    bench: Bench, base: Path, first: Made, tmp_path: Path
) -> None:
    """The receipt of the input is wrong, or of another: what was read decides."""
    name = "model.layers.1.mlp.up_proj.weight"
    other = changed(base, tmp_path / "other", name)
    told = {block["source_name"]: block["source_xxh3_128"] for block in first.earlier.blocks["tensors"].values()}
    again = bench.gguf({"type": "Q4_K_M"}, Model(other, told), first)
    assert again.digest == bench.gguf({"type": "Q4_K_M"}, other).digest != first.digest
    assert again.reused == 0
    assert "not as recorded" in str(again.done.notes["reuse"])
    truth = {key: value for key, value in told.items() if key != name}
    assert bench.gguf({"type": "Q4_K_M"}, Model(other, truth), first).reused == MATRICES - 1


def test_weights_that_are_no_numbers_are_refused_all_the_same(
    bench: Bench, base: Path, first: Made, tmp_path: Path
) -> None:
    """What is taken over is read, and looked at, like all else."""
    name = "model.layers.0.mlp.up_proj.weight"
    bad = changed(base, tmp_path / "bad", name)
    tensors = load_file(bad / "model.safetensors")
    tensors[name][0, 0] = torch.nan
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    before = first.earlier
    (block,) = [item for item in before.blocks["tensors"].values() if item["source_name"] == name]
    block["source_xxh3_128"] = xxhash.xxh3_128_hexdigest(tensors[name].view(torch.uint8).numpy().tobytes())
    model = Model(bad, {name: block["source_xxh3_128"]})
    with pytest.raises(RefusedInput) as caught:
        bench.gguf({"type": "Q4_K_M"}, model, before)
    assert caught.value.code == "E-NONFINITE"


# --- other sources --------------------------------------------------------------------------------------------------


def test_a_quantized_checkpoint_takes_nothing_over(bench: Bench, base: Path, first: Made) -> None:
    """Its tensors are not in its files as they flow, so nothing is known of them."""
    out, _ = bench._new()
    stage_of("quantize", {"scheme": "W8A16"}).run(bench.given(Model(base)), out, Recorder())
    before = bench.gguf({"type": "Q4_K_M"}, out, first)
    again = bench.gguf({"type": "Q4_K_M"}, out, before, first)
    assert (before.reused, again.reused) == (0, 0)
    assert before.digest == again.digest
    assert before.done.blocks == {}


def test_a_model_that_comes_from_a_gguf_is_known_by_it(bench: Bench, first: Made) -> None:
    model = Model(virtual=Virtual(stage_of("convert", {}), bench.given(Model(first.folder))))
    before = bench.gguf({"type": "Q4_0"}, model)
    again = bench.gguf({"type": "Q4_0"}, model, before)
    assert (again.digest, again.reused) == (before.digest, MATRICES)
    wider = Model(virtual=Virtual(stage_of("convert", {"dtype": "float32"}), bench.given(Model(first.folder))))
    fresh = bench.gguf({"type": "Q4_0"}, wider)
    assert bench.gguf({"type": "Q4_0"}, wider, before).reused == 0
    assert fresh.digest != before.digest


def test_pruned_weights_are_known_again(bench: Bench, base: Path) -> None:
    def pruned(**params: Any) -> Model:
        return Model(virtual=Virtual(stage_of("prune", params), bench.given(Model(base))))

    half = pruned(sparsity=0.5)
    before = bench.gguf({"type": "Q4_0"}, half)
    assert bench.gguf({"type": "Q4_0"}, half, before).reused == MATRICES
    less = pruned(sparsity=0.25)
    again = bench.gguf({"type": "Q4_0"}, less, before)
    assert again.reused == 1, "the embedding, which is not pruned"
    assert again.digest == bench.gguf({"type": "Q4_0"}, less).digest
    assert tree_digest(record_files(again.folder)) != tree_digest(record_files(before.folder))
