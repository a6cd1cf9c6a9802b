"""A language model as a program: token ids in, logits out, whatever shapes and functions the package has.

The functions are those of ingot's exports: ``main`` alone, or ``prefill`` and ``decode`` with a cache in states. Inputs
are ``input_ids`` (1, n) and, with a cache, ``position`` (how many tokens precede). A text shorter than every declared
length is padded at its end, which in a causal model changes no logit before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ingot.errors import RefusedInput
from ingot.kit.mil.interface import Declared, Interface
from ingot.kit.mil.probes import hidden_states
from ingot.kit.mil.run import Runner, Wanted
from ingot.kit.mil.types import Array
from ingot.kit.parity.trace import Trace

INPUT, POSITION, OUTPUT = "input_ids", "position", "logits"
PREFILL, DECODE = "prefill", "decode"


class Runnable(Protocol):
    """What runs a package's functions: the interpreter, or Core ML itself."""

    @property
    def functions(self) -> Mapping[str, Interface]:
        """Their interfaces by name."""
        ...

    @property
    def default(self) -> str:
        """The one that runs when none is named."""
        ...

    @property
    def runners(self) -> Mapping[str, Runner]:
        """Their programs by name."""
        ...

    def state(self, function: str | None = None) -> Any:
        """A state that nothing was written to."""
        ...

    def compute(self, inputs: Mapping[str, Any], function: str, state: Any, wanted: Wanted) -> dict[str, Array]:
        """The outputs, and what else is wanted, fp16 as fp32."""
        ...


class Language:
    """A package that is run on texts. ``longest`` is how many tokens one call takes; None: any number."""

    def __init__(self, model: Runnable) -> None:
        """RefusedInput (E-MIL-INPUT) for a package with other inputs and outputs than a language model's."""
        self.model = model
        self._prompt = PREFILL if PREFILL in model.functions else model.default
        self._decode = DECODE if DECODE in model.functions else None
        for name in filter(None, (self._prompt, self._decode)):
            _check(name, model.functions[name])
        self._lengths = self._declared(self._prompt)
        self.longest = self._lengths.largest(1)
        self._probes: tuple[str, ...] | None = None
        self._state: Any = None
        self._read: list[int] = []

    @property
    def cached(self) -> bool:
        """Whether a token is appended without reading again what precedes it."""
        return self._decode is not None

    @property
    def read(self) -> int:
        """How many tokens the text has that ``prefill`` and ``step`` read."""
        return len(self._read)

    @property
    def names(self) -> tuple[set[str], set[str]]:
        """Inputs and outputs of all functions, by name."""
        functions = self.model.functions.values()
        return {name for each in functions for name in each.inputs}, {
            name for each in functions for name in each.outputs
        }

    def trace(self, ids: Sequence[int], *, probes: bool) -> Trace:
        """Logits of every position of a text, and hidden states where asked for (``kit.parity.trace.Traced``)."""
        names = self._hidden() if probes else ()
        found = self._call(ids, Wanted(frozenset(names), slice(0, len(ids))), self.model.state(self._prompt))
        hidden = tuple(np.ascontiguousarray(found[name][0, : len(ids)], np.float32) for name in names)
        return Trace(_rows(found), hidden)

    def logits(self, ids: Sequence[int], rows: range) -> Array:
        """Logits (rows, vocabulary) of consecutive positions of a text that nothing precedes."""
        if self.cached and self.longest is not None and len(ids) > self.longest:
            return self._stepwise(ids)[rows.start : rows.stop]
        wanted = Wanted(rows=slice(rows.start, rows.stop))
        return _rows(self._call(ids, wanted, self.model.state(self._prompt)))

    def prefill(self, ids: Sequence[int]) -> Array:
        """Forget everything and read a prompt; the logits of the next token, (vocabulary,)."""
        self._state, self._read = self.model.state(self._prompt), list(ids)
        head = list(ids[: self.longest]) if self.cached else list(ids)
        found = self._call(head, Wanted(rows=slice(len(head) - 1, len(head))), self._state)
        row: Array = _rows(found)[0]
        for at in range(len(head), len(ids)):
            row = self._append(ids[at], at)
        return row

    def step(self, token: int) -> Array:
        """Append a token; the logits of the next one. Without a cache the whole text is read again."""
        self._read.append(token)
        if self.cached:
            return self._append(token, len(self._read) - 1)
        row: Array = self.logits(self._read, range(len(self._read) - 1, len(self._read)))[0]
        return row

    def _stepwise(self, ids: Sequence[int]) -> Array:
        """All logits of a text longer than a call takes: its beginning in one go, what follows token by token."""
        self._state, self._read = self.model.state(self._prompt), list(ids)
        head = ids[: self.longest]
        rows = [_rows(self._call(head, Wanted(rows=slice(0, len(head))), self._state))]
        rows += [self._append(ids[at], at)[np.newaxis] for at in range(len(head), len(ids))]
        return np.concatenate(rows)

    def _append(self, token: int, position: int) -> Array:
        assert self._decode is not None
        inputs = self._inputs(self._decode, np.array([[token]], np.int32), position)
        row: Array = _rows(self.model.compute(inputs, self._decode, self._state, Wanted()))[0]
        return row

    def _call(self, ids: Sequence[int], wanted: Wanted, state: Any) -> dict[str, Array]:
        length = self._lengths.fitting(1, len(ids))
        if length is None or not ids:
            raise RefusedInput(
                "E-MIL-LENGTH",
                f"a text of {len(ids)} tokens does not fit into the package",
                facts=[f"shapes that {self._prompt} takes: {self._lengths.describe()}"],
            )
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(ids)] = ids
        return self.model.compute(self._inputs(self._prompt, padded, 0), self._prompt, state, wanted)

    def _inputs(self, function: str, ids: Array, position: int) -> dict[str, Array]:
        inputs = {INPUT: ids}
        declared = self.model.functions[function].inputs.get(POSITION)
        if declared is not None:
            inputs[POSITION] = np.full(declared.shapes[0], position, np.int32)
        return inputs

    def _declared(self, function: str) -> Declared:
        return self.model.functions[function].inputs[INPUT]

    def _hidden(self) -> tuple[str, ...]:
        if self._probes is None:
            self._probes = hidden_states(self.model.runners[self._prompt].function, INPUT)
        return self._probes


def _rows(found: Mapping[str, Array]) -> Array:
    return np.ascontiguousarray(found[OUTPUT][0], np.float32)


def _check(name: str, interface: Interface) -> None:
    ids = interface.inputs.get(INPUT)
    strange = sorted(set(interface.inputs) - {INPUT, POSITION})
    if ids is None or ids.type.dtype.name != "int32" or len(ids.type.shape) != 2 or strange:  # (1, n)
        raise RefusedInput(
            "E-MIL-INPUT",
            f"function {name} is no language model of ingot's: it takes {', '.join(interface.inputs) or 'nothing'}",
        )
    if OUTPUT not in interface.outputs:
        raise RefusedInput("E-MIL-INPUT", f"function {name} gives no {OUTPUT}: {', '.join(interface.outputs)}")
