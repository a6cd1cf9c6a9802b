"""Operations on states: they outlive a call, and whoever calls holds them."""

from __future__ import annotations

from ingot.kit.mil.ops.table import Call, moves
from ingot.kit.mil.types import Array


@moves("read_state", called=True)
def read_state(call: Call, input: str) -> Array:  # noqa: A002  # MIL's own name
    """What a state holds now."""
    return call.states[input]


@moves("write_state", called=True)
def write_state(call: Call, input: str, data: Array) -> tuple[Array, ...]:  # noqa: A002  # MIL's own name
    """Another content of a state."""
    _write(call, input, data)
    return ()


@moves("coreml_update_state", called=True)
def coreml_update_state(call: Call, state: str, value: Array) -> Array:
    """Another content of a state, which is the result, too: what coremltools splits into a write and a read."""
    _write(call, state, value)
    return value


def _write(call: Call, name: str, data: Array) -> None:
    if call.states[name].shape != data.shape:
        raise ValueError(f"a value of {data.shape} for the state {name} of {call.states[name].shape}")
    call.states[name] = data
