"""How a training sees its documents, sums its gradients, stops and keeps."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ingot.core.stage import Given
from ingot.errors import MissingTool, RefusedInput, StageFailed
from ingot.kit.train import next_token, run
from ingot.kit.train.documents import Corpus, Document
from ingot.kit.train.layout import Layout
from ingot.kit.train.loop import Learner
from stagekit import Recorder
from tinymodels import llama
from trainkit import doc, docs_of, settings

PACKED, PADDED = Layout("packed", 64), Layout("padded", 64)


def trained(
    items: list[Document], layout: Layout = PACKED, *, held: int = 0, task: dict[str, Any] | None = None, **changes: Any
) -> tuple[run.Outcome, dict[str, torch.Tensor], Recorder]:
    """Train a random model; what came out, its weights, what was reported."""
    by_id = {item.id: item for item in items}
    model = llama(vocab_size=160)  # 5120 numbers a matrix: enough for moments of 8 bits
    made: run.Task[Document] = run.Task(
        model, next_token.NextToken(layout), Corpus([{"id": item.id} for item in items], lambda row: by_id[row["id"]]),
        layout, held=items[:held], chance=next_token.chance(model), **(task or {}),
    )  # fmt: skip
    progress = Recorder()
    fields: dict[str, Any] = {"steps": 4, "batch_size": 4}
    outcome = run.train(settings(**{**fields, **changes}), made, Given({}, {}, Path(), seed=1), progress)
    return outcome, dict(model.state_dict()), progress


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], within: float = 1e-5) -> bool:
    return all((tensor - other[name]).abs().max() <= within for name, tensor in one.items())


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 2), (2, 4), (1, 8)])
def test_accumulated_gradients_are_those_of_the_large_batch(batch: int, accumulate: int) -> None:
    items = docs_of(13)  # of different lengths, so that a mean of means would be another number
    whole, weights, _ = trained(items, batch_size=8)
    parts, others, _ = trained(items, batch_size=batch, accumulate=accumulate)
    assert [step.loss for step in parts.history] == pytest.approx([step.loss for step in whole.history], abs=1e-4)
    assert [step.gradient_norm for step in parts.history] == pytest.approx(
        [step.gradient_norm for step in whole.history], rel=1e-3
    )
    assert [step.tokens for step in parts.history] == [step.tokens for step in whole.history]
    # AdamW divides by the size of a gradient, so where that is next to nothing its rounding shows.
    assert share_close(weights, others) > 0.99
    _, single, _ = trained(items, batch_size=batch)
    assert share_close(weights, single) < 0.5


def share_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The share of numbers that differ by less than 1e-4."""
    near = sum(int(((tensor - other[name]).abs() < 1e-4).sum()) for name, tensor in one.items())
    return near / float(sum(tensor.numel() for tensor in one.values()))


def test_padding_never_enters_the_loss() -> None:
    items = docs_of(8)
    packed, weights, _ = trained(items, PACKED)
    padded, others, _ = trained(items, PADDED)
    assert [step.loss for step in packed.history] == pytest.approx([step.loss for step in padded.history], abs=1e-5)
    assert [step.scored_tokens for step in packed.history] == [step.scored_tokens for step in padded.history]
    assert share_close(weights, others) > 0.99
    model = llama()
    one = next_token.padded_nll(model, [items[0], items[3]])
    assert len(one) == items[0].scored + items[3].scored
    # What fills a row up is token 0; were it scored or seen, its embedding would matter.
    with torch.no_grad():
        model.get_input_embeddings().weight[0] += 5.0
    assert next_token.padded_nll(model, [items[0], items[3]]).equal(one)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_planted_leak_is_noticed_and_answered_with_padding(attention: str) -> None:
    model = llama(num_hidden_layers=1)
    model.set_attn_implementation(attention)
    sample = docs_of(4)[2:4]
    assert next_token.layout_for(model, sample, 64, packing=True) == Layout("packed", 64)
    assert next_token.layout_for(model, sample, 64, packing=False) == Layout("padded", 64)
    leak = Leaking(model)
    assert next_token.layout_for(leak, sample, 64, packing=True) == Layout("padded", 64)
    with torch.no_grad():
        alone = next_token.nll(model, [sample[1]]).mean()
        after = next_token.nll(leak, sample)[sample[0].scored :].mean()
    assert abs(float(alone - after)) < 0.05, "so small a leak is found by other tokens before, not by the loss alone"


class Leaking:
    """A model that lets a packed document see a little of the one before it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.training = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, **inputs: Any) -> Any:
        found = self.model(**inputs)
        found.logits = found.logits.clone()
        found.logits[0, :, :] += 5e-3 * inputs["input_ids"][0, :1] / 96 * torch.arange(96)
        return found


def test_a_model_that_counts_places_on_is_noticed() -> None:
    """It does not see the tokens before, only how many there are."""
    model, sample = llama(), docs_of(4)[2:4]

    class Counting(Leaking):
        def __call__(self, **inputs: Any) -> Any:
            found = self.model(**inputs)
            places = inputs["logits_to_keep"][:, None]
            found.logits = found.logits + 0.05 * places * torch.sin(torch.arange(96.0))
            return found

    assert next_token.layout_for(model, sample, 64, packing=True) == Layout("packed", 64)
    assert next_token.layout_for(Counting(model), sample, 64, packing=True) == Layout("padded", 64)


def test_packed_documents_do_not_touch_each_others_gradients() -> None:
    model, (first, second) = llama(), docs_of(4)[2:4]

    def gradient(items: list[Document]) -> torch.Tensor:
        model.zero_grad()
        next_token.nll(model, items)[-second.scored :].sum().backward()
        found: torch.Tensor = model.model.layers[0].self_attn.k_proj.weight.grad
        return found

    alone = gradient([second]).clone()
    assert torch.allclose(gradient([first, second]), alone, atol=1e-5)
    moved = Document(second.id, second.ids[::-1], second.start)
    assert not torch.allclose(gradient([moved]), alone, atol=1e-3)


def test_activations_computed_again_change_nothing() -> None:
    items = docs_of(8)
    plain, weights, _ = trained(items)
    again, others, _ = trained(items, gradient_checkpointing=True)
    assert [step.loss for step in plain.history] == pytest.approx([step.loss for step in again.history], abs=1e-6)
    assert close(weights, others)


def test_activations_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls: list[int] = []
    forward = LlamaMLP.forward

    def counted(self: Any, x: Any) -> Any:
        calls.append(1)
        return forward(self, x)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    trained(docs_of(4), steps=1)
    plain = len(calls)
    trained(docs_of(4), steps=1, gradient_checkpointing=True)
    assert len(calls) - plain == 2 * plain


def test_a_model_that_cannot_compute_them_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(RefusedInput) as caught:
        trained(docs_of(4), gradient_checkpointing=True)
    assert caught.value.code == "E-MODEL-ARCH"


def test_moments_of_eight_bits_learn_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes", reason="its moments of 8 bits: pip install 'ingot[ml]'")
    items = docs_of(8)
    full, _, _ = trained(items, steps=12)
    eight, weights, _ = trained(items, steps=12, optimizer="adamw_8bit")
    assert eight.history[-1].loss == pytest.approx(full.history[-1].loss, abs=0.2)
    assert eight.history[-1].loss < eight.history[0].loss - 1
    assert not close(weights, trained(items, steps=12)[1])
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    with pytest.raises(MissingTool) as caught:
        trained(items, optimizer="adamw_8bit")
    assert "pip install" in str(caught.value.hint)


WORSENING: dict[str, Any] = {"steps": 30, "learning_rate": 0.05, "eval_every": 2, "held": 3}


def test_early_stopping_keeps_the_best_weights() -> None:
    # Held-out documents that contradict what is learned: their loss falls, then rises.
    items = [*(doc(f"a{n}", *([5, 9, 5, 9, 5, 9, 5, 3 + n])) for n in range(3)),
             *(doc(f"b{n}", *([5, 9, 5, 9, 5, 9, 5, 60 + n % 2])) for n in range(12))]  # fmt: skip
    by_id = {item.id: item for item in items}
    rows = [{"id": item.id} for item in items[3:]]

    def attempt(**changes: Any) -> tuple[run.Outcome, Any]:
        model = llama()
        task: run.Task[Document] = run.Task(
            model, next_token.NextToken(PACKED), Corpus(rows, lambda row: by_id[row["id"]]), PACKED, held=items[:3]
        )
        fields: dict[str, Any] = {"steps": 40, "learning_rate": 5e-3, "eval_every": 2, "batch_size": 6}
        given = Given({}, {}, Path(), seed=1)
        return run.train(settings(**{**fields, **changes}), task, given, Recorder()), model

    stopped, model = attempt(patience=3)
    losses = {scoring.step: stopped.held_loss(scoring) for scoring in stopped.evals}
    assert stopped.stopped_early
    assert stopped.kept == min(losses, key=losses.__getitem__) < len(stopped.history) < 40
    assert len([step for step in losses if step > stopped.kept]) == 3
    kept = Learner(model, next_token.NextToken(PACKED), PACKED).score(items[:3], lambda _: None)
    assert sum(kept) / sum(stopped.held_scored) == pytest.approx(losses[stopped.kept])
    assert stopped.metrics()["eval_loss_after"].value == pytest.approx(losses[stopped.kept])
    last, model = attempt(keep="last", steps=len(stopped.history))
    assert last.kept == len(last.history)
    now = Learner(model, next_token.NextToken(PACKED), PACKED).score(items[:3], lambda _: None)
    assert sum(now) / sum(last.held_scored) == pytest.approx(losses[len(last.history)])


def test_a_held_mask_is_held_at_every_step() -> None:
    model = llama()
    weight = model.model.layers[0].mlp.up_proj.weight
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        weight.masked_fill_(mask, 0)
    seen: list[bool] = []

    def hold() -> None:
        seen.append(bool(weight[mask].any()))
        with torch.no_grad():
            weight.masked_fill_(mask, 0)

    items = docs_of(6)
    by_id = {item.id: item for item in items}
    task: run.Task[Document] = run.Task(
        model, next_token.NextToken(PACKED), Corpus([{"id": item.id} for item in items], lambda row: by_id[row["id"]]),
        PACKED, after_step=hold,
    )  # fmt: skip
    run.train(settings(steps=3, batch_size=2), task, Given({}, {}, Path(), seed=1), Recorder())
    assert seen == [True, True, True]
    assert not weight[mask].any()


def test_what_is_reported_and_measured() -> None:
    outcome, _, progress = trained(docs_of(8), PADDED, held=2, steps=6, eval_every=3)
    steps = [(done, total, live) for done, total, unit, live in progress.events if unit == "steps"]
    assert [(done, total) for done, total, _ in steps] == [(step, 6) for step in range(1, 7)]
    assert all(set(live) == {"loss", "lr", "tokens/s"} for _, _, live in steps)
    assert [scoring.step for scoring in outcome.evals] == [0, 3, 6]
    found = outcome.metrics()
    after = found["eval_loss_after"]
    assert found["perplexity_after"].value == pytest.approx(math.exp(after.value))
    assert after.interval is not None
    assert found["perplexity_after"].interval == pytest.approx(tuple(math.exp(end) for end in after.interval))
    tokens = sum(step.tokens for step in outcome.history)
    assert 0 < found["padding"].value < 0.5
    assert found["padding"].value == pytest.approx(1 - tokens / round(tokens / (1 - found["padding"].value)))
    assert trained(docs_of(8), PACKED)[0].metrics()["padding"].value == 0
    assert "device_peak_bytes" not in found


def test_an_empty_split_has_nothing_to_learn() -> None:
    with pytest.raises(RefusedInput) as caught:
        trained([])
    assert caught.value.code == "E-DATASET-EMPTY"


def test_a_gpu_without_memory_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, items: Any, batch_size: int) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(Learner, "backward", full)
    with pytest.raises(StageFailed) as caught:
        trained(docs_of(4))
    assert caught.value.code == "E-DEVICE-MEMORY"
    assert caught.value.facts == ("CUDA out of memory. Tried to allocate 2.00 GiB.",)


def test_attention_by_cudnn_is_off_while_something_is_trained() -> None:
    """It makes a plan for each length of a row, which takes ten times as long as the pass itself."""
    given = Given({}, {}, Path(), threads=1, seed=1)
    for before in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(enabled=before)
        with run.prepared(SimpleNamespace(device="cpu"), given) as device:
            assert (device.type, torch.backends.cuda.cudnn_sdp_enabled()) == ("cpu", False)
        assert torch.backends.cuda.cudnn_sdp_enabled() is before
    torch.backends.cuda.enable_cudnn_sdp(enabled=True)
