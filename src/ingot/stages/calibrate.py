"""``calibrate``: whether a model's confidence is deserved, and the scaling that makes it so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ingot.core.stage import Done, Format, Given, Measure, Metric, Progress, Reproducibility, Role, Stage
from ingot.errors import RefusedInput
from ingot.stages._placed import Placed

if TYPE_CHECKING:
    from ingot.kit.confidence.measure import Chosen, Fitted, Measured
    from ingot.kit.confidence.reliability import Reliability

_BOOTSTRAP = "95 % interval: percentile bootstrap over documents"
_FITTED = "fitted on other documents than are measured; 95 % interval: one-step bootstrap over documents"


class Calibrate(Placed, Stage):
    """Temperature and Platt scaling of next-token confidence, fitted and measured on different held-out documents.

    Confidence is the probability of the likeliest token at each position that `evaluate` would score too; it is right
    when that is the document's token. One part of the documents, chosen by the hash of their ids, gives the temperature
    (all logits are divided by it) and Platt's a and b (the log-odds of the likeliest token become a·x + b); expected
    calibration error, before and after, is measured on the rest. Writes `calibration.json` and `reliability.svg`.
    Needs positions · vocabulary · 4 bytes of scratch for the fitted part; memory does not grow with it.
    """

    kind: ClassVar[str] = "calibrate"
    revision: ClassVar[int] = 1
    produces: ClassVar[Format] = "calibration"
    # One machine gives the same bytes again; another adds in another order.
    reproducibility: ClassVar[Reproducibility] = "device_dependent"
    inputs: ClassVar[Mapping[str, Role]] = {
        "model": Role(accepts=("hf", "gguf")),
        "data": Role(accepts=("dataset",)),
    }
    tools: ClassVar[tuple[str, ...]] = (
        "compressed-tensors", "gguf", "jinja2", "llama-cpp-python", "numpy", "safetensors", "torch", "transformers",
    )  # fmt: skip
    extra: ClassVar[str | None] = "all"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("temperature", "1"),
        Measure("platt_slope", "1"),
        Measure("platt_offset", "1"),
        Measure("documents_fitted", "documents"),
        Measure("tokens_fitted", "tokens"),
        Measure("documents_measured", "documents"),
        Measure("tokens_measured", "tokens"),
        Measure("accuracy", "1"),
        Measure("nll_before", "nats/token"),
        Measure("nll_temperature", "nats/token"),
        Measure("ece_before", "1"),
        Measure("ece_temperature", "1"),
        Measure("ece_temperature_change", "1"),
        Measure("ece_platt", "1"),
        Measure("ece_platt_change", "1"),
    )

    documents: Annotated[int, Field(ge=4)] = Field(
        default=64, description="Held-out documents, the first in content order that have tokens to score"
    )
    fit: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="Share of the documents that the scaling is fitted on; the rest measures it"
    )
    max_length: Annotated[int, Field(ge=8, le=131072)] = Field(
        default=256, description="Tokens of a document that are read; the rest is cut"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="What Hugging Face models compute in"
    )
    bins: Annotated[int, Field(ge=2, le=1000)] = Field(default=15, description="Bins of the calibration error")
    binning: Literal["width", "mass"] = Field(
        default="width", description="Bins of equal width, or of equal numbers of positions"
    )
    resamples: Annotated[int, Field(ge=1000, le=100_000)] = Field(
        default=2000, description="Bootstrap resamples of the documents behind each 95 % interval"
    )

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Fit, measure, write.

        RefusedInput: E-CALIBRATE-DOCUMENTS (fewer than four documents with tokens to score), E-CALIBRATE-BOUND (no
        temperature is best), E-EVAL-CONTEXT, E-EVAL-NAN.
        """
        from ingot.kit.confidence import measure

        backend = self.opened(given.one("model"), given, progress, dtype=self.dtype, context=self.max_length)
        to_fit, to_measure = measure.divide(self._chosen(backend, given), self.fit)
        progress.phase("read the documents to fit on")
        fitted = measure.fit(backend, to_fit, given.scratch, progress)
        progress.phase("measure on the others")
        found = measure.measure(backend, to_measure, fitted.degrees, progress)
        panels = self._panels(fitted, found)
        self._write(given, out, fitted, found, panels)
        metrics = {**_fit_metrics(fitted, self.resamples), **_metrics(found, panels, self.resamples)}
        return Done(metrics, notes=self.where(backend))

    def _chosen(self, backend: Any, given: Given) -> Chosen:
        from ingot.kit.chat import read_rows
        from ingot.kit.scoring import units

        rows = list(read_rows(given.one("data"), "eval"))
        chosen = list(units.held_out(backend, rows, limit=self.documents, max_length=self.max_length))
        if len(chosen) < 4:
            raise RefusedInput(
                "E-CALIBRATE-DOCUMENTS",
                f"{len(chosen)} held-out documents have tokens to score within {self.max_length}, and 4 are needed",
                facts=[f"{len(rows)} held-out rows"],
                hint="raise max_length, or the data set's split.eval",
            )
        units.check_context(backend, [example for _, example in chosen])
        return chosen

    def _panels(self, fitted: Fitted, found: Measured) -> dict[str, Reliability]:
        from ingot.kit.confidence.logits import chance
        from ingot.kit.confidence.reliability import reliability

        right, cut = found.before.right, (self.bins, self.binning)
        confidences = {
            "before": chance(found.before.logit),
            "temperature": chance(found.after.logit),
            "platt": fitted.platt_of(found.before.logit),
        }
        return {
            name: reliability(confidence, right, found.documents, cut, self.resamples)
            for name, confidence in confidences.items()
        }

    def _write(
        self, given: Given, out: Path, fitted: Fitted, found: Measured, panels: Mapping[str, Reliability]
    ) -> None:
        from ingot.kit.confidence.diagram import diagram

        a, b = fitted.platt.values
        nll = {"before": float(found.before.nll.mean()), "temperature": float(found.after.nll.mean())}
        content = {
            "format": 1,
            "model": given.digests["model"][0],
            "data": given.digests["data"][0],
            "settings": self.model_dump(mode="json"),
            "temperature": fitted.degrees,
            "platt": {"a": a, "b": b},
            "fitted": {"documents": fitted.documents.count, "tokens": len(fitted.documents.of)},
            "measured": {"documents": found.documents.count, "tokens": len(found.documents.of)},
            "accuracy": float(found.before.right.mean()),
            "nll": nll,
            "reliability": {
                name: {"ece": panel.ece, "bins": [asdict(item) for item in panel.bins]}
                for name, panel in panels.items()
            },
        }
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        (out / "calibration.json").write_text(text + "\n", encoding="utf-8")
        titles = {"before": "as it is", "temperature": f"temperature {fitted.degrees:.3g}", "platt": "Platt"}
        picture = diagram({titles[name]: panel for name, panel in panels.items()})
        (out / "reliability.svg").write_text(picture, encoding="utf-8")


def _fit_metrics(fitted: Fitted, resamples: int) -> dict[str, Metric]:
    from ingot.kit.confidence.reliability import intervals

    documents = fitted.documents
    (heat,) = intervals(fitted.temperature, documents, resamples, lambda betas: 1 / betas.clip(1e-3))
    slope, offset = intervals(fitted.platt, documents, resamples)
    a, b = fitted.platt.values
    n = documents.count
    return {
        "temperature": Metric(fitted.degrees, "1", f"minimizes the nll of logits over it; {_FITTED}", n, heat),
        "platt_slope": Metric(a, "1", f"a of Platt's a·x + b; {_FITTED}", n, slope),
        "platt_offset": Metric(b, "1", f"b of Platt's a·x + b; {_FITTED}", n, offset),
        "documents_fitted": Metric(n, "documents", "held-out documents that the scalings were fitted on"),
        "tokens_fitted": Metric(len(documents.of), "tokens", "positions that the scalings were fitted on"),
    }


def _metrics(found: Measured, panels: Mapping[str, Reliability], resamples: int) -> dict[str, Metric]:
    from ingot.kit.bootstrap import percentiles, ratio_interval

    count, total = found.documents.count, len(found.documents.of)
    tokens = found.documents.sums(found.before.nll * 0 + 1)[:, 0]

    def mean(values: Any, unit: str, how: str) -> Metric:
        ends = ratio_interval(found.documents.sums(values)[:, 0].tolist(), tokens.tolist(), resamples)
        return Metric(float(values.mean()), unit, f"{how}; {_BOOTSTRAP}", total, ends)

    what = "expected calibration error of the likeliest token's probability"
    before = panels["before"]
    metrics = {
        "documents_measured": Metric(count, "documents", "held-out documents that all this was measured on"),
        "tokens_measured": Metric(total, "tokens", "positions that all this was measured on"),
        "accuracy": mean(found.before.right.astype(float), "1", "share of positions whose likeliest token is right"),
        "nll_before": mean(found.before.nll, "nats/token", "mean negative log-likelihood as it is"),
        "nll_temperature": mean(found.after.nll, "nats/token", "mean negative log-likelihood at the temperature"),
    }
    for name, panel in panels.items():
        metrics[f"ece_{name}"] = Metric(panel.ece, "1", f"{what}; {_BOOTSTRAP}", total, percentiles(panel.resampled))
        if panel is not before:
            change = percentiles(panel.resampled - before.resampled)
            how = f"ece_{name} less ece_before, paired by document; below 0 it is better; {_BOOTSTRAP}"
            metrics[f"ece_{name}_change"] = Metric(panel.ece - before.ece, "1", how, total, change)
    return metrics
