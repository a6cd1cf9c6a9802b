"""What a training gave back: its curves and what was measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ingot.core.stage import Metric
from ingot.kit import hf
from ingot.kit.train import curves, measured
from ingot.kit.train.layout import Layout
from ingot.kit.train.loop import Step


@dataclass(frozen=True)
class Scoring:
    """A scoring of the held-out items after ``step`` steps: the summed losses of each."""

    step: int
    sums: tuple[float, ...]


@dataclass
class Outcome:
    """What a training gave; the model of the task holds the weights to keep."""

    unit: str
    layout: Layout
    held_scored: tuple[int, ...]
    trainable: int
    history: list[Step] = field(default_factory=list)
    evals: list[Scoring] = field(default_factory=list)
    #: The step whose weights are the result.
    kept: int = 0
    stopped_early: bool = False
    #: Share of the tokens read in training that only filled rows up; None where items have rows of their own.
    padding: float | None = None
    #: The most memory that torch held on a GPU, in bytes; None on a CPU.
    device_bytes: int | None = None
    #: Seconds of the steps in the history, whichever attempt took them.
    seconds: float = 0.0
    #: The step of the checkpoint from which the last attempt went on.
    resumed_from: int | None = None

    def held_loss(self, scoring: Scoring) -> float:
        """The mean loss of a scoring by scored part."""
        return sum(scoring.sums) / sum(self.held_scored)

    def after(self) -> Scoring:
        """The scoring of the weights that are the result. IndexError when nothing was held out."""
        return [scoring for scoring in self.evals if scoring.step == self.kept][-1]

    def write(self, out: Path) -> None:
        """Write ``training.json`` and ``loss.svg``: the curves and a picture of them, no time in them."""
        hf.write_json(out / "training.json", measured.curves(self))
        train = [(float(step.step), step.loss) for step in self.history]
        held = [(float(scoring.step), self.held_loss(scoring)) for scoring in self.evals]
        drawn = curves.picture(curves.Curves(train, held, self.unit, self.kept if held else None))
        (out / "loss.svg").write_text(drawn, encoding="utf-8")

    def metrics(self) -> dict[str, Metric]:
        """What was measured; held-out figures only where items were held out."""
        return measured.metrics(self)
