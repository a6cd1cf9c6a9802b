"""Which of some labels a model gives a text: the likeliest one as an answer, or the one that it says.

Laws. By likelihood, a label is the answer that a row would have with it: its log-likelihood is that of the label's
tokens after the prompt and of the token that ends it, so that no label is favoured for being the beginning of another.
All labels of a row are scored from the first token at which any two of them differ from the prompt. By what is said,
case, white space around it and a full stop at its end do not count, and what is no label is counted as none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ingot.core.stage import Metric, Progress
from ingot.errors import RefusedInput
from ingot.kit.backends import Backend
from ingot.kit.bootstrap import percentiles, resampled_sums, share, share_interval
from ingot.kit.chat import Row, answered, wanted_text
from ingot.kit.confidence.reliability import BINS, gaps
from ingot.kit.generate import Allowed, Decoding, generate
from ingot.kit.scoring.run import log_softmax, picked

_BOOTSTRAP = "95 % interval: percentile bootstrap over documents"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Labelled:
    """A row and the number of its right label."""

    row: Row
    wanted: int


@dataclass(frozen=True)
class Prediction:
    """What a model said of a row; ``found`` None: no label. ``scores`` are log-likelihoods, label by label."""

    id: str
    wanted: int
    found: int | None
    text: str | None = None
    scores: tuple[float, ...] = ()


def known(text: str) -> str:
    """A label or an answer without what does not count."""
    return text.strip().removesuffix(".").rstrip().casefold()


def label_of(row: Row) -> str:
    """The label of a row: its answer. RefusedInput (E-CLASSIFY-ROWS) for plain text."""
    if "messages" in row or "prompt" in row:
        return wanted_text(row)
    raise RefusedInput(
        "E-CLASSIFY-ROWS",
        f"row {row.get('id')} is plain text, so it has no label",
        hint="use a data set of prompts and completions or of chats, whose answers are labels",
    )


def labels_of(rows: Sequence[Row], most: int) -> tuple[str, ...]:
    """The labels that rows have, in the order of their texts. RefusedInput: E-CLASSIFY-LABELS, E-CLASSIFY-ROWS."""
    found = tuple(sorted({label_of(row) for row in rows}))
    if len(found) > most:
        raise RefusedInput(
            "E-CLASSIFY-LABELS",
            f"the rows have {len(found)} different answers, and at most {most} can be labels",
            hint="name the labels, if these are answers at all and no labels",
        )
    return found


def labelled(rows: Sequence[Row], labels: Sequence[str]) -> list[Labelled]:
    """Rows with the numbers of their labels.

    RefusedInput (E-CLASSIFY-LABELS) for fewer than two labels, for two that are one, and for a row without one.
    """
    numbers = {known(label): number for number, label in enumerate(labels)}
    if len(numbers) < len(labels) or len(labels) < 2 or "" in numbers:
        raise RefusedInput(
            "E-CLASSIFY-LABELS",
            "there must be two labels at the least, each with a text of its own",
            facts=[f"labels: {', '.join(map(repr, labels[:12]))}"],
            hint="case, white space around a label and a full stop at its end make no other label",
        )
    found = []
    for row in rows:
        number = numbers.get(known(label_of(row)))
        if number is None:
            raise RefusedInput(
                "E-CLASSIFY-LABELS",
                f"the answer of row {row.get('id')} is none of the labels: {label_of(row)[:60]!r}",
                facts=[f"labels: {', '.join(map(repr, labels[:12]))}"],
            )
        found.append(Labelled(row, number))
    return found


def with_label(row: Row, label: str) -> dict[str, Any]:
    """The row with another answer."""
    row = answered(row)
    if "messages" in row:
        return {**row, "messages": [*row["messages"][:-1], {**row["messages"][-1], "content": label}]}
    return {**row, "completion": label}


def by_likelihood(backend: Backend, labels: Sequence[str], room: int, *, mean: bool) -> Callable[[Row], Prediction]:
    """What predicts by likelihood; ``mean`` takes it by token. RefusedInput: E-EVAL-CONTEXT, E-EVAL-NAN."""

    def predict(row: Row) -> Prediction:
        examples = [backend.encode(with_label(row, label), 1 << 40) for label in labels]
        longest = max(len(example.ids) for example in examples)
        _check_room(row, longest, min(room, backend.context))
        start = min(example.labels_from for example in examples)
        scores = []
        for example in examples:
            total = _log_likelihood(backend, example.ids, start)
            scores.append(total / (len(example.ids) - start) if mean else total)
        return Prediction(str(row.get("id", "")), -1, int(np.argmax(scores)), None, tuple(scores))

    return predict


def _log_likelihood(backend: Backend, ids: Sequence[int], start: int) -> float:
    at, total = start, 0.0
    for logits in backend.logits(ids, start):
        wanted = torch.tensor(ids[at : at + len(logits)])
        total += float(picked(log_softmax(logits), wanted).sum())
        at += len(logits)
    return total


def by_text(
    backend: Backend, labels: Sequence[str], room: int, max_tokens: int, masks: Callable[[], Allowed] | None
) -> Callable[[Row], Prediction]:
    """What predicts by what is said; with ``masks`` nothing but labels can be. RefusedInput as ``by_likelihood``."""
    numbers = {known(label): number for number, label in enumerate(labels)}

    def predict(row: Row) -> Prediction:
        ids = backend.question(row)
        _check_room(row, len(ids) + max_tokens, min(room, backend.context))
        said = generate(backend, ids, Decoding(max_tokens), masks() if masks is not None else None).text
        return Prediction(str(row.get("id", "")), -1, numbers.get(known(said)), said)

    return predict


def _check_room(row: Row, tokens: int, room: int) -> None:
    if tokens > room:
        raise RefusedInput(
            "E-EVAL-CONTEXT",
            f"row {row.get('id')} and its answer have {tokens} tokens, and there is room for {room}",
            hint="raise max_length where the model's context allows it",
        )


def predict_all(rows: Sequence[Labelled], predict: Callable[[Row], Prediction], progress: Progress) -> list[Prediction]:
    """The predictions of all rows, in order."""
    found: list[Prediction] = []
    right = 0
    for number, one in enumerate(rows, 1):
        made = predict(one.row)
        found.append(Prediction(made.id, one.wanted, made.found, made.text, made.scores))
        right += made.found == one.wanted
        progress(number, len(rows), "documents", right=f"{100 * right / number:.0f} %")
    return found


def confusion(found: Sequence[Prediction], count: int) -> npt.NDArray[np.int64]:
    """How often each label (row) was found to be each (column); the last column is none of them."""
    counts = np.zeros((count, count + 1), np.int64)
    for one in found:
        counts[one.wanted, count if one.found is None else one.found] += 1
    return counts


def macro_f1(right: Floats, both: Floats) -> Floats:
    """The mean of the F1 of all labels that are wanted or found: last axis, 2 · right / (wanted + found)."""
    there = both > 0
    f1 = np.divide(2 * right, both, out=np.zeros_like(both), where=there)
    mean: Floats = f1.sum(axis=-1) / there.sum(axis=-1)
    return mean


def metrics(
    found: Sequence[Prediction], labels: Sequence[str], names: Sequence[str], resamples: int
) -> dict[str, Metric]:
    """Accuracy, macro F1, the shares of the labels that were found, and of likelihoods the calibration error.

    ``names`` are those of the labels in the names of metrics.
    """
    right = sum(one.found == one.wanted for one in found)
    of = len(found)
    measured = {
        "documents": Metric(of, "documents", "held-out documents classified"),
        "accuracy": share(right, of, "share of documents with their own label"),
        "f1_macro": _f1(found, len(labels), resamples),
    }
    counted = confusion(found, len(labels)).sum(axis=0).tolist()
    for name, label, count in zip((*names, "other"), (*labels, None), counted, strict=True):
        if label is None and all(one.scores for one in found):
            continue  # one label is always the likeliest
        what = "no label at all" if label is None else f"the label {label!r}"
        measured[f"{name}_share"] = share(count, of, f"share of documents that were given {what}")
    if all(one.scores for one in found):
        measured["calibration_error"] = _calibration(found, resamples)
    return measured


def _f1(found: Sequence[Prediction], labels: int, resamples: int) -> Metric:
    right, both = np.zeros((len(found), labels)), np.zeros((len(found), labels))
    for row, one in enumerate(found):
        both[row, one.wanted] += 1
        if one.found is not None:
            both[row, one.found] += 1
            right[row, one.found] = one.found == one.wanted
    value = float(macro_f1(right.sum(axis=0), both.sum(axis=0)))
    how = f"mean of the F1 of each label that is wanted or found; {_BOOTSTRAP}, accuracy's where all are right or wrong"
    return Metric(value, "1", how, len(found), _f1_interval(right, both, resamples))


def _f1_interval(right: Floats, both: Floats, resamples: int) -> tuple[float, float] | None:
    """The 95 % interval of macro F1; that of accuracy where that is 0 or 1, as resamples are all alike then."""
    of, count = len(right), int(right.sum())
    if of < 2 or count in (0, of):
        return share_interval(count, of) if of > 1 else None
    labels = right.shape[1]
    sums = resampled_sums(np.hstack([right, both]), resamples)
    return percentiles(macro_f1(sums[:, :labels], sums[:, labels:]))


def _calibration(found: Sequence[Prediction], resamples: int) -> Metric:
    """Expected calibration error (https://arxiv.org/abs/1706.04599) of the likeliest label's share."""
    scores = np.array([one.scores for one in found])
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    right = np.array([one.found == one.wanted for one in found])
    apart = gaps(weights.max(axis=1) / weights.sum(axis=1), right, BINS, "width")
    value = float(np.abs(apart.sum(axis=0)).sum()) / len(found)
    drawn = np.abs(resampled_sums(apart, resamples)).sum(axis=1) / len(found) if len(found) > 1 else None
    how = f"expected calibration error of the likeliest label's share, {BINS} bins of equal width; {_BOOTSTRAP}"
    return Metric(value, "1", how, len(found), None if drawn is None else percentiles(drawn))


def told(found: Sequence[Prediction], labels: Sequence[str]) -> Mapping[str, Any]:
    """The confusion as a file holds it."""
    counts = confusion(found, len(labels))
    return {"format": 1, "labels": list(labels), "counts": counts.tolist()}
