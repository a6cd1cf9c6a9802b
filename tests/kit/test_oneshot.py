"""llm-compressor on a model in memory: same bits every time, quiet, nothing written, nothing asked for."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

import tinymodels
from ingot.errors import StageFailed
from ingot.kit import oneshot
from stagekit import Recorder

TEXTS = [[i * 7 % 96 for i in range(length)] for length in (20, 33, 12, 40)]
CPU = oneshot.Settings(torch.device("cpu"), threads=1)


def sparsegpt(*targets: str) -> Any:
    return oneshot.modifier(
        "pruning", "SparseGPTModifier", sparsity=0.5, mask_structure="2:4", targets=[f"re:{t}$" for t in targets]
    )


def compressed(progress: Recorder | None = None) -> Any:
    model = tinymodels.llama()
    assert oneshot.apply(model, TEXTS, [sparsegpt(".*mlp.*proj")], CPU, progress or Recorder()) == []
    return model


def test_weights_change_in_place_and_the_same_way_each_time() -> None:
    first, second, plain = compressed(), compressed(), tinymodels.llama()
    for (name, one), (_, two), (_, before) in zip(
        first.named_parameters(), second.named_parameters(), plain.named_parameters(), strict=True
    ):
        assert torch.equal(one, two)
        assert torch.equal(one, before) == (".mlp." not in name)
        assert isinstance(one, torch.nn.Parameter)


def test_the_model_is_a_plain_one_afterwards() -> None:
    model = compressed()
    loss = model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss
    loss.backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad is not None
    for module in model.modules():
        assert type(module._parameters) is dict
        assert module.forward.__func__ is type(module).forward or module is model


def test_it_is_quiet_writes_nothing_and_asks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setenv("LLM_COMPRESSOR_LOG_FILE", str(tmp_path / "log"))
    before = dict(os.environ)
    seen = Recorder()
    compressed(seen)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == before
    layers = 2
    batches = (layers + 1) * 2 * len(TEXTS)
    assert [(done, total) for done, total, _, _ in seen.events] == [(n + 1, batches) for n in range(batches)]


def test_texts_of_every_length_flow_through_as_through_the_model_itself() -> None:
    def inputs(run: Any) -> list[torch.Tensor]:
        model, seen = tinymodels.llama(), []
        model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
        run(model)
        return seen[: len(TEXTS)]

    name = "model.layers.1.mlp.up_proj"
    ours = inputs(
        lambda model: oneshot.apply(model, TEXTS, [sparsegpt("model.layers.1.mlp.down_proj")], CPU, Recorder())
    )
    plain = inputs(lambda model: [model(input_ids=torch.tensor([ids])) for ids in TEXTS])
    assert [len(one[0]) for one in ours] == [len(ids) for ids in TEXTS]
    for one, two in zip(ours, plain, strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_what_it_warns_of_is_handed_back() -> None:
    model = tinymodels.llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0] = float("nan")
    warnings = oneshot.apply(model, TEXTS, [sparsegpt(".*0.mlp.down_proj")], CPU, Recorder())
    assert [w for w in warnings if "invert hessian" in w]


def test_a_model_that_it_cannot_process_is_a_clear_error() -> None:
    model = tinymodels.llama()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("shapes do not\nfit")

    model.model.layers[1].mlp.forward = broken.__get__(model.model.layers[1].mlp)
    with pytest.raises(StageFailed) as caught:
        oneshot.apply(model, TEXTS, [sparsegpt(".*mlp.*proj")], CPU, Recorder())
    assert caught.value.code == "E-ONESHOT"
    assert "shapes do not fit" in caught.value.facts[0]
    assert type(model.model.layers[0]._parameters) is dict


def test_a_full_gpu_is_not_taken_for_a_model_that_cannot_be_processed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library raises an error of its own over that of a layer that it has traced."""

    def runner(*_: object) -> Any:
        def run() -> None:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            except torch.OutOfMemoryError as error:
                raise RuntimeError("--- <Autowrapped LlamaModel> ---") from error

        return run

    monkeypatch.setattr(oneshot, "_runner", runner)
    with pytest.raises(torch.OutOfMemoryError):
        oneshot.apply(tinymodels.llama(), TEXTS, [], CPU, Recorder())
