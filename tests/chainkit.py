"""Write what a measured chain leaves in the log and in the store: builds, evaluations with documents, a report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import registrykit
from ingot.core.key import key_of
from ingot.core.registry import Registry
from ingot.core.statement import build_statement
from projectkit import Sandbox
from recordkit import publish, registry_of

DATA = "da" * 32
SETTINGS = {"documents": 4}
Documents = Sequence[Mapping[str, Any]]


def digest_of(name: str) -> str:
    """A digest that stands for a target's artifact."""
    return hashlib.sha256(name.encode()).hexdigest()


def number(value: float, *interval: float, unit: str = "1", n: int | None = None, method: str = "m") -> dict[str, Any]:
    """A metric as a receipt holds it."""
    found: dict[str, Any] = {"value": value, "unit": unit, "method": method}
    found |= {} if n is None else {"n": n}
    return found | ({"interval": list(interval)} if interval else {})


def documents(*rows: tuple[int, float, float | None, float | None]) -> list[dict[str, Any]]:
    """(tokens, nll, nll of the reference, KL) of documents, as ``documents.jsonl`` has them."""
    return [
        {"id": f"d{at}", "tokens": tokens, "nll": nll, "ref_nll": ref, "kl": kl, "agree": None}
        for at, (tokens, nll, ref, kl) in enumerate(rows)
    ]


class Chains:
    """A sandbox's log, written as builds would; names are those of targets of one spec."""

    def __init__(self, sandbox: Sandbox, spec: str = "s") -> None:
        self.sandbox, self.spec = sandbox, spec
        self.digests: dict[str, str] = {}
        self._pending: list[dict[str, Any]] = []
        self._registry: Registry | None = None
        self._second = 0

    def item(self, name: str) -> dict[str, str]:
        return {"target": f"{self.spec}:{name}", "digest": self.digests[name]}

    def built(self, name: str, kind: str, *, digest: str | None = None, files: int = 100, **changes: Any) -> str:
        """A build of a target; ``model`` and ``adapter`` name what it was made of."""
        self.digests[name] = digest or digest_of(f"{self.spec}:{name}")
        roles: list[str] = [role for role in ("model", "adapter") if role in changes]
        inputs = {role: self.item(changes.pop(role)) for role in roles}
        file = {"path": "model.bin", "size": files, "sha256": "55" * 32, "xxh3_128": "66" * 16}
        self._add(name, kind, inputs, files=[file], **{"metrics": {}, **changes})
        return self.digests[name]

    def evaluated(
        self, name: str, candidate: str, metrics: Mapping[str, Any], rows: Documents | None = None, **changes: Any
    ) -> str:
        """A measurement ``name`` of a candidate; ``data``, ``reference``, ``params``, ``kind`` and fields vary."""
        reference, data = changes.pop("reference", None), changes.pop("data", DATA)
        inputs = {"candidate": self.item(candidate), "data": {"target": f"{self.spec}:data", "digest": data}}
        inputs |= {} if reference is None else {"reference": self.item(reference)}
        inputs |= {"logits": self.item(changes.pop("logits"))} if "logits" in changes else {}
        kind, why = changes.pop("kind", "evaluate"), changes.pop("not_measured", {})
        written: dict[str, Any] = {"kind": kind, "candidate": self.digests[candidate], "metrics": dict(metrics)}
        files = {"evaluation.json": json.dumps(written | {"name": name, "not_measured": why}).encode()}
        if rows is not None:
            files["documents.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
        digest, records = publish(self.sandbox, files)
        self.digests[name] = digest
        listed = [record.to_dict() for record in records]
        params = changes.pop("params", SETTINGS)
        self._add(name, kind, inputs, files=listed, metrics=dict(metrics), params=params, **changes)
        return digest

    def reported(self, name: str, reference: str | None, candidates: Sequence[str], evaluations: Sequence[str]) -> None:
        """The report that was made of evaluations."""
        self.digests[name] = digest_of(f"{self.spec}:{name}:{'+'.join(evaluations)}")
        inputs: dict[str, Any] = {
            "data": {"target": f"{self.spec}:data", "digest": DATA},
            "candidates": [self.item(each) for each in candidates],
            "evaluations": [self.item(each) for each in evaluations],
        }
        inputs |= {} if reference is None else {"reference": self.item(reference)}
        self._add(name, "report", inputs, metrics={"rows": number(len(candidates))}, files=[])

    def commit(self) -> None:
        """Sign what was added since."""
        if self._registry is None:
            self._registry = registry_of(self.sandbox)
        self._registry.append([build_statement(receipt) for receipt in self._pending])
        self._pending.clear()

    def _add(self, name: str, kind: str, inputs: Mapping[str, Any], **changes: Any) -> None:
        known = {role: _known(value) for role, value in inputs.items()}
        params = changes.pop("params", {"name": name})
        parts = {"format": 1, "kind": kind, "revision": 1, "params": params, "inputs": known, "tools": {}}
        self._second += 1
        time = f"2026-11-20T10:{self._second // 60:02d}:{self._second % 60:02d}.000000Z"
        fields = {
            "target": f"{self.spec}:{name}",
            "spec": self.spec,
            "kind": kind,
            "key_parts": parts,
            "key": key_of(parts),
            "digest": self.digests[name],
            "inputs": dict(inputs),
            "timings": {**registrykit.receipt()["timings"], "started": time, "finished": time},
        }
        self._pending.append(registrykit.receipt(**{**fields, **changes}))


def _known(value: Any) -> Any:
    """What a role holds, as key parts have it."""
    return [_known(each) for each in value] if isinstance(value, list) else f"sha256:{value['digest']}"
