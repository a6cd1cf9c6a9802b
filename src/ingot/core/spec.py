"""A spec file → the resolved spec: every default filled in, every name checked; or all its problems at once.

The digest of a resolved spec is the SHA-256 of the RFC 8785 canonical JSON of what it means, so comments, the order of
keys and a default written out change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.core.complaints import describe, unknown_fields
from ingot.core.digest import canonical_json, sha256_bytes
from ingot.core.extends import load_chain
from ingot.core.gate_names import Gates, read_gates
from ingot.core.gate_nodes import known_nodes
from ingot.core.graph import Node, SpecGraph, expand
from ingot.core.instances import Wire, Wiring
from ingot.core.names import spec_name_problem, target_name_problem
from ingot.core.problems import Problems, redacted
from ingot.core.roles import instances, read_roles
from ingot.core.spec_budget import read_budget
from ingot.core.spec_prices import read_prices
from ingot.core.targets import Draft, Variant, read_target
from ingot.errors import SpecError

FORMAT = 1
FIELDS = ("format", "name", "description", "seed", "extends", "targets", "gates", "prices", "budget")


@dataclass(frozen=True)
class ResolvedTarget:
    """One target with its defaults filled in.

    ``params`` are those that all instances share; ``variants`` maps the labels of the own axes to what the kind says
    for them. ``inputs`` maps roles to names as written (``gguf`` or ``gguf@Q8_0``).
    """

    name: str
    kind: str
    params: dict[str, Any]
    wires: tuple[Wire, ...]
    matrix: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]
    variants: Mapping[tuple[str, ...], Variant]
    virtual: bool
    file: str
    line: int

    @property
    def inputs(self) -> dict[str, str | tuple[str, ...]]:
        """Role → the target of a single role, the targets of a list role."""
        return {wire.role: wire.names if wire.many else wire.names[0] for wire in self.wires}

    def wiring(self) -> Wiring:
        """What decides the instances."""
        axes = tuple((param, tuple(label for label, _ in values)) for param, values in self.matrix)
        return Wiring(self.wires, axes)

    def meaning(self) -> dict[str, Any]:
        """The target as plain JSON: what the spec's digest is made of."""
        return {
            "kind": self.kind,
            "virtual": self.virtual,
            "from": {role: list(names) if isinstance(names, tuple) else names for role, names in self.inputs.items()},
            "matrix": [[param, [label for label, _ in values]] for param, values in self.matrix],
            "params": [[list(labels), variant.facts.params] for labels, variant in sorted(self.variants.items())],
        }


@dataclass(frozen=True)
class ResolvedSpec:
    """A spec that holds. ``file`` is project-relative; ``files`` are all files read for it with their SHA-256."""

    name: str
    seed: int
    description: str
    targets: Mapping[str, ResolvedTarget]
    gates: Gates
    digest: str
    file: str
    files: tuple[tuple[str, str], ...]
    prices: Mapping[str, Any]
    budget: Mapping[str, Any]

    def graph(self) -> SpecGraph:
        """The spec as the planner sees it."""
        costs, memory = dict(self.prices), dict(self.budget)
        judged, regression = self.gates.judged, self.gates.regression
        nodes = expand(self)
        return SpecGraph(self.name, self.file, self.digest, self.seed, judged, nodes, costs, memory, regression)


def load_spec(path: Path, project_root: Path) -> ResolvedSpec:
    """The resolved spec in a file; SpecError with every problem found, none of which shows a secret."""
    try:
        return _load(path, project_root)
    except SpecError as error:
        raise SpecError([redacted(problem) for problem in error.problems]) from None


def _load(path: Path, project_root: Path) -> ResolvedSpec:
    chain = load_chain(path, project_root)
    value, file = chain.document.value, chain.files[0][0]
    problems = Problems(chain.document, chain.problems)
    _refuse_tasks(value, problems)
    name, seed, description = _head(value, problems)
    drafts = _drafts(value, problems)
    read_roles(drafts, problems)
    known = instances(drafts, problems)
    unsure = set(drafts) - {target for target in known if drafts[target].variants}
    nodes = known_nodes(drafts, known, prices="prices" in value)
    gates = read_gates(value["gates"], nodes, unsure, problems) if "gates" in value else Gates()
    prices = read_prices(value["prices"], problems) if "prices" in value else {}
    budget = read_budget(value["budget"], drafts, problems) if "budget" in value else {}
    problems.raise_any()
    targets = {target: _resolved(draft, problems) for target, draft in drafts.items()}
    meaning = {
        "format": FORMAT,
        "name": name,
        "seed": seed,
        "targets": {target: resolved.meaning() for target, resolved in targets.items()},
        "gates": gates.written,
        **({"prices": prices} if prices else {}),
        **({"budget": budget} if budget else {}),
    }
    digest = sha256_bytes(canonical_json(meaning))
    return ResolvedSpec(name, seed, description, targets, gates, digest, file, tuple(chain.files), prices, budget)


def _refuse_tasks(value: Mapping[str, Any], problems: Problems) -> None:
    """SpecError with one problem, not one a field, for a file of another kind that often lies beside specs."""
    found = next((key for key in ("task", "group", "dataset_path") if key in value), None)
    if found is not None and "targets" not in value:
        what = "this is a task of lm-eval and no spec"
        problems.add((found,), "E-SPEC-TASK", what, "keep folders of tasks outside of specs/", key=True)
        problems.raise_any()


def _head(value: Mapping[str, Any], problems: Problems) -> tuple[str, int, str]:
    """(name, seed, description); checks the fields of the spec itself."""
    unknown_fields(value, (), FIELDS, problems)
    for key in ("format", "name", "targets"):
        if key not in value:
            problems.add((key,), "E-SPEC-MISSING", f"a required field is missing: {key}")
    number = value.get("format", FORMAT)
    if number != FORMAT or isinstance(number, bool | float):
        what = f"this ingot reads format {FORMAT}, not {describe(number)}"
        problems.add(("format",), "E-SPEC-FORMAT", what, f"write `format: {FORMAT}`")
    name, seed, description = value.get("name", ""), value.get("seed", 0), value.get("description", "")
    if not isinstance(name, str):
        problems.add(("name",), "E-SPEC-TYPE", f"must be text, not {describe(name)}")
    elif "name" in value and (wrong := spec_name_problem(name)):
        problems.add(("name",), "E-SPEC-NAME", wrong)
    if isinstance(seed, bool) or not isinstance(seed, int):
        problems.add(("seed",), "E-SPEC-TYPE", f"must be a whole number, not {describe(seed)}")
    elif seed < 0:
        problems.add(("seed",), "E-SPEC-VALUE", f"must be at least 0, not {seed}")
    if not isinstance(description, str):
        problems.add(("description",), "E-SPEC-TYPE", f"must be text, not {describe(description)}")
    return name, seed, description


def _drafts(value: Mapping[str, Any], problems: Problems) -> dict[str, Draft]:
    targets = value.get("targets", {})
    if not isinstance(targets, dict):
        problems.add(("targets",), "E-SPEC-TYPE", f"must be a mapping of names to targets, not {describe(targets)}")
        return {}
    if not targets and "targets" in value:
        problems.add(("targets",), "E-SPEC-MISSING", "a spec has at least one target")
    seen: dict[str, str] = {}
    for name in targets:
        twin = seen.setdefault(name.lower(), name)
        wrong = f"differs only by case from {twin!r}" if twin != name else target_name_problem(name)
        if wrong:
            problems.add(("targets", name), "E-SPEC-NAME", wrong, key=True)
    return {name: read_target(name, item, problems) for name, item in targets.items()}


def _resolved(draft: Draft, problems: Problems) -> ResolvedTarget:
    place = problems.place(draft.path, key=True)
    own = {axis.param for axis in draft.axes}
    first = next(iter(draft.variants.values())).facts.params
    matrix = []
    for index, axis in enumerate(draft.axes):
        values = {labels[index]: variant.facts.params[axis.param] for labels, variant in draft.variants.items()}
        matrix.append((axis.param, tuple((label, values[label]) for label in axis.labels)))
    return ResolvedTarget(
        name=draft.name,
        kind=draft.kind,
        params={name: value for name, value in first.items() if name not in own},
        wires=draft.wires,
        matrix=tuple(matrix),
        variants=draft.variants,
        virtual=draft.virtual,
        file=place.file,
        line=place.line,
    )


__all__ = ["Node", "ResolvedSpec", "ResolvedTarget", "expand", "load_spec"]
