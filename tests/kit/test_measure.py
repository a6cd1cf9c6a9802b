"""Scoring and timing on a small hand-made model whose numbers are known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
import torch

from ingot.core.stage import Metric
from ingot.errors import RefusedInput
from ingot.kit import measure
from ingot.kit.backends import SEGMENT, Next, Piece, segments
from ingot.kit.chat import Example, Row, Template
from ingot.kit.scoring import match, run, units
from ingot.kit.scoring.quality import Quality
from stagekit import Recorder


class Table:
    """A backend whose next-token logits depend on the last token only: a row of a table."""

    container = "table"
    precision = "float32"
    runtime = "a table"
    bytes = 12
    context = 1 << 20
    template = Template("t")
    begin: int | None = None

    def __init__(self, logits: torch.Tensor) -> None:
        self.table = logits
        self.parameters = logits.numel()
        self.calls: list[str] = []

    def encode(self, row: Row, max_length: int) -> Example:
        return Example([int(char) for char in row["text"]][:max_length], row.get("from", 1))

    def logits(self, ids: Sequence[int], first: int) -> Iterator[torch.Tensor]:
        for start, _, kept in segments(len(ids), first):
            if kept:
                yield self.table[[ids[start + index] for index in kept]]

    def logits_of(self, examples: Iterable[Example]) -> Iterator[tuple[int, torch.Tensor]]:
        for number, example in enumerate(examples):
            for rows in self.logits(example.ids, example.labels_from):
                yield number, rows

    def tokens(self, text: str) -> list[int]:
        return [int(char) for char in text]

    def pieces(self, ids: Sequence[int]) -> list[Piece]:
        return [Piece(1, False) for _ in ids]

    def question(self, row: Row) -> list[int]:
        return self.encode(row, 1000).ids

    def ends(self, token: int) -> bool:
        return token < 0

    def text(self, ids: Sequence[int]) -> str:
        return "".join(map(str, ids))

    def prefill(self, ids: Sequence[int]) -> Next:
        self.calls.append(f"prefill {len(ids)}")
        return np.zeros(3, np.float32)

    def step(self, token: int) -> Next:
        self.calls.append("step")
        return np.zeros(3, np.float32)


def table(*rows: Sequence[float]) -> Table:
    return Table(torch.tensor(rows).log())


P = [[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]
Q = [[0.25, 0.5, 0.25], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]


def scores_of(candidate: Table, reference: Table | None, *texts: str) -> run.Scores:
    rows = [{"id": str(index), "text": text} for index, text in enumerate(texts)]
    chosen = units.documents(candidate, rows, limit=99, max_length=1000)
    against = None if reference is None else run.Live(reference, chosen)
    return run.score(candidate, chosen, against, Recorder())


def metrics_of(scores: run.Scores) -> dict[str, Metric]:
    found = Quality(scores, "documents", 1000)
    return {**found.alone(), **(found.against() if scores.token_kl else {})}


def test_figures_equal_the_formulas() -> None:
    scores = scores_of(table(*Q), table(*P), "0112", "20")
    first, second = scores.documents
    assert first.nll == pytest.approx(-math.log(0.5 * 0.8 * 0.1), rel=1e-6)
    assert first.ref_nll == pytest.approx(-math.log(0.25 * 0.8 * 0.1), rel=1e-6)
    after_0 = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    after_2 = 2 * 0.2 * math.log(0.2 / 0.3) + 0.6 * math.log(0.6 / 0.4)
    assert first.kl == pytest.approx(after_0, rel=1e-5)  # rows 1 and 1 agree
    assert second.kl == pytest.approx(after_2, rel=1e-5)
    assert (first.agree, second.agree) == (2, 1)
    metrics = metrics_of(scores)
    assert metrics["kl_divergence"].value == pytest.approx((after_0 + after_2) / 4, rel=1e-5)
    assert metrics["nll_difference"].value == pytest.approx((math.log(0.5) + math.log(0.2 / 0.3)) / 4, rel=1e-5)
    assert metrics["top1_agreement"].value == 0.75
    assert metrics["kl_p99"].value <= max(after_0, after_2)
    assert metrics["perplexity"].value == pytest.approx(math.exp(metrics["nll"].value))
    assert metrics["kl_divergence"].n == metrics["tokens"].value == 4


def test_without_a_reference_nothing_is_compared() -> None:
    metrics = metrics_of(scores_of(table(*Q), None, "0112", "20"))
    assert set(metrics) == {"tokens", "documents", "nll", "perplexity", "bits_per_byte", "calibration_error"}


def test_paired_interval_is_narrower_than_the_spread_of_documents() -> None:
    """Documents differ widely, the models by the same little everywhere: pairing sees that, nll alone does not."""
    better = [[0.5, 0.25, 0.25, 1e-9], [0.012, 0.976, 0.012, 1e-9], [0.2, 0.2, 0.6, 1e-9]]
    worse = [[*(0.96 * share for share in row[:3]), 0.04] for row in better]  # 4 % go to a token that never comes
    texts = ["0" * 9, "1" * 12, "2" * 7, "0101010", "1212", "22221"] * 4
    metrics = metrics_of(scores_of(table(*worse), table(*better), *texts))
    assert metrics["nll_difference"].interval == pytest.approx((-math.log(0.96), -math.log(0.96)), rel=1e-4)
    alone = metrics["nll"].interval
    assert alone is not None
    assert alone[1] - alone[0] > 0.3


def test_divergence_is_never_negative_and_never_nan() -> None:
    generator = torch.Generator().manual_seed(1)
    log_p = (torch.randn(50, 1000, generator=generator) * 30).log_softmax(-1)
    log_q = (log_p + torch.randn(50, 1000, generator=generator) * 1e-6).log_softmax(-1)
    found = run.kl_divergence(log_p, log_q)
    assert (found >= 0).all()
    assert found.max() < 1e-5
    exact = (log_p.double().exp() * (log_p.double() - log_q.double())).sum(-1)
    assert torch.allclose(found.double(), exact, atol=1e-5)


def test_outputs_of_unlike_width_are_refused() -> None:
    wide = Table(torch.zeros(3, 4))
    with pytest.raises(RefusedInput) as refused:
        scores_of(wide, table(*P), "01")
    assert refused.value.code == "E-EVAL-VOCABULARY"


def test_infinite_logits_are_refused() -> None:
    with pytest.raises(RefusedInput) as refused:
        scores_of(Table(torch.tensor([[0.0, math.inf], [0.0, 0.0]])), None, "01")
    assert refused.value.code == "E-EVAL-NAN"


def test_other_scored_positions_are_refused() -> None:
    """The same ids, but the prompt ends elsewhere: the two would be scored on different tokens."""

    class Shifted(Table):
        def encode(self, row: Row, max_length: int) -> Example:
            return Example(super().encode(row, max_length).ids, 2)

    rows = [{"id": "a", "text": "0112"}]
    reference = run.Live(table(*P), units.documents(table(*P), rows, limit=9, max_length=99))
    _, differs = match.documents(Shifted(torch.tensor(Q).log()), reference, rows, 99)
    assert differs == "document a: scoring starts at token 2 instead of 1"


def test_held_out_skips_what_has_nothing_to_score_and_stops_at_the_limit() -> None:
    rows = [{"id": "c", "text": "01"}, {"id": "a", "text": "0"}, {"id": "b", "text": "012"}, {"id": "d", "text": "10"}]
    chosen = units.held_out(table(*P), rows, limit=2, max_length=10)
    assert [row["id"] for row, _ in chosen] == ["b", "c"]


@pytest.mark.parametrize("length", [2, SEGMENT, SEGMENT + 1, SEGMENT + 2, 3 * SEGMENT + 7])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_segments_cover_every_scored_position_once(length: int, share: float) -> None:
    first = max(1, int(share * (length - 1)))
    parts = list(segments(length, first))
    assert [start for start, _, _ in parts] == [0, *(stop for _, stop, _ in parts)][:-1]
    assert parts[-1][1] == length - 1
    kept = [start + index for start, _, inside in parts for index in inside]
    assert kept == list(range(first - 1, length - 1))


def test_speed_leaves_the_warm_up_out_and_counts_what_it_timed() -> None:
    backend = table(*P)
    metrics = measure.speed(backend, [0, 1, 2, 0], 6, 3)
    assert backend.calls.count("prefill 4") == 4
    assert backend.calls.count("step") == 4 + 3 * 6
    assert metrics["prompt_tokens_per_second"].n == metrics["generation_tokens_per_second"].n == 3
    assert "4 tokens" in metrics["prompt_tokens_per_second"].method
    assert metrics["generation_tokens_per_second"].value > 0
