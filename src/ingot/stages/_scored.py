"""What ``evaluate`` finds out by scoring: a candidate alone, against a reference, or by its own logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ingot.core.stage import Given, Metric, Progress
from ingot.errors import RefusedInput

if TYPE_CHECKING:
    from ingot.kit.backends import Scorable
    from ingot.kit.scoring.run import Document, Reference, Scores
    from ingot.kit.scoring.stored import Stored
    from ingot.kit.scoring.units import Unit
    from ingot.stages.evaluate import Settings


@dataclass(frozen=True)
class Scored:
    """Metrics, why others are missing, the documents or windows, the digest of the reference, some tokens."""

    metrics: Mapping[str, Metric]
    missing: Mapping[str, str]
    documents: list[Document]
    reference: str | None
    prompt: list[int]


class Scorer:
    """Scores one candidate by the settings of an evaluation."""

    def __init__(self, settings: Settings, given: Given, progress: Progress) -> None:
        self._settings, self._given, self._progress = settings, given, progress

    def itself(self) -> Scored:
        """A reference by its own logits: nothing is run."""
        stored = self._stored("logits")
        if stored.facts["reference"] != self._given.digests["candidate"][0]:
            raise _foreign([f"model: {stored.facts['reference'][:12]}"])
        return self._found(stored.alone(self._progress), stored.units, None)

    def candidate(self, backend: Scorable) -> Scored:
        """A candidate: against the reference where there is one."""
        from ingot.kit.scoring import match, run, units

        reference, against = self._reference()
        differs = ""
        chosen: Sequence[Unit]
        if against is None:
            chosen = self._settings.chosen(backend, self._given)
        else:
            chosen, differs = self._matched(backend, against)
            if differs and self._settings.other_tokenizer == "refuse":
                raise match.refuse(differs)
        units.check_context(backend, (unit.example for unit in chosen))
        self._progress.phase("score")
        scores = run.score(backend, chosen, None if differs else against, self._progress)
        if differs and against is not None and self._settings.windows is None:
            run.beside(scores, against.alone(self._progress))
        return self._found(scores, chosen, reference)

    def _found(self, scores: Scores, chosen: Sequence[Unit], reference: str | None) -> Scored:
        from ingot.kit.scoring.quality import Quality, missing

        quality = Quality(scores, self._settings.unit, self._settings.resamples)
        metrics = quality.alone()
        if scores.token_kl:
            metrics |= quality.against()
        if reference is not None:
            metrics |= quality.bits_difference()
        gone = missing(metrics, self._settings.unit, against=reference is not None)
        tokens = [token for unit in chosen for token in unit.example.ids][: self._settings.prompt_tokens]
        return Scored(metrics, gone, scores.documents, reference, tokens)

    def _reference(self) -> tuple[str | None, Reference | None]:
        """The digest of the reference, and what it says."""
        from ingot.kit.scoring import run, units

        folder = self._given.maybe("reference")
        if folder is None:
            return None, None
        if (folder / "logits.json").is_file():
            stored = self._stored("reference")
            return stored.facts["reference"], stored
        settings = self._settings
        backend = settings.load(folder, self._given, self._progress, settings.longest)
        chosen = settings.chosen(backend, self._given)
        units.check_context(backend, (unit.example for unit in chosen))
        return self._given.digests["reference"][0], run.Live(backend, chosen)

    def _matched(self, backend: Scorable, against: Reference) -> tuple[list[Unit], str]:
        from ingot.kit.chat import read_rows
        from ingot.kit.scoring import match

        rows, plan = list(read_rows(self._given.one("data"), "eval")), self._settings.plan()
        if plan is not None:
            return match.windows(backend, against, rows, plan)
        return match.documents(backend, against, rows, self._settings.max_length)

    def _stored(self, role: str) -> Stored:
        from ingot.kit.scoring.stored import Stored

        stored = Stored(self._given.one(role))
        wanted = {"data": self._given.digests["data"][0], "settings": self._settings.scoring()}
        facts = [
            f"{name}: {stored.facts[name]!r} instead of {value!r}"
            for name, value in wanted.items()
            if stored.facts[name] != value
        ]
        if facts:
            raise _foreign(facts)
        return stored


def _foreign(facts: list[str]) -> RefusedInput:
    return RefusedInput(
        "E-EVAL-LOGITS",
        "the logits were not made of this text, with these settings and by this model",
        facts=facts,
        hint="build them from the same data, with the same documents, max_length, windows, dtype and device",
    )
