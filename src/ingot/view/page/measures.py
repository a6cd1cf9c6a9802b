"""How measured numbers are named and written on a page, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ingot.core.quantities import size_text

Json = Mapping[str, Any]
Better = Literal["low", "high", ""]
DASH = "–"


@dataclass(frozen=True)
class Measure:
    """A metric as it is shown: ``form`` is how its value is written, ``better`` which end one wants."""

    title: str
    better: Better = ""
    form: Literal["figure", "share", "signed", "bytes", "count", "speed", "seconds"] = "figure"


_KNOWN: Mapping[str, Measure] = {
    "bytes": Measure("size", "low", "bytes"),
    "parameters": Measure("parameters", "", "count"),
    "bits_per_weight": Measure("bits per weight", "low"),
    "sparsity": Measure("sparsity", "", "share"),
    "perplexity": Measure("perplexity", "low"),
    "nll": Measure("nll, nats/token", "low"),
    "bits_per_byte": Measure("bits per byte", "low"),
    "nll_difference": Measure("Δ nats/token", "low", "signed"),
    "bits_per_byte_difference": Measure("Δ bits per byte", "low", "signed"),
    "kl_divergence": Measure("KL, nats/token", "low"),
    "kl_p99": Measure("KL p99, nats", "low"),
    "top1_agreement": Measure("same top-1", "high", "share"),
    "calibration_error": Measure("calibration error", "low"),
    "pattern_accuracy": Measure("right answers", "high", "share"),
    "prompt_tokens_per_second": Measure("prompt, tokens/s", "high", "speed"),
    "generation_tokens_per_second": Measure("generation, tokens/s", "high", "speed"),
    "energy_per_token": Measure("energy, J/token", "low"),
    "first_token_s": Measure("first token", "low", "seconds"),
    "token_p50_s": Measure("token p50", "low", "seconds"),
    "token_p95_s": Measure("token p95", "low", "seconds"),
    "token_p99_s": Measure("token p99", "low", "seconds"),
    "documents": Measure("documents", "", "count"),
    "windows": Measure("windows", "", "count"),
    "tokens": Measure("tokens", "", "count"),
    "items": Measure("items", "", "count"),
    "position_bias": Measure("position bias", "low", "signed"),
    "loss_rate": Measure("losses", "low", "share"),
    "tie_rate": Measure("ties", "", "share"),
    "win_rate": Measure("wins", "high", "share"),
    "rouge_l": Measure("ROUGE-L", "high"),
    "bleu": Measure("BLEU", "high"),
}
#: Shares of right answers, by the end of their name.
_SHARES = (
    "acc", "acc_norm", "accuracy", "exact_match", "pass_at_1", "f1", "f1_macro", "f1_lax", "f1_strict", "precision",
    "recall", "irrelevance", "json_valid", "hit_rate", "agreement", "answers_ended", "share", "rate",
)  # fmt: skip
#: In the order of the columns of a page.
MAIN = (
    "bytes", "bits_per_weight", "perplexity", "bits_per_byte", "pattern_accuracy", "exact_match", "nll_difference",
    "bits_per_byte_difference", "kl_divergence", "kl_p99", "top1_agreement", "calibration_error", "sparsity",
    "prompt_tokens_per_second", "generation_tokens_per_second", "energy_per_token",
)  # fmt: skip
#: What counts what was measured rather than how good it is: no column, but in the entry.
COUNTS = ("tokens", "documents", "windows", "parameters", "nll", "answers_ended", "bytes_scored")


def measure(name: str) -> Measure:
    """How a metric is shown; of a task's (``TASK.METRIC``) the metric decides."""
    task, _, bare = name.rpartition(".")
    known = _KNOWN.get(bare)
    if known is None:
        share = any(bare == end or bare.endswith(f"_{end}") for end in _SHARES)
        known = Measure(bare.replace("_", " "), "high" if share else "", "share" if share else "figure")
    return Measure(f"{task}: {known.title}", known.better, known.form) if task else known


def written(name: str, value: float) -> str:
    """A value as people read it, with its unit where the title has none."""
    form = measure(name).form
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    short = {
        "share": lambda: f"{100 * value:.1f} %",
        "bytes": lambda: size_text(value),
        "count": lambda: f"{value:,.0f}",
        "speed": lambda: f"{value:,.0f}" if value >= 100 else f"{value:.3g}",
        "seconds": lambda: f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s",
    }
    return short[form]() if form in short else figure(value, signed=form == "signed")


def figure(value: float, *, signed: bool = False) -> str:
    """Four significant digits, without an exponent where that is short."""
    sign = "+" if signed and value > 0 else ""
    if value == int(value) and abs(value) < 1e15:
        return f"{sign}{int(value):,}".replace("-", "−")
    if abs(value) >= 1000:
        return f"{sign}{value:,.1f}".replace("-", "−")
    digits = f"{value:.4g}"
    if "e" in digits:
        base, exponent = digits.split("e")
        digits = f"{float(base):.3g}e{int(exponent)}"
    return f"{sign}{digits}".replace("-", "−")


def interval(name: str, metric: Json) -> str:
    """The 95 % interval of a metric, ``[0.031, 0.042]``; nothing where there is none."""
    ends = metric.get("interval")
    return f"[{', '.join(written(name, end) for end in ends)}]" if ends else ""


def chart_value(name: str, value: float) -> float:
    """A value in the unit of its axis: per cent, megabytes, milliseconds."""
    scale = {"share": 100.0, "bytes": 1e-6, "seconds": 1e3}.get(measure(name).form, 1.0)
    return value * scale


def axis_title(name: str) -> str:
    """The title of an axis, with its unit."""
    shown = measure(name)
    return shown.title + {"share": ", %", "bytes": ", MB", "seconds": ", ms"}.get(shown.form, "")
