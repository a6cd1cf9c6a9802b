"""Models that are broken or were changed: one clear error from whatever streams them, and nothing published."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import load_file, save_file

from ingot.core.digest import fast_hash_file
from ingot.errors import RefusedInput
from ingot.kit import hf
from projectkit import Sandbox
from recordkit import copied, store_of
from stagekit import run_stage
from tinymodels import llama, save

INDEX = "model.safetensors.index.json"
KINDS: dict[str, dict[str, Any]] = {"convert": {}, "prune": {"sparsity": 0.5}, "quantize": {}}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in several files."""
    return save(llama(), tmp_path_factory.mktemp("sharded") / "model", max_shard_size="20KB")


def first(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def spoil(folder: Path, value: float) -> None:
    tensors = load_file(first(folder))
    name = next(name for name in sorted(tensors) if "proj" in name or "embed" in name)
    tensors[name][1, 3] = value
    save_file(tensors, first(folder), {"format": "pt"})


def index_elsewhere(folder: Path) -> None:
    shutil.move(first(folder), folder.parent / "outside.safetensors")
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace(first(folder).name, "../outside.safetensors"))


def without_index(folder: Path) -> None:
    first(folder).unlink()
    (folder / INDEX).unlink()


def swapped(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    names = index["weight_map"]
    index["weight_map"] = {name: max(names.values()) for name in names} | {min(names): min(names.values())}
    (folder / INDEX).write_text(json.dumps(index))


def renamed(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.more.weight"] = first(folder).name
    (folder / INDEX).write_text(json.dumps(index))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (lambda folder: first(folder).unlink(), "E-ST-INDEX"),
    "missing shard, no index": (without_index, "E-ST-INDEX"),
    "truncated shard": (lambda folder: os.truncate(first(folder), first(folder).stat().st_size - 4), "E-ST-BOUNDS"),
    "truncated header": (lambda folder: os.truncate(first(folder), 40), "E-ST-SIZE"),
    "index elsewhere": (index_elsewhere, "E-ST-INDEX"),
    "index of other shards": (swapped, "E-ST-INDEX"),
    "index of other tensors": (renamed, "E-ST-INDEX"),
    "NaN": (lambda folder: spoil(folder, float("nan")), "E-NONFINITE"),
    "infinity": (lambda folder: spoil(folder, float("-inf")), "E-NONFINITE"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_model_is_refused(sharded: Path, tmp_path: Path, kind: str, fault: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sharded, folder)
    change, code = FAULTS[fault]
    change(folder)
    with pytest.raises(RefusedInput) as error:
        run_stage(kind, KINDS[kind], {"model": folder}, tmp_path)
    assert error.value.code == code


@pytest.mark.parametrize("kind", ["convert", "prune"])
def test_weights_that_are_no_numbers_are_taken_on_request(sharded: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sharded, folder)
    spoil(folder, float("nan"))
    out, _ = run_stage(kind, {**KINDS[kind], "allow_nonfinite": True}, {"model": folder}, tmp_path)
    assert sum(int(tensor.isnan().sum()) for _, tensor in hf.iter_tensors(out)) == 1


MODEL = "targets:\n  model: {kind: fetch, path: model}\n"
SPEC = MODEL + "  small: {kind: convert, from: {model: model}, dtype: bfloat16}\n"


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """A project in which the model was fetched, and ``small`` is to be made of it."""
    sandbox = Sandbox.make(tmp_path_factory.mktemp("fetched"))
    save(llama(), sandbox.root / "specs" / "model")
    sandbox.spec(SPEC)
    sandbox.ok("s:model")
    return sandbox


@pytest.fixture
def project(fetched: Sandbox, tmp_path: Path) -> Sandbox:
    """A copy of it."""
    return copied(fetched, tmp_path)


def published(sandbox: Sandbox) -> set[str]:
    return {path.name for path in (sandbox.root / "cache" / "objects").glob("*/*")}


def flip_silently(sandbox: Sandbox, path: Path, at: int) -> None:
    """As a failing disk does: another bit, and a stat that the cache knows as that of the right ones."""
    status, right = path.stat(), fast_hash_file(path)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.chmod(0o444)
    store = store_of(sandbox)
    store.stats.put(f"objects/{path.parent.name}/{path.name}", os.lstat(path), right, settled=True)
    store.stats.save()


@pytest.mark.parametrize("place", ["data", "name", "header"])
def test_a_bit_that_flipped_in_the_store_is_found_by_what_reads_it(project: Sandbox, place: str) -> None:
    """The builder does not read the weights; what streams them does, and compares."""
    (path,) = (project.root / "cache" / "objects").glob("*/*/model.safetensors")
    data = path.read_bytes()
    at = {"data": len(data) - 1, "name": data.index(b"embed_tokens"), "header": 8}[place]
    before, digest = published(project), path.parent.name
    flip_silently(project, path, at)
    assert project.states()["s:model"] == "fresh", "nothing has read it yet"
    done = project.doit("s:small")
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "E-OBJECT-DAMAGED" in output
    assert "model.safetensors has other content" in output
    assert "Traceback" not in output
    assert published(project) == before - {digest}
    (kept,) = (project.root / "cache" / "quarantine").iterdir()
    assert kept.name.startswith(digest)
    assert [entry["target"] for entry in project.entries("build")] == ["s:model"]


def test_a_model_that_holds_nan_is_not_published(sandbox: Sandbox) -> None:
    folder = save(llama(), sandbox.root / "specs" / "model")
    spoil(folder, float("nan"))
    sandbox.spec(SPEC)
    done = sandbox.doit()
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "E-NONFINITE" in output
    assert "Traceback" not in output
    assert len(published(sandbox)) == 1
    assert not list((sandbox.root / "cache" / "staging").glob("*/"))


def test_the_digests_of_tensors_are_recorded(project: Sandbox) -> None:
    project.ok()
    (log,) = (project.root / "registry").glob("*/log.jsonl")
    statement = next(
        item for item in map(json.loads, log.read_text().splitlines()) if item["subject"][0]["name"] == "s:small"
    )
    (item,) = statement["predicate"]["runDetails"]["byproducts"]
    assert item["name"] == "tensors"
    evidence = log.parent / "evidence" / item["digest"]["sha256"]
    folder = project.root / "cache" / "latest" / "s" / "small"
    found = {
        name: xxhash.xxh3_128(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in hf.iter_tensors(folder)
    }
    assert json.loads(evidence.read_text()) == found
    project.ok("audit")
    evidence.unlink()
    done = project.doit("audit")
    assert done.returncode == 5
    assert "evidence_missing" in done.stdout
