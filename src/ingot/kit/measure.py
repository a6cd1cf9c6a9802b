"""Score a model on held-out documents, alone and against a reference; time it on its own runtime.

Conventions, the same for every container: a document is read from its first token, within one window, nothing of
another document before it; the tokens scored are those after the prompt (``ingot.kit.chat``); log-softmax is
computed in float32 from the logits that the runtime gives; sums over tokens are kept in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ingot.core.stage import Metric, Progress
from ingot.errors import RefusedInput
from ingot.kit.backends import Backend, not_finite
from ingot.kit.bootstrap import ratio_interval
from ingot.kit.chat import Example, Row
from ingot.kit.runtime.timing import timed

_NATS = "nats/token"


@dataclass(frozen=True)
class Document:
    """One document's sums: tokens scored, negative log-likelihood in nats; against a reference, its nll too,
    the KL divergence and how often both models rank the same token first."""

    id: str
    tokens: int
    nll: float
    ref_nll: float | None = None
    kl: float | None = None
    agree: int | None = None


@dataclass
class Scores:
    """All documents, and the KL divergence token by token (for its percentiles)."""

    documents: list[Document] = field(default_factory=list)
    token_kl: list[float] = field(default_factory=list)


def held_out(backend: Backend, rows: Sequence[Row], *, limit: int, max_length: int) -> Iterator[tuple[Row, Example]]:
    """The first ``limit`` rows, in the order of their ids (content), that have at least one token to score.

    A row whose prompt alone fills ``max_length`` has none. The choice depends on tokens, so with a reference it is
    made with the reference's tokenizer.
    """
    found = 0
    for row in sorted(rows, key=lambda row: str(row.get("id", ""))):
        if found == limit:
            return
        example = backend.encode(row, max_length)
        if example.scored:
            found += 1
            yield row, example


def check_same_text(candidate: Backend, reference: Backend, chosen: Sequence[tuple[Row, Example]], length: int) -> None:
    """Refuse a candidate that reads other tokens than the reference.

    E-EVAL-TEMPLATE when chat rows would be rendered by another template, E-EVAL-TOKENS when the ids of any document
    differ: numbers per token then compare different things.
    """
    chats = any("messages" in row for row, _ in chosen)
    if chats and candidate.template.source != reference.template.source:
        raise RefusedInput(
            "E-EVAL-TEMPLATE",
            "the candidate's chat template is not the reference's, so they would be asked different questions",
            facts=[_first_difference(candidate.template.source or "", reference.template.source or "")],
            hint="write the template of the reference into the candidate, or report it without this reference",
        )
    for row, expected in chosen:
        found = candidate.encode(row, length)
        if found != expected:
            raise RefusedInput(
                "E-EVAL-TOKENS",
                "the candidate's tokenizer gives other tokens than the reference's",
                facts=[f"document {row.get('id')}: {_first_token(found, expected)}"],
                hint="numbers per token of different tokenizers do not compare; report it without a reference",
            )


def _first_difference(one: str, two: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    return f"first difference at character {at}: {one[at : at + 24]!r} instead of {two[at : at + 24]!r}"


def _first_token(found: Example, expected: Example) -> str:
    pairs = zip(found.ids, expected.ids, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found.ids), len(expected.ids)))
    if found.ids == expected.ids:
        return f"scoring starts at token {found.labels_from} instead of {expected.labels_from}"
    return f"first difference at token {at}: {found.ids[at : at + 4]} instead of {expected.ids[at : at + 4]}"


def check_context(backend: Backend, examples: Sequence[Example]) -> None:
    """Refuse documents longer than the model's context (E-EVAL-CONTEXT): what is scored beyond it means nothing."""
    longest = max(len(example.ids) for example in examples)
    if longest > backend.context:
        raise RefusedInput(
            "E-EVAL-CONTEXT",
            f"a document has {longest} tokens and the model's context is {backend.context}",
            hint=f"set max_length to {backend.context} or less",
        )


def score(
    candidate: Backend, reference: Backend | None, chosen: Sequence[tuple[Row, Example]], progress: Progress
) -> Scores:
    """Both models over every document, segment by segment: no logits are stored.

    RefusedInput: E-EVAL-NAN for logits that are not finite, E-EVAL-VOCABULARY for outputs of unlike width.
    """
    scores, total = Scores(), sum(len(example.ids) for _, example in chosen)
    done, nll, tokens = 0, 0.0, 0
    for row, example in chosen:
        document = _score_one(candidate, reference, str(row.get("id", "")), example, scores.token_kl)
        scores.documents.append(document)
        done, nll, tokens = done + len(example.ids), nll + document.nll, tokens + document.tokens
        progress(done, total, "tokens", perplexity=math.exp(min(nll / tokens, 700.0)))
    return scores


def _score_one(
    candidate: Backend, reference: Backend | None, name: str, example: Example, token_kl: list[float]
) -> Document:
    nll, ref_nll, agree, count = 0.0, 0.0, 0, 0
    divergences: list[float] = []
    for ours, theirs, targets in _aligned(candidate, reference, example):
        log_q = _log(ours)
        nll, count = nll - _picked(log_q, targets), count + len(targets)
        if theirs is not None:
            log_p = _log(theirs)
            ref_nll -= _picked(log_p, targets)
            agree += int((log_q.argmax(-1) == log_p.argmax(-1)).sum())
            divergences += kl_divergence(log_p, log_q).tolist()
    assert count == example.scored, f"{count} positions were scored instead of {example.scored}"
    if reference is None:
        return Document(name, count, nll)
    token_kl += divergences
    return Document(name, count, nll, ref_nll, math.fsum(divergences), agree)


def _aligned(
    candidate: Backend, reference: Backend | None, example: Example
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]]:
    """(candidate's logits, reference's logits, the tokens they predict), segment by segment."""
    at = example.labels_from
    others = None if reference is None else reference.logits(example.ids, at)
    for ours in candidate.logits(example.ids, example.labels_from):
        theirs = None if others is None else next(others)
        if theirs is not None and ours.shape != theirs.shape:
            raise RefusedInput(
                "E-EVAL-VOCABULARY",
                f"the candidate has {ours.shape[-1]} outputs and the reference {theirs.shape[-1]}",
            )
        yield ours, theirs, torch.tensor(example.ids[at : at + len(ours)])
        at += len(ours)


def _log(logits: torch.Tensor) -> torch.Tensor:
    log = logits.float().log_softmax(-1)
    if not torch.isfinite(log).all():
        raise not_finite()
    return log


def _picked(log: torch.Tensor, targets: torch.Tensor) -> float:
    return float(log.gather(-1, targets[:, None]).double().sum())


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p‖q) in nats, row by row, from float32 log-probabilities (rows x vocabulary).

    Never negative: what the rounding of float32 leaves below zero is zero.
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)


def quality(scores: Scores, resamples: int) -> dict[str, Metric]:
    """The metrics of what was scored, each with its 95 % interval over documents."""
    documents = scores.documents
    tokens = [document.tokens for document in documents]
    method = "completion tokens of held-out documents, float32 log-softmax"
    intervals = "; 95 % interval: percentile bootstrap over documents"

    def mean(sums: Sequence[float], name: str) -> Metric:
        value = math.fsum(sums) / sum(tokens)
        return Metric(value, _NATS, f"{name}{intervals}", sum(tokens), ratio_interval(sums, tokens, resamples))

    nll = mean([document.nll for document in documents], f"mean negative log-likelihood, {method}")
    found = {
        "tokens": Metric(sum(tokens), "tokens", "tokens scored"),
        "documents": Metric(len(documents), "documents", "held-out documents scored"),
        "nll": nll,
        "perplexity": Metric(
            math.exp(nll.value), "1", f"exp of nll; {method}{intervals}", nll.n, _map(nll.interval, math.exp)
        ),
    }
    if scores.token_kl:
        found |= _against(scores, mean, resamples)
    return found


def _against(scores: Scores, mean: Callable[[Sequence[float], str], Metric], resamples: int) -> dict[str, Metric]:
    documents = scores.documents
    tokens = [document.tokens for document in documents]
    agree = [document.agree or 0 for document in documents]
    return {
        "nll_difference": mean(
            [document.nll - (document.ref_nll or 0.0) for document in documents],
            "nll of the candidate less that of the reference on the same tokens, paired by document; "
            "below 0 the candidate is better",
        ),
        "kl_divergence": mean(
            [document.kl or 0.0 for document in documents], "mean KL(reference‖candidate) of next-token distributions"
        ),
        "kl_p99": Metric(
            float(np.quantile(scores.token_kl, 0.99)),
            "nats",
            "99th percentile over tokens of KL(reference‖candidate)",
            len(scores.token_kl),
        ),
        "top1_agreement": Metric(
            sum(agree) / sum(tokens),
            "1",
            "share of tokens where both rank the same token first; 95 % interval: percentile bootstrap over documents",
            sum(tokens),
            ratio_interval(agree, tokens, resamples),
        ),
    }


def _map(interval: tuple[float, float] | None, function: Callable[[float], float]) -> tuple[float, float] | None:
    return None if interval is None else (function(interval[0]), function(interval[1]))


def size(backend: Backend) -> dict[str, Metric]:
    """Bytes of the weight files, parameters, and bits per weight."""
    return {
        "bytes": Metric(backend.bytes, "B", "size of the weight files"),
        "parameters": Metric(backend.parameters, "parameters", "elements of all weights, shared ones once"),
        "bits_per_weight": Metric(
            8 * backend.bytes / backend.parameters, "bits/parameter", "bits of the weight files by parameters"
        ),
    }


def speed(backend: Backend, prompt: Sequence[int], generated: int, repeats: int) -> dict[str, Metric]:
    """Tokens a second of reading a prompt and of generating, apart; medians of ``repeats`` after one warm-up."""
    timed(backend, prompt, min(generated, 4))  # the warm-up of generation needs the first steps only
    runs = [timed(backend, prompt, generated) for _ in range(repeats)]
    prompts = [len(prompt) / run.first for run in runs]
    generations = [generated / sum(run.steps) for run in runs]
    how = f"batch 1, {backend.runtime}; median of the repeats, one warm-up left out"
    return {
        "prompt_tokens_per_second": Metric(
            float(np.median(prompts)), "tokens/s", f"a prompt of {len(prompt)} tokens read at once, {how}", repeats
        ),
        "generation_tokens_per_second": Metric(
            float(np.median(generations)), "tokens/s", f"{generated} tokens one by one, greedy, {how}", repeats
        ),
    }
