"""What flows is what would have been written: the same digest and metrics, and the same bytes after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ingot.core.digest import record_files, tree_digest
from ingot.core.stage import Done, Given, Stage, Virtual, load_kind
from stagekit import Recorder, digest_of
from tinymodels import dataset, llama, save

FLOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "cast": ("convert", {"dtype": "bfloat16", "shard_bytes": 9000}),
    "share": ("prune", {"sparsity": 0.4}),
    "pattern": ("prune", {"pattern": "2:4"}),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven layers in several files, so that the order of names is not that of layers."""
    return save(llama(num_hidden_layers=11), tmp_path_factory.mktemp("flows") / "model", max_shard_size="40KB")


def made(kind: str, params: dict[str, Any]) -> Stage:
    return load_kind(kind).model_validate_json(json.dumps(params), strict=True)


def given(scratch: Path, *folders: Path, virtual: Virtual | None = None, **more: Path) -> Given:
    scratch.mkdir()
    inputs = {"model": folders} if folders else {}
    files = {
        role: tuple({one.path: one for one in record_files(path)} for path in found) for role, found in inputs.items()
    }
    return Given(
        inputs={**inputs, **{role: (path,) for role, path in more.items()}},
        digests={role: tuple(digest_of(path) for path in found) for role, found in inputs.items()},
        scratch=scratch,
        threads=2,
        files=files,
        virtual={"model": virtual} if virtual else {},
    )


def run(stage: Stage, what: Given, out: Path) -> Done:
    out.mkdir()
    return Done.of(stage.run(what, out, Recorder()))


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("then", [("convert", {"shard_bytes": 20_000}), ("quantize", {})], ids=["convert", "quantize"])
def test_streamed_or_written_it_is_the_same(
    model: Path, tmp_path: Path, name: str, then: tuple[str, dict[str, Any]]
) -> None:
    stage, end = made(*FLOWS[name]), made(*then)
    assert stage.weightwise()
    written = run(stage, given(tmp_path / "s1", model), tmp_path / "written")
    after = run(end, given(tmp_path / "s2", tmp_path / "written"), tmp_path / "after")
    flow = Virtual(stage, given(tmp_path / "s3", model))
    streamed = run(end, given(tmp_path / "s4", virtual=flow), tmp_path / "streamed")
    passed = streamed.passed["model"]
    assert tree_digest(passed.files) == tree_digest(written.files) == digest_of(tmp_path / "written")
    assert (passed.metrics, passed.tensors, passed.notes) == (written.metrics, written.tensors, written.notes)
    assert digest_of(tmp_path / "streamed") == digest_of(tmp_path / "after") == tree_digest(after.files)
    assert (streamed.metrics, streamed.tensors) == (after.metrics, after.tensors)


def test_what_must_run_the_model_writes_what_flows_in_for_itself(model: Path, stories: Path, tmp_path: Path) -> None:
    """wanda reads its model twice: a virtual one lies in scratch meanwhile."""
    from tinymodels import chat_model

    chat, rows = chat_model(stories, tmp_path / "chat"), dataset(tmp_path / "rows", train=4)
    stage = made("convert", {"dtype": "bfloat16"})
    end = made("prune", {"method": "wanda", "sparsity": 0.5, "documents": 2})
    assert not end.weightwise()
    written = run(stage, given(tmp_path / "s1", chat), tmp_path / "written")
    after = run(end, given(tmp_path / "s2", tmp_path / "written", calibration=rows), tmp_path / "after")
    flow = Virtual(stage, given(tmp_path / "s3", chat))
    streamed = run(end, given(tmp_path / "s4", virtual=flow, calibration=rows), tmp_path / "streamed")
    assert digest_of(tmp_path / "streamed") == digest_of(tmp_path / "after")
    assert streamed.metrics == after.metrics
    assert tree_digest(streamed.passed["model"].files) == tree_digest(written.files)
    assert streamed.passed["model"].metrics == written.metrics
