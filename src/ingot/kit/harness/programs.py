"""Programs that a model writes, as a metric of the harness: ``pass_at_k``, run in the sandbox.

The harness's own tasks of this form (HumanEval, MBPP) take ``code_eval`` from the hub, which runs programs with the
rights of whoever calls it. This metric takes its place in a task's YAML::

    metric_list:
      - {metric: pass_at_k, k: [1], aggregation: mean, higher_is_better: true}

A program is what the model answered (after the task's filters) and below it the item's target, its tests. The filter
``with_prompt`` puts a field of the item before each answer, as HumanEval wants it::

    filter_list:
      - {name: program, filter: [{function: with_prompt, field: prompt}]}

Of ``n`` answers of which ``c`` pass, pass@k is 1 - C(n - c, k) / C(n, k) (https://arxiv.org/abs/2107.03374).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from lm_eval.api.filter import Filter
from lm_eval.api.registry import register_filter, register_metric

from ingot.errors import RefusedInput, StageFailed
from ingot.kit.harness.choosing import PASS_AT_K
from ingot.kit.sandbox.run import Sandbox


class Programs:
    """Runs the programs of a run and counts how they ended."""

    def __init__(self, sandbox: Sandbox) -> None:
        """StageFailed (E-SANDBOX) where programs cannot be bounded here."""
        assert sandbox.how, "it was tried"
        self._sandbox = sandbox
        self.ends: Counter[str] = Counter()

    @property
    def how(self) -> Mapping[str, str]:
        """What bounds programs here. StageFailed: E-SANDBOX."""
        return self._sandbox.how

    def passes(self, program: str) -> bool:
        """Whether it ran to its end. StageFailed: E-SANDBOX."""
        verdict = self._sandbox.run(program)
        self.ends[verdict.why] += 1
        return verdict.passed


_PROGRAMS: ContextVar[Programs] = ContextVar("programs")


@contextmanager
def running(programs: Programs | None) -> Iterator[None]:
    """While it lasts, ``pass_at_k`` runs programs here; with None it refuses to."""
    token = None if programs is None else _PROGRAMS.set(programs)
    try:
        yield
    finally:
        if token is not None:
            _PROGRAMS.reset(token)


@register_metric(metric=PASS_AT_K, higher_is_better=True, output_type="generate_until", aggregation="mean")  # type: ignore[untyped-decorator]
def pass_at_k(references: Sequence[str], predictions: Sequence[Any], k: int | Sequence[int] = (1,)) -> dict[str, float]:
    """``{"pass@K": share}`` of one item."""
    programs = _PROGRAMS.get(None)
    if programs is None:
        raise StageFailed("E-HARNESS-CODE", "a program of a model was to be run without a sandbox")
    (tests,), (answers,) = references, predictions
    answers = [answers] if isinstance(answers, str) else list(answers)
    wanted = [k] if isinstance(k, int) else list(k)
    if not wanted or min(wanted) < 1 or max(wanted) > len(answers):
        raise RefusedInput(
            "E-HARNESS-TASK",
            f"pass@{max(wanted, default=0)} needs as many answers to an item, and the task asks for {len(answers)}",
            hint="set 'repeats' of the task to the largest k, and let no filter take the first answer alone",
        )
    right = sum(programs.passes(f"{answer}\n{tests}") for answer in answers)
    return {f"pass@{size}": _estimate(len(answers), right, size) for size in wanted}


def _estimate(answers: int, right: int, k: int) -> float:
    return 1.0 - math.comb(answers - right, k) / math.comb(answers, k)


@register_filter("with_prompt")
class WithPrompt(Filter):  # type: ignore[misc]
    """Puts a field of the item before each answer: a model completes a function whose head it was given."""

    def __init__(self, field: str = "prompt", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._field = field

    def apply(self, resps: Sequence[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
        """All answers of all items."""
        return [[f"{doc[self._field]}{answer}" for answer in answers] for answers, doc in zip(resps, docs, strict=True)]
