"""Core ML packages of ingot: by Core ML itself on a Mac, elsewhere by the reference interpreter.

The interpreter computes the same numbers to within rounding (decision 21), and how long it takes says nothing of Core
ML: speeds are measured on a Mac alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ingot.errors import RefusedInput
from ingot.kit.backends import Next, segments
from ingot.kit.backends.exported import Exported
from ingot.kit.contract import NAME, Contract, read_contract
from ingot.kit.mil import native
from ingot.kit.mil.count import parameters
from ingot.kit.mil.language import INPUT, OUTPUT, Language
from ingot.kit.mil.model import MilModel
from ingot.kit.mil.threads import set_threads
from ingot.kit.parity.trace import Trace

#: Why speeds are missing where a package was run by the interpreter.
NOT_TIMED = "the reference interpreter's speed says nothing of Core ML's, which runs on a Mac only"


class CoremlBackend(Exported):
    """A ``coreml`` artifact. What its contract says is compared with the package before anything runs."""

    container = "coreml"

    def __init__(self, folder: Path, *, threads: int) -> None:
        """RefusedInput: E-CONTRACT, E-EVAL-FORMAT, E-MIL-…; MissingTool without coremltools."""
        contract = _contract(folder)
        package = _package(folder)
        set_threads(threads)
        model = MilModel(package)
        self._language = Language(native.Native(package, model) if native.available() else model)
        self.runtime = "Core ML" if native.available() else "reference interpreter"
        self._check(contract)
        super().__init__(folder, contract)
        self.parameters = parameters(model.runners)
        self.bytes = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())

    def logits(self, ids: Sequence[int], first: int) -> Iterator[torch.Tensor]:
        """Logits that predict ``ids[first:]``; the text is read once, and of the last product only those rows."""
        first = max(first, 1)
        if first >= len(ids):
            return
        rows = torch.from_numpy(self._language.logits(ids[:-1], range(first - 1, len(ids) - 1)))
        for start, _, kept in segments(len(ids), first):
            if kept:
                yield rows[start + kept.start - first + 1 : start + kept.stop - first + 1]

    def prefill(self, ids: Sequence[int]) -> Next:
        """Forget everything and read a prompt; the logits of the next token."""
        self._refuse_long(len(ids))
        return self._language.prefill(ids)

    def step(self, token: int) -> Next:
        """Append one token; the logits of the next one. Without a cache the whole text is read again."""
        self._refuse_long(self._language.read + 1)
        return self._language.step(token)

    def trace(self, ids: Sequence[int], *, probes: bool) -> Trace:
        """See ``kit.parity.trace.Traced``: the whole text in one go."""
        return self._language.trace(ids, probes=probes)

    def _refuse_long(self, tokens: int) -> None:
        if tokens > self.contract.context:
            raise RefusedInput(
                "E-MIL-LENGTH", f"{tokens} tokens are more than the package's context of {self.contract.context}"
            )

    def _check(self, contract: Contract) -> None:
        """Refuse a package that is not what its contract says (E-CONTRACT)."""
        told = {port.name for port in contract.inputs}, {port.name for port in contract.outputs}
        found = self._language.names
        if told != found or contract.container != self.container or not {INPUT} <= told[0] or OUTPUT not in told[1]:
            raise RefusedInput(
                "E-CONTRACT",
                "the package has other inputs or outputs than contract.json says",
                facts=[f"contract.json: {_listed(told)}", f"the package: {_listed(found)}"],
                hint="build the export again",
            )


def _listed(ports: tuple[set[str], set[str]]) -> str:
    return " → ".join(", ".join(sorted(names)) or "nothing" for names in ports)


def _contract(folder: Path) -> Contract:
    if not (folder / NAME).is_file():
        raise RefusedInput(
            "E-CONTRACT",
            f"no {NAME} and no tokenizer lie beside the Core ML package, so it cannot be given text",
            hint="build it again: this version of ingot writes both",
        )
    return read_contract(folder)


def _package(folder: Path) -> Path:
    found = sorted(path for path in folder.glob("*.mlpackage") if path.is_dir())
    if len(found) != 1:
        raise RefusedInput("E-EVAL-FORMAT", f"the folder holds {len(found)} Core ML packages instead of one")
    return found[0]
