"""Known reasons why the system may take an operation off the Neural Engine, each with who says so.

Core ML decides when it loads a package, by a cost model that nobody outside has seen. These are reports, not
measurements: what is listed *may* run on the GPU or the processor, what is not listed may as well. On a Mac the
system's own plan is read instead (``kit.coreml.mac``). No share of operations is stated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ingot.kit.coreml.check import Facts
from ingot.kit.coreml.convert import Model

_TYPED = "https://apple.github.io/coremltools/docs-guides/source/typed-execution.html"
_RANGES = "https://developer.apple.com/forums/thread/724930"
_LAYERS = "https://github.com/hollance/neural-engine/blob/master/docs/unsupported-layers.md"
_RANK = "https://machinelearning.apple.com/research/neural-engine-transformers"
_STATES = "https://github.com/apple/coremltools/issues/2631"
_FLEXIBLE = "https://github.com/apple/coremltools/issues/2600"
_RUNTIME = "https://github.com/apple/coreai-torch/issues/6"
_BLOCKS = "https://machinelearning.apple.com/research/core-ml-on-device-llama"
_STATE_SIZE = 32


@dataclass(frozen=True)
class Reason:
    """What the package has, why it may leave the Neural Engine, and who reported it."""

    what: str
    why: str
    source: str


@dataclass(frozen=True)
class _Rule:
    """A reason and when it concerns a package."""

    holds: Callable[[Model, Facts], bool]
    reason: Reason


def _has(*kinds: str) -> Callable[[Model, Facts], bool]:
    return lambda _model, facts: any(kind in facts.kinds for kind in kinds)


_RULES: Sequence[_Rule] = (
    _Rule(
        lambda model, _: model.settings.precision == "float32",
        Reason(
            "compute_precision: float32", "the Neural Engine computes in float16; float32 runs on GPU and CPU", _TYPED
        ),
    ),
    _Rule(
        lambda model, _: not model.settings.lengths.fixed and not model.settings.lengths.listed,
        Reason("a range of lengths", "only the default shape runs on the Neural Engine, others on GPU or CPU", _RANGES),
    ),
    _Rule(_has("gather"), Reason("gather (embedding)", "reported not to run on the Neural Engine", _LAYERS)),
    _Rule(
        _has("linear", "matmul"),
        Reason(
            "linear and matmul on (1, n, features)",
            "the Neural Engine is laid out for four axes with channels first; other layouts cost copies",
            _RANK,
        ),
    ),
    _Rule(
        lambda model, _: bool(model.settings.context) and not model.settings.lengths.fixed,
        Reason("states with several lengths", "all operations were seen to fall back to the CPU", _FLEXIBLE),
    ),
    _Rule(
        lambda model, _: bool(model.settings.context) and bool(model.shape.head_dim % _STATE_SIZE),
        Reason(
            f"a state whose last axis is no multiple of {_STATE_SIZE}",
            "such a state was seen to fail on the Neural Engine",
            _STATES,
        ),
    ),
    _Rule(
        _has("slice_update"),
        Reason(
            "slice_update at a position known at run time",
            "its compiler was seen to crash on one (in Core AI, which shares it)",
            _RUNTIME,
        ),
    ),
    _Rule(
        lambda model, _: model.settings.weights == "int4",
        Reason("int4 by block", "Apple shows this form for the GPU", _BLOCKS),
    ),
)


def reasons(model: Model, facts: Facts) -> list[str]:
    """Those that concern a package, as the receipt keeps them: what, why, and in brackets who says so."""
    found = [rule.reason for rule in _RULES if rule.holds(model, facts)]
    return [f"{each.what}: {each.why} ({each.source})" for each in found]
