"""Direct preference optimization: the loss, what it does to a model, and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ingot.core.digest import canonical_json, sha256_bytes
from ingot.core.stage import Given
from ingot.errors import RefusedInput
from ingot.kit import chat
from ingot.kit.train import preference, run
from ingot.kit.train.documents import Corpus, Document
from ingot.kit.train.loop import Learner
from ingot.kit.train.preference import LAYOUT, Pair, Preference
from stagekit import Recorder, digest_of, run_stage, stage_of
from tinymodels import chat_model, llama
from trainkit import doc, settings

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::DeprecationWarning")


def pair(name: str, prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> Pair:
    start = len(prompt)
    return Pair(name, doc(name, *prompt, *chosen, start=start), doc(name, *prompt, *rejected, start=start))


PAIRS = [
    pair("a", [1, 2, 3], [10, 11, 12], [40, 41]),
    pair("b", [5, 6], [20, 21], [50, 51, 52, 53]),
    pair("c", [7, 8, 9, 4], [30], [60]),
]


def adapted(*, trained: bool = True, dropout: float = 0.0) -> Any:
    """A tiny model with an adapter, random where ``trained``, else as it begins."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(llama(attention_dropout=dropout), config)
    with torch.no_grad():
        for name, weight in model.named_parameters() if trained else ():
            # the first weights are so small that every answer would be as likely as any other
            weight.add_(torch.randn(weight.shape) * 0.3) if "lora_" in name else weight.mul_(4)
    return model.eval()


def by_hand(model: Any, document: Document) -> float:
    """The log-likelihood of an answer, token by token, the softmax in double precision."""
    total = 0.0
    with torch.no_grad():
        for at in range(document.start, document.size):
            logits = model(input_ids=torch.tensor([document.ids[:at]])).logits[0, -1].double().tolist()
            total += logits[document.ids[at]] - math.log(math.fsum(map(math.exp, logits)))
    return total


@pytest.mark.parametrize(("beta", "smoothing", "weight"), [(0.1, 0.0, 0.0), (2.0, 0.1, 0.0), (0.5, 0.0, 0.25)])
def test_the_loss_is_the_formula(beta: float, smoothing: float, weight: float) -> None:
    model = adapted()
    found = Preference(model, beta, smoothing, weight).losses(model.get_base_model(), PAIRS)
    for item, loss in zip(PAIRS, found.tolist(), strict=True):
        policy = [by_hand(model, item.chosen), by_hand(model, item.rejected)]
        with model.disable_adapter():
            reference = [by_hand(model, item.chosen), by_hand(model, item.rejected)]
        h = beta * ((policy[0] - reference[0]) - (policy[1] - reference[1]))
        expected = -(1 - smoothing) * math.log(1 / (1 + math.exp(-h))) - smoothing * math.log(1 / (1 + math.exp(h)))
        expected -= weight * policy[0] / item.chosen.scored
        assert loss == pytest.approx(expected, abs=2e-5)
        assert abs(h) > 0.005, "else the formula was not tried"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_before_the_first_step_the_loss_is_log_2_to_the_bit(dtype: torch.dtype) -> None:
    model = adapted(trained=False).to(dtype).train()
    objective = Preference(model)
    losses = objective.losses(model.get_base_model(), PAIRS)
    assert losses.tolist() == [float(torch.tensor(2.0).log())] * 3
    metrics = objective.metrics(PAIRS)
    assert (metrics["preference_accuracy"].value, metrics["preference_margin"].value) == (0.0, 0.0)
    assert metrics["preferred_before"].value == metrics["preferred_after"].value


def test_the_reference_drops_nothing_out_and_leaves_the_mode() -> None:
    model = adapted(dropout=0.9).train()
    first = Preference(model).reference(PAIRS[0])
    assert model.training
    assert model.get_base_model().training
    with model.disable_adapter():
        expected = by_hand(model.eval(), PAIRS[0].chosen)
    assert float(first[0]) == pytest.approx(expected, abs=1e-5)
    assert not first.requires_grad


def test_it_does_not_matter_which_pairs_stand_in_a_batch() -> None:
    model = adapted()
    together = Learner(model.get_base_model(), Preference(model), LAYOUT).score(PAIRS, lambda _: None)
    alone = [Preference(model).losses(model.get_base_model(), [item]).item() for item in PAIRS[::-1]][::-1]
    assert together == alone


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_the_loss_is_that_of_trl(tmp_path: Path, stories: Path) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    rows = [
        {"prompt": "Once upon", "chosen": " a time there was a cat", "rejected": " the dog and so"},
        {"prompt": "Lily likes", "chosen": " to play", "rejected": " a big red ball in the park"},
    ]
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32),
        args=DPOConfig(
            output_dir=str(tmp_path), disable_dropout=True, gradient_checkpointing=False, beta=0.3,
            per_device_train_batch_size=2, use_cpu=True, bf16=False, report_to=[],
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )  # fmt: skip
    torch.manual_seed(3)
    for name, weight in trainer.model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.5)
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = float(trainer.compute_loss(trainer.model.eval(), batch))
    ids, mask, completion = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
    docs = [
        Document(str(n), tuple(ids[n][mask[n].bool()].tolist()), int(completion[n][mask[n].bool()].nonzero()[0]))
        for n in range(len(ids))
    ]
    half = len(docs) // 2
    found = [Pair(str(n), docs[n], docs[n + half]) for n in range(half)]
    ours = Preference(trainer.model, 0.3).losses(trainer.model.get_base_model(), found).mean()
    assert abs(theirs - math.log(2)) > 0.01
    assert float(ours) == pytest.approx(theirs, abs=1e-5)


NAMES, THINGS = ("Tom", "Lily", "Max", "Mia", "Ben", "Sue"), ("ball", "box", "cat", "hat")


def preferences(folder: Path) -> Path:
    """Pairs of one simple kind: red is preferred."""
    folder.mkdir()
    rows = []
    for name in NAMES:
        for thing in THINGS:
            asked = {"messages": [{"role": "user", "content": f"What has {name}?"}]}
            content = {**asked, "chosen": f"A red {thing}.", "rejected": f"A big {thing} and a sad old dog."}
            rows.append({"id": sha256_bytes(canonical_json(content))[:16], **content})
    for split, part in (("train", rows[:16]), ("eval", rows[16:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


@pytest.fixture(scope="module")
def inputs(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return {"model": chat_model(stories, folder / "model"), "data": preferences(folder / "data")}


FAST = {"steps": 8, "rank": 8, "learning_rate": 5e-3, "dtype": "float32", "batch_size": 4, "objective": "dpo"}


def test_a_model_learns_what_is_preferred(inputs: dict[str, Path], tmp_path: Path) -> None:
    params = {**FAST, "dpo": {"beta": 0.5}}
    out, metrics = run_stage("adapter", params, inputs, tmp_path, seed=7, threads=1)
    curves = json.loads((out / "training.json").read_text())
    assert curves["loss_unit"] == metrics["eval_loss_after"].unit == "nats/pair"
    assert curves["train"][0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["eval_loss_before"].value == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["eval_loss_after"].value < 0.5
    assert metrics["preference_accuracy"].value == 1.0
    # All of eight pairs are no certainty.
    low, high = metrics["preference_accuracy"].interval or (0.0, 0.0)
    assert 0.6 < low < 0.7
    assert high == 1.0
    assert "pairs" in metrics["eval_loss_after"].method
    assert "documents" not in metrics["eval_loss_change"].method
    assert metrics["preference_margin"].value > 0.5
    assert metrics["preference_margin"].interval is not None
    assert metrics["preferred_after"].value >= metrics["preferred_before"].value
    assert {metrics[name].n for name in ("preferred_before", "preference_accuracy")} == {8}
    again, _ = run_stage("adapter", params, inputs, tmp_path, seed=7, threads=1, name="again")
    assert digest_of(again) == digest_of(out)


class StoppedError(Exception):
    pass


def test_an_ended_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    def train(folder: Path | None, stop: int | None) -> dict[str, torch.Tensor]:
        model = adapted(trained=False)
        base = model.get_base_model()
        seen: list[int] = []

        def after() -> None:
            seen.append(1)
            if len(seen) == stop:
                raise StoppedError

        known = {item.id: item for item in PAIRS}
        corpus = Corpus([{"id": name} for name in known], lambda row: known[row["id"]])
        task = run.Task(base, Preference(model, 0.5), corpus, LAYOUT, held=PAIRS, after_step=after)
        given = Given({}, {}, tmp_path, seed=3, checkpoints=folder, key="k" * 64)
        run.train(settings(steps=6, batch_size=2, checkpoint_every=0.0), task, given, Recorder())
        return {name: weight.detach().clone() for name, weight in base.named_parameters()}

    whole = train(None, None)
    (tmp_path / "kept").mkdir()
    with pytest.raises(StoppedError):
        train(tmp_path / "kept", 4)
    resumed = train(tmp_path / "kept", None)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_rows_without_preferences_are_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "eval"):
        (data / f"{split}.jsonl").write_text('{"prompt": "q", "completion": "a"}\n')
    with pytest.raises(RefusedInput, match="learns preferences") as caught:
        run_stage("adapter", FAST, {**inputs, "data": data}, tmp_path, seed=7, threads=1)
    assert caught.value.code == "E-DATASET-FORM"


def test_a_pair_that_says_nothing_once_it_is_cut_is_left_out(inputs: dict[str, Path], tmp_path: Path) -> None:
    def made(limit: int) -> Pair | None:
        def document(row: chat.Row) -> Document | None:
            ids = [1, 2, *map(ord, row["completion"])][:limit]
            return Document("x", tuple(ids), 2) if len(ids) > 2 else None

        return preference.pair_maker(document)({"prompt": "q", "chosen": "abc", "rejected": "abd"})

    whole = made(10)
    assert whole is not None
    assert (whole.scored, whole.size, whole.chosen.scored) == (1, 10, 3)
    assert made(4) is None, "the answers differ in what was cut off"
    assert made(2) is None, "no answer begins"
    with pytest.raises(RefusedInput) as caught:
        run_stage("adapter", {**FAST, "max_length": 8}, inputs, tmp_path, seed=7, threads=1)
    assert caught.value.code == "E-DATASET-LENGTH"


def test_others_read_a_preference_as_what_was_chosen(inputs: dict[str, Path], tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert chat.render(row, chat.Template(None, eos="<e>")) == ("q", "qgood<e>")
    assert chat.answered({"text": "x"}) == {"text": "x"}
    sft = {**FAST, "objective": "sft", "steps": 1}
    _, metrics = run_stage("adapter", sft, inputs, tmp_path, seed=7, threads=1)
    assert metrics["eval_loss_before"].unit == "nats/token"
    data = tmp_path / "chosen"
    data.mkdir()
    for split in ("train", "eval"):
        rows = [json.loads(line) for line in (inputs["data"] / f"{split}.jsonl").read_text().splitlines()]
        shown = [{"id": row["id"], **chat.answered(row)} for row in rows]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shown))
    _, same = run_stage("adapter", sft, {**inputs, "data": data}, tmp_path, seed=7, threads=1, name="same")
    assert same["eval_loss_after"].value == metrics["eval_loss_after"].value


def test_the_settings_belong_to_the_objective() -> None:
    assert stage_of("adapter", {"steps": 1}).model_dump()["dpo"] is None
    assert stage_of("adapter", {"steps": 1, "objective": "dpo"}).model_dump()["dpo"]["beta"] == 0.1
    bad: tuple[dict[str, Any], ...] = (
        {"dpo": {"beta": 0.1}},
        {"objective": "dpo", "dpo": None},
        {"objective": "dpo", "dpo": {"beta": 0}},
        {"objective": "dpo", "dpo": {"label_smoothing": 0.5}},
        {"objective": "dpo", "completion_only": False},
    )
    for params in bad:
        with pytest.raises(ValidationError):
            stage_of("adapter", {"steps": 1, **params})
