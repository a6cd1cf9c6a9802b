from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from ingot.core.stage import Given
from ingot.errors import StageFailed
from ingot.kit.train import documents, next_token, run
from ingot.kit.train.documents import Corpus, Document
from ingot.kit.train.guards import Guards
from ingot.kit.train.layout import Layout
from ingot.kit.train.loop import Learner
from ingot.kit.train.schedule import Schedule
from stagekit import Recorder
from tinymodels import llama
from trainkit import doc, settings


@dataclass
class Coded:
    ids: list[int]
    labels_from: int


def corpus(rows: list[dict[str, Any]], *, completion_only: bool = True) -> Corpus[Document]:
    def make(row: Any) -> Document | None:
        return documents.document(row, Coded(list(row["ids"]), row["from"]), completion_only=completion_only)

    return Corpus(rows, make)


ROWS = [{"id": f"r{n}", "ids": [1, 2, 3, n], "from": 2} for n in range(6)]


def test_packed_documents_cost_what_they_cost_alone() -> None:
    model = llama().requires_grad_(requires_grad=False)
    docs = [doc("a", 5, 6, 7, 8, 9, start=2), doc("b", 11, 12, 13), doc("c", 20, 21, 22, 23, start=3)]
    together = next_token.nll(model, docs)
    alone = torch.cat([next_token.nll(model, [item]) for item in docs])
    assert together.shape == (3 + 2 + 1,)
    assert torch.allclose(together, alone, atol=1e-5)
    reference = model(input_ids=torch.tensor([[5, 6, 7, 8, 9]]), labels=torch.tensor([[-100, -100, 7, 8, 9]])).loss
    assert float(alone[:3].mean()) == pytest.approx(float(reference), abs=1e-5)


def test_a_model_that_mixes_packed_documents_is_noticed() -> None:
    model = llama()
    docs = [doc("a", *range(1, 30)), doc("b", *range(40, 60))]
    assert next_token.keeps_apart(model, docs)

    def mixing(**inputs: Any) -> Any:
        inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1])[None]
        return model(**inputs)

    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    assert next_token.keeps_apart(model, docs)
    assert not next_token.keeps_apart(mixing, docs)


def test_evaluation_does_not_depend_on_the_packs() -> None:
    model = llama()
    docs = [doc(str(n), *range(n + 1, n + 9)) for n in range(7)]
    seen: list[int] = []
    one = learner(model, Layout("single", 1)).score(docs, lambda _: None)
    many = learner(model, Layout("packed", 20)).score(docs, seen.append)
    assert learner(model, Layout("padded", 40)).score(docs, lambda _: None) == pytest.approx(many, abs=1e-4)
    assert one == pytest.approx(many, abs=1e-4)
    assert seen == [2, 4, 6, 7]


def test_every_epoch_is_a_new_permutation_of_content() -> None:
    first = [item.id for item in corpus(ROWS).epoch(1, 0)]
    assert first == [item.id for item in corpus(ROWS[::-1]).epoch(1, 0)]
    assert sorted(first) == [row["id"] for row in ROWS]
    assert first != [item.id for item in corpus(ROWS).epoch(1, 1)]
    assert first != [item.id for item in corpus(ROWS).epoch(2, 0)]


def test_batches_are_full_and_cross_epochs() -> None:
    batches = [batch for batch, _ in islice(corpus(ROWS).batches(1, 4), 3)]
    assert [len(batch) for batch in batches] == [4, 4, 4]
    seen = [item.id for batch in batches for item in batch]
    assert sorted(seen[:6]) == sorted(seen[6:]) == [row["id"] for row in ROWS]


def test_rows_cut_before_their_completion_are_skipped() -> None:
    cut = [{"id": "x", "ids": [1, 2], "from": 2}, {"id": "y", "ids": [1], "from": 1}]
    assert list(corpus(cut).batches(1, 2)) == []
    assert [item.id for item in corpus(cut, completion_only=False).epoch(1, 0)] == ["x"]
    assert corpus(ROWS, completion_only=False).first(2) == [doc("r0", 1, 2, 3, 0), doc("r1", 1, 2, 3, 1)]
    assert documents.nothing_to_learn(0, 8).code == "E-DATASET-EMPTY"
    assert documents.nothing_to_learn(2, 8).code == "E-DATASET-LENGTH"


def test_a_row_without_an_id_is_known_by_its_content() -> None:
    assert documents.row_id({"text": "a", "n": 1}) == documents.row_id({"n": 1, "text": "a"})
    assert documents.row_id({"text": "a"}) != documents.row_id({"text": "b"})
    assert documents.row_id({"id": "r", "text": "b"}) == "r"


@pytest.mark.parametrize(
    ("kind", "tokens", "sizes"),
    [("packed", 6, [[3, 3], [9], [2, 2, 2]]), ("padded", 9, [[3, 3], [9], [2, 2, 2]]),
     ("padded", 5, [[3], [3], [9], [2, 2], [2]]),
     ("single", 99, [[3], [3], [9], [2], [2], [2]])],
)  # fmt: skip
def test_a_pass_holds_the_limit(kind: Any, tokens: int, sizes: list[list[int]]) -> None:
    docs = [doc(str(n), *range(size)) for n, size in enumerate((3, 3, 9, 2, 2, 2))]
    assert [[item.size for item in taken] for taken in Layout(kind, tokens).passes(docs)] == sizes


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_the_rate_rises_and_falls(shape: str) -> None:
    schedule = Schedule(shape, 1.0, 20, 0.2)
    rates = [schedule.rate(step) for step in range(20)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == max(rates) == 1.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert (rates[-1] == 1.0) is (shape == "constant")
    assert rates[-1] > 0


def learner(model: Any, layout: Layout) -> Learner[Document]:
    return Learner(model, next_token.NextToken(layout), layout)


def trained(docs: list[Document], layout: Layout, model: Any = None, **changes: Any) -> run.Outcome:
    """Train a random model on exactly these documents, all of them in every step."""
    by_id = {item.id: item for item in docs}
    rows = [{"id": item.id} for item in docs]
    model = model if model is not None else llama()
    task = run.Task(
        model, next_token.NextToken(layout), Corpus(rows, lambda row: by_id[row["id"]]), layout,
        chance=next_token.chance(model),
    )  # fmt: skip
    given = Given({}, {}, Path(), seed=1)
    return run.train(settings(batch_size=len(docs), **changes), task, given, Recorder())


def test_splitting_a_batch_into_passes_changes_no_step() -> None:
    docs = [doc("a", 1, 2, 3, 4, 5), doc("b", 6, 7), doc("c", 8, 9, 10, 11)]
    layouts = [Layout("single", 1), Layout("packed", 100), Layout("padded", 100)]
    losses = [[step.loss for step in trained(docs, layout).history] for layout in layouts]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0] == pytest.approx(losses[2], abs=1e-4)
    assert losses[1][2] < losses[1][0]


def test_a_model_that_gives_no_number_is_not_trained() -> None:
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[50] = float("nan")
    with pytest.raises(StageFailed) as caught:
        trained([doc("a", 1, 3, 7, 3, 7, 3, 7)], Layout("single", 1), model)
    assert caught.value.code == "E-TRAIN-START"


def test_a_loss_beyond_a_guess_is_an_explosion_only_if_it_grew() -> None:
    bad = llama()
    with torch.no_grad():
        bad.lm_head.weight[50] = 60.0
        bad.lm_head.weight[51] = -60.0
    docs = [doc("a", 1, 3, 7, 3, 7, 3, 7)]
    outcome = trained(docs, Layout("single", 1), bad, learning_rate=1e-4)
    assert outcome.history[0].loss > 2 * next_token.chance(bad)
    for losses, stops in (([3.0, 9.0], False), ([3.0, 9.3], True), ([12.0, 23.0], False), ([12.0, 25.0], True)):
        guards = Guards(4.6, 1e-3)
        if stops:
            with pytest.raises(StageFailed, match="training diverged"):
                guards.check(2, losses, 1.0)
        else:
            guards.check(2, losses, 1.0)
