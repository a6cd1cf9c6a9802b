"""``classify``: which label a model gives held-out documents, and how often the right one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ingot.core.stage import Done, Given, Measure, Progress, Reproducibility, Role
from ingot.errors import RefusedInput
from ingot.stages._placed import Placed
from ingot.stages._task import MODELS, Found, Task, write_evaluation

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingot.kit.backends import Backend
    from ingot.kit.chat import Row
    from ingot.kit.classify import Labelled, Prediction

_MOST_LABELS = 200


def names(labels: Sequence[str]) -> tuple[str, ...]:
    """A name of letters, digits and underscores for each label; ``class_N`` where it has none of its own."""
    plain = [re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_") for label in labels]
    return tuple(
        name if name and name != "other" and plain.count(name) == 1 else f"class_{number}"
        for number, name in enumerate(plain, 1)
    )


class Classify(Placed, Task):
    """Classification of held-out documents whose answers are labels.

    `by: likelihood` takes the label that is the likeliest answer, `text` the one that greedy decoding says, `choice`
    the same where nothing but a label can be said. Writes `confusion.json`, how often each label (row) was found to be
    each (column; the last is none of them), and `predictions.jsonl`, one line a document.
    """

    kind: ClassVar[str] = "classify"
    revision: ClassVar[int] = 2
    # One machine gives the same answers again; another adds in another order.
    reproducibility: ClassVar[Reproducibility] = "device_dependent"
    inputs: ClassVar[Mapping[str, Role]] = {"candidate": Role(MODELS), "data": Role(("dataset",))}
    tools: ClassVar[tuple[str, ...]] = (
        "compressed-tensors", "coremltools", "gguf", "jinja2", "llama-cpp-python", "llguidance", "numpy", "onnx",
        "onnxruntime", "safetensors", "torch", "transformers",
    )  # fmt: skip
    extra: ClassVar[str | None] = "all"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("documents", "documents"),
        Measure("accuracy", "1"),
        Measure("f1_macro", "1"),
        Measure("CLASS_share", "1"),
        Measure("calibration_error", "1", "with `by: likelihood`"),
    )

    labels: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        default=None,
        max_length=_MOST_LABELS,
        description="the labels, as rows have them for answers; null: all answers of the data set",
    )
    by: Literal["likelihood", "text", "choice"] = Field(
        default="likelihood",
        description="the label of the likeliest answer, the one that is said, or the one that is said where nothing "
        "else can be",
    )
    length: Literal["sum", "mean"] = Field(
        default="sum", description="log-likelihood of all tokens of a label, or by token, which favours no short one"
    )
    documents: int = Field(
        default=200, ge=1, le=1_000_000, description="held-out documents to classify, the first in content order"
    )
    max_tokens: int = Field(default=16, ge=1, le=4096, description="tokens after which what is said is cut")
    max_length: Annotated[int, Field(ge=8, le=131_072)] = Field(
        default=1024, description="tokens of a document with its answer at the most"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="what Hugging Face models compute in"
    )
    resamples: Annotated[int, Field(ge=1000, le=100_000)] = Field(
        default=2000, description="bootstrap resamples of the documents behind each 95 % interval"
    )

    def measured(self, roles: frozenset[str]) -> tuple[str, ...]:
        """The share of each label by its name where the parameters have the labels."""
        del roles
        likelihood = self.by == "likelihood"
        found = [measure.metric for measure in self.measures if measure.metric != "calibration_error" or likelihood]
        if self.labels is not None:
            others = () if likelihood else ("other",)
            found.remove("CLASS_share")
            found += [f"{name}_share" for name in (*names(self.labels), *others)]
        return tuple(found)

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Classify; writes evaluation.json, confusion.json and predictions.jsonl.

        RefusedInput: E-CLASSIFY-LABELS, E-CLASSIFY-ROWS, E-EVAL-EMPTY, E-EVAL-CONTEXT, E-EVAL-NAN.
        """
        from ingot.kit import classify

        rows, labels = self._rows(given)
        backend = self.opened(given.one("candidate"), given, progress, dtype=self.dtype, context=self.max_length)
        progress.phase("classify")
        found = classify.predict_all(rows, self._predict(backend, labels), progress)
        metrics = classify.metrics(found, labels, names(labels), self.resamples)
        confusion = json.dumps(classify.told(found, labels), ensure_ascii=False)
        (out / "confusion.json").write_text(confusion + "\n", encoding="utf-8")
        lines = [json.dumps(_line(one, labels), sort_keys=True, ensure_ascii=False) + "\n" for one in found]
        (out / "predictions.jsonl").write_text("".join(lines), encoding="utf-8")
        write_evaluation(self.kind, self.settings(), given, out, Found(backend.container, backend.precision, metrics))
        return Done(metrics, notes=self.where(backend))

    def _rows(self, given: Given) -> tuple[list[Labelled], tuple[str, ...]]:
        from ingot.kit import classify
        from ingot.kit.chat import read_rows
        from ingot.kit.scoring.units import in_order

        folder = given.one("data")
        held_out = list(read_rows(folder, "eval"))
        if not held_out:
            raise RefusedInput("E-EVAL-EMPTY", "the data set holds no held-out row", hint="raise its split.eval")
        labels = self.labels
        if labels is None:
            labels = classify.labels_of([*read_rows(folder, "train"), *held_out], _MOST_LABELS)
        return classify.labelled(in_order(held_out)[: self.documents], labels), labels

    def _predict(self, backend: Backend, labels: tuple[str, ...]) -> Callable[[Row], Prediction]:
        from ingot.kit import classify

        if self.by == "likelihood":
            return classify.by_likelihood(backend, labels, self.max_length, mean=self.length == "mean")
        masks = None
        if self.by == "choice":
            from ingot.kit.constrained import Vocabulary

            vocabulary = Vocabulary(backend)
            masks = partial(vocabulary.one_of, labels)
        return classify.by_text(backend, labels, self.max_length, self.max_tokens, masks)


def _line(one: Prediction, labels: tuple[str, ...]) -> dict[str, object]:
    """A prediction as its file holds it: labels by their texts."""
    line: dict[str, object] = {
        "id": one.id,
        "wanted": labels[one.wanted],
        "found": None if one.found is None else labels[one.found],
    }
    if one.text is not None:
        line["said"] = one.text
    if one.scores:
        line["log_likelihood"] = dict(zip(labels, one.scores, strict=True))
    return line
