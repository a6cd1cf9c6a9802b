"""ONNX models are read with suspicion and run as their source runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingot.errors import RefusedInput
from stagekit import run_stage

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_llama import make_llama

    return make_llama(tmp_path_factory.mktemp("tiny") / "hf", tie_word_embeddings=False, attention_bias=True)


@pytest.fixture(scope="module", params=[True, False], ids=["cache", "no cache"])
def export(model: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    params = {"kv_cache": request.param, "external_data_bytes": 0, "parity": {"texts": 1, "max_length": 8}}
    return run_stage("onnx", params, {"model": model}, tmp_path_factory.mktemp("out"))[0]


def test_without_a_cache_nothing_of_it_is_asked_for(export: Path, request: pytest.FixtureRequest) -> None:
    from ingot.kit.contract import read_contract

    contract = read_contract(export)
    more = 4 if request.node.callspec.id == "cache" else 0
    assert (len(contract.inputs), len(contract.outputs)) == (3 + more, 1 + more)
    assert contract.inputs[1].shape == ("batch", "total_sequence" if more else "sequence")


@pytest.fixture
def copy(export: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(export, tmp_path / "copy"))


def test_it_says_what_transformers_says(model: Path, export: Path) -> None:
    import torch

    from ingot.kit.backends import container_of, likeliest, open_backend

    assert container_of(export) == "onnx"
    ours = open_backend(export, dtype="float32", context=64, threads=1)
    theirs = open_backend(model, dtype="float32", context=64, threads=1)
    assert (ours.container, ours.precision, ours.context, ours.parameters) == (
        "onnx", "float32", 256, theirs.parameters
    )  # fmt: skip
    assert ours.bytes == sum((export / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    row = {"messages": [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on the mat"}]}
    assert ours.encode(row, 64) == theirs.encode(row, 64)
    ids = ours.question(row)
    assert ids == theirs.question(row)
    assert ours.ends(2) and not ours.ends(3)
    assert ours.text(ids) == theirs.text(ids)
    one, two = ours.prefill(ids), theirs.prefill(ids)
    for _ in range(8):
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(two), atol=2e-3, rtol=1e-3)
        token = likeliest(two)
        one, two = ours.step(token), theirs.step(token)


def test_segments_are_as_the_whole(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from ingot import kit
    from ingot.kit.backends.onnx import OnnxBackend

    monkeypatch.setattr(kit.backends, "SEGMENT", 7)
    backend = OnnxBackend(export, threads=1)
    ids = [(7 * place) % 290 for place in range(31)]
    whole = backend.trace(ids, probes=False).logits
    parts = list(backend.logits(ids, 10))
    assert len(parts) > 2
    torch.testing.assert_close(torch.cat(parts), torch.from_numpy(whole[9:-1]), atol=1e-3, rtol=1e-3)
    with pytest.raises(RefusedInput, match="257 tokens are more than the model's context of 256") as caught:
        backend.prefill([1] * 257)
    assert caught.value.code == "E-ONNX-CONTEXT"


def test_layers_are_shown(model: Path, export: Path) -> None:
    import numpy as np

    from ingot.kit.backends.onnx import OnnxBackend
    from ingot.kit.parity.reference import SourceModel

    ids = [5, 9, 40, 77, 12]
    wanted = SourceModel(model, threads=1).trace(ids, probes=True)
    backend = OnnxBackend(export, threads=1)
    for found in (backend.trace(ids, probes=True), backend.stepped().trace(ids, probes=True)):
        assert len(found.hidden) == 3
        for one, two in zip(found.hidden, wanted.hidden, strict=True):
            np.testing.assert_allclose(one, two, atol=2e-3, rtol=1e-3)
    assert backend.trace(ids, probes=False).hidden == ()


Edit = Callable[[Any, Path], None]


def elsewhere(location: str) -> Edit:
    def edit(model: Any, folder: Path) -> None:
        (folder.parent / "secret").write_bytes(bytes(1 << 20))
        if location == "linked":
            os.symlink(folder.parent / "secret", folder / "linked")
        if location == "folder":
            (folder / "folder").mkdir()
        outer(model)[0].value = location

    return edit


def outer(model: Any) -> Any:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    return sorted(tensor.external_data, key=lambda item: ["location", "offset", "length"].index(item.key))


def in_a_branch(model: Any, _folder: Path) -> None:
    """A weight that only a graph within a node names."""
    from onnx import TensorProto, helper

    tensor = TensorProto(name="hidden", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    inner = helper.make_graph([], "inner", [], [], [tensor])
    model.graph.node[0].attribute.append(helper.make_attribute("body", inner))


def beyond(model: Any, _folder: Path) -> None:
    outer(model)[1].value = str(1 << 40)


def negative(model: Any, _folder: Path) -> None:
    outer(model)[1].value = "-4096"


def no_number(model: Any, _folder: Path) -> None:
    outer(model)[1].value = "many"


@pytest.mark.parametrize(
    "edit",
    [
        elsewhere("../secret"), elsewhere("/etc/passwd"), elsewhere("linked"), elsewhere("folder"),
        elsewhere("sub/../model.onnx.data"), elsewhere("C:\\secret"), elsewhere(""), elsewhere(".."),
        elsewhere("missing.data"), in_a_branch, beyond, negative, no_number,
    ],
    ids=["above", "absolute", "link", "folder", "round about", "windows", "nothing", "parent", "missing", "in a branch",
         "beyond", "negative", "no number"],
)  # fmt: skip
def test_weights_that_lie_elsewhere(copy: Path, edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    from ingot.kit.backends import onnx as backend

    model = onnx.load(copy / "model.onnx", load_external_data=False)
    edit(model, copy)
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    monkeypatch.setattr(backend, "_open", lambda *_: pytest.fail("ONNX Runtime was asked to open it"))
    with pytest.raises(RefusedInput) as caught:
        backend.OnnxBackend(copy, threads=1)
    assert caught.value.code == "E-ONNX-EXTERNAL"


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x08\x0a", None], ids=["empty", "noise", "no graph", "link"])
def test_a_damaged_model(copy: Path, content: bytes | None) -> None:
    from ingot.kit.onnx_model.read import read_model

    path = copy / "model.onnx"
    if content is None:
        path.rename(copy / "other.onnx")
        path.symlink_to("other.onnx")
    else:
        path.write_bytes(content)
    with pytest.raises(RefusedInput) as caught:
        read_model(copy)
    assert caught.value.code == "E-ONNX-FORMAT"


def test_a_model_that_is_not_its_contract_s(copy: Path) -> None:
    from ingot.kit.backends.onnx import OnnxBackend

    path = copy / "contract.json"
    contract = json.loads(path.read_text())
    contract["outputs"][0]["shape"][2] += 1
    path.write_text(json.dumps(contract))
    with pytest.raises(RefusedInput, match="differs: logits") as caught:
        OnnxBackend(copy, threads=1)
    assert caught.value.code == "E-CONTRACT"


def test_it_is_evaluated_beside_its_source(model: Path, export: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    texts = ["the cat sat on the mat", "and the dog ran after it", "Hello, world! 1234 12"]
    lines = [json.dumps({"id": str(number), "text": text}) + "\n" for number, text in enumerate(texts)]
    for split in ("train", "eval"):
        (rows / f"{split}.jsonl").write_text("".join(lines))
    settings = {"documents": 3, "prompt_tokens": 8, "generation_tokens": 2, "repeats": 1}
    inputs = {"candidate": export, "data": rows, "reference": model}
    out, metrics = run_stage("evaluate", settings, inputs, tmp_path)
    found = json.loads((out / "evaluation.json").read_text())
    assert (found["container"], found["precision"]) == ("onnx", "float32")
    assert set(found["not_measured"]) <= {"energy_per_token", "prompt_energy_per_token"}
    assert metrics["kl_divergence"].value < 1e-6
    assert metrics["top1_agreement"].value == 1
    assert metrics["parameters"].value == found["metrics"]["parameters"]["value"]
    assert metrics["generation_tokens_per_second"].value > 0
