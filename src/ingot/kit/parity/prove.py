"""The proof that an export, as it was saved, computes what its source computes; or the layer at which it does not.

    texts = golden(tokenizer, given.maybe("data"), Choice(parity.texts, parity.max_length, shapes))
    reference = record(lambda: SourceModel(model, threads=given.threads), texts, given.scratch / "parity")
    … convert, save, open what was saved as something ``Traced`` …
    proof = prove({"prefill": opened}, texts, reference, parity.limits("float16"))
    return Done(metrics | proof.metrics, notes={"parity": {"parity": proof.notes}})

An export whose weights are quantized is compared twice (see ``kit.parity.limits``): with the source by the limits of
the stored type, and with the weights it stores, where its kind can give them, by those of the type that computes:
``prove(…, name="execution")``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from ingot.core.stage import Metric
from ingot.errors import StageFailed
from ingot.kit.parity.compare import (
    Positions,
    compare_logits,
    first_bad,
    lowest_cosine,
    place_of,
    relative_difference,
    stops,
)
from ingot.kit.parity.golden import Golden
from ingot.kit.parity.limits import Limits
from ingot.kit.parity.reference import Reference
from ingot.kit.parity.trace import Array, Traced

#: A text of up to so many tokens is soon run once more, to see its layers.
_SHORT = 64
_AGAINST = {
    "parity": "the source in fp32",
    "execution": "the source's modules in fp32 with the weights that the export stores",
}
_HINTS = {
    "parity": "of weights in few bits, more bits lose less; limits are set under 'parity' in the spec",
    "execution": "the conversion or the runtime is at fault, not the number of bits",
}
_EXACT = (
    "no weight was rounded to few bits: the conversion or the runtime is at fault, or the model needs more precise "
    "numbers; limits are set under 'parity' in the spec"
)
#: What layers of a type of few bits may do otherwise, at the least (limits.py).
_FEW_BITS = 0.1
#: How a package is run that has one function: nobody gave it that name.
_ONLY = "main"


@dataclass(frozen=True)
class Proof:
    """What was measured, as metrics and as what the receipt keeps beside them."""

    metrics: dict[str, Metric]
    notes: dict[str, object]


@dataclass(frozen=True)
class Task:
    """What is compared, and how far apart it may be."""

    texts: Golden
    reference: Reference
    limits: Limits
    name: str


@dataclass
class _Found:
    """All positions of all texts of one way to run the export."""

    texts: list[Positions] = field(default_factory=list)

    def cosine(self) -> float:
        return float(min(text.cosine.min() for text in self.texts))

    def cosine_mean(self) -> float:
        return float(np.concatenate([text.cosine for text in self.texts]).mean())

    def difference(self) -> float:
        return float(max(text.difference.max() for text in self.texts))

    def agrees(self) -> int:
        return int(sum(text.agrees.sum() for text in self.texts))

    def kl(self) -> float:
        return float(np.concatenate([text.kl for text in self.texts]).mean())

    def worst(self) -> int:
        return min(range(len(self.texts)), key=lambda index: float(self.texts[index].cosine.min()))


def prove(
    runs: Mapping[str, Traced], texts: Golden, reference: Reference, limits: Limits, *, name: str = "parity"
) -> Proof:
    """Run an export in every way it can be run (``prefill``, ``decode``) on all texts and compare with the reference.

    StageFailed (E-PARITY) when a figure is beyond its limit, with the place where it began. Then runs that have a
    ``close`` are closed, so that the source has their memory.
    """
    task = Task(texts, reference, limits, name)
    found = {way: _run(way, run, task, runs) for way, run in runs.items()}
    broken = {way: words for way, each in found.items() if (words := _broken(each, task))}
    if broken:
        way, words = next(iter(broken.items()))
        began = _began(runs, way, found[way].worst(), task)
        sound = [f"{other} is within all limits" for other in found if other not in broken]
        raise _failed(task, way, words, [*began, *sound])
    layers = {way: _layers(run, task) for way, run in runs.items()}
    return Proof(_metrics(list(found.values()), task), _notes(found, layers, task))


def _run(way: str, run: Traced, task: Task, runs: Mapping[str, Traced]) -> _Found:
    found = _Found()
    for index, (ids, wanted) in enumerate(zip(task.texts.ids, task.reference.traces, strict=True)):
        logits = run.trace(ids, probes=False).logits
        if logits.shape != wanted.logits.shape:
            what = f"logits of shape {logits.shape}, the source {wanted.logits.shape}"
            raise _failed(task, way, [f"on {len(ids)} tokens the export gives {what}"], [])
        if bad := int((~np.isfinite(logits)).any(-1).sum()):
            what = f"the export's logits are not finite numbers at {bad} of {len(ids)} positions of a text"
            raise _failed(task, way, [what], _began(runs, way, index, task))
        found.texts.append(compare_logits(logits, wanted.logits, task.limits.tie))
    return found


def _broken(found: _Found, task: Task) -> list[str]:
    """What is beyond its limit, one sentence each."""
    limits, tokens = task.limits, task.texts.tokens
    broken = []
    if limits.cosine is not None and not found.cosine() >= limits.cosine:
        broken.append(f"cosine similarity of the logits {found.cosine():.6f}, at least {limits.cosine:g} is needed")
    if not found.cosine_mean() >= limits.cosine_mean:
        needed = f"at least {limits.cosine_mean:g} is needed"
        broken.append(f"mean cosine similarity of the logits {found.cosine_mean():.6f}, {needed}")
    if limits.max_difference is not None and not found.difference() <= limits.max_difference:
        broken.append(f"a logit differs by {found.difference():.4g}, at most {limits.max_difference:g} is allowed")
    # of few positions one is a large share, and one near tie is no fault
    if not found.agrees() >= min(limits.top1 * tokens, tokens - 1):
        share = f"{found.agrees()} of {tokens} positions"
        broken.append(f"the likeliest token is the same at {share}, a share of {limits.top1:g} is needed")
    if not found.kl() <= limits.kl:
        broken.append(f"KL divergence {found.kl():.4g} nats a token, at most {limits.kl:g} is allowed")
    return broken


def _failed(task: Task, way: str, broken: Sequence[str], began: Sequence[str]) -> StageFailed:
    wanted = "source computes" if task.name == "parity" else "own weights say"
    return StageFailed(
        "E-PARITY",
        f"the export does not compute what its {wanted}{'' if way == _ONLY else f' ({way})'}",
        facts=[*broken, *began, f"against {_AGAINST[task.name]}, {len(task.texts.ids)} {task.texts.origin}"],
        hint=_EXACT if task.name == "parity" and task.limits.layer < _FEW_BITS else _HINTS[task.name],
    )


def _began(runs: Mapping[str, Traced], way: str, index: int, task: Task) -> list[str]:
    """Sentences that say where a text went wrong."""
    ids = task.texts.ids[index]
    trace = runs[way].trace(ids, probes=True)
    for run in runs.values():
        getattr(run, "close", lambda: None)()
    wanted = task.reference.traces[index]
    if not trace.hidden:
        return ["this way of running the export does not show its layers"]
    if len(trace.hidden) != len(wanted.hidden):
        return [f"the export shows {len(trace.hidden) - 1} layers, the source has {len(wanted.hidden) - 1}"]
    bad = next((at for at, value in enumerate(stops(trace)) if not np.isfinite(value).all()), None)
    count = len(trace.hidden) + 1
    if bad is not None:
        return [f"it began in {place_of(bad, count)}: what it gives is not finite from there on"]
    with task.reference.reopen() as source:
        expected = stops(source.given(ids, trace))
    own = [relative_difference(found, right) for found, right in zip(stops(trace), expected, strict=True)]
    return _where(own, stops(trace), stops(wanted), task.limits.layer)


def _where(own: Sequence[float], found: Sequence[Array], wanted: Sequence[Array], limit: float) -> list[str]:
    """The place where it began: ``own`` has each stop's difference from what the source makes of the same input."""
    count = len(own)
    first = first_bad(own, limit)
    if first is None:
        worst = max(range(count), key=own.__getitem__)
        most = f"the largest in {place_of(worst, count)} ({own[worst]:.2%})"
        return [f"it began in no single layer: differences add up, {most}"]
    told = "given the same input" if first else "for the same token ids"
    explained = f"up to {limit:.2%} is explained by the precision"
    after = f"cosine similarity {lowest_cosine(found[first], wanted[first]):.4f} from there on"
    lines = [
        f"it began in {place_of(first, count)}: {told} it gives something {own[first]:.2%} off ({explained}), {after}"
    ]
    others = [place_of(at, count) for at, value in enumerate(own) if at > first and not value <= limit]
    return [*lines, f"so do {len(others)} later places: {', '.join(others[:8])}"] if others else lines


def _layers(run: Traced, task: Task) -> dict[str, list[float]]:
    """Of one text, the longest of those that are soon run again: after the embedding, each layer, the output layer."""
    lengths = [len(ids) for ids in task.texts.ids]
    index = lengths.index(max((length for length in lengths if length <= _SHORT), default=min(lengths)))
    found, wanted = run.trace(task.texts.ids[index], probes=True), task.reference.traces[index]
    if not found.hidden:
        return {}
    pairs = list(zip(stops(found), stops(wanted), strict=True))
    return {
        "cosine": [_short(lowest_cosine(one, two)) for one, two in pairs],
        "relative_difference": [_short(relative_difference(one, two)) for one, two in pairs],
    }


def _short(value: float) -> float:
    """Six digits: a receipt is one line of the log, and models have many layers."""
    return float(f"{value:.6g}")


def _metrics(found: Sequence[_Found], task: Task) -> dict[str, Metric]:
    against, tokens = _AGAINST[task.name], task.texts.tokens
    on = f"{task.texts.origin}, against {against}"
    agrees = min(each.agrees() for each in found)
    metrics = {
        "cosine": Metric(
            min(each.cosine() for each in found), "1", f"lowest cosine similarity of a position's logits; {on}", tokens
        ),
        "max_difference": Metric(
            max(each.difference() for each in found), "1", f"largest absolute difference of a logit; {on}", tokens
        ),
        "top1_agreement": Metric(
            agrees / tokens, "1", f"share of positions whose likeliest token is one of the source's; {on}", tokens
        ),
        "kl": Metric(max(each.kl() for each in found), "nats/token", f"mean KL(source‖export); {on}", tokens),
    }
    if task.name == "parity":
        texts = len(task.texts.ids)
        metrics["tokens"] = Metric(tokens, "tokens", f"positions of golden texts compared; {on}")
        metrics["texts"] = Metric(texts, "1", f"golden texts run through both; {on}")
    return {f"{task.name}_{name}": metric for name, metric in metrics.items()}


def _notes(found: Mapping[str, _Found], layers: Mapping[str, dict[str, list[float]]], task: Task) -> dict[str, object]:
    """What the receipt keeps: limits, the texts' digest, figures text by text and layer by layer."""
    return {
        "against": _AGAINST[task.name],
        "limits": asdict(task.limits),
        "golden": {"digest": task.texts.digest, "origin": task.texts.origin},
        "runs": {
            way: {"texts": [_of_text(text) for text in each.texts], "layers": layers[way]}
            for way, each in found.items()
        },
    }


def _of_text(text: Positions) -> dict[str, float | int]:
    return {
        "tokens": len(text.kl),
        "cosine": _short(text.cosine.min()),
        "cosine_mean": _short(text.cosine.mean()),
        "max_difference": _short(text.difference.max()),
        "top1_agreement": _short(text.agrees.mean()),
        "kl": _short(text.kl.mean()),
    }
