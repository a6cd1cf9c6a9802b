"""The JSON schema: it accepts what the reader accepts, and refuses what a schema can refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingot.core import stage
from ingot.core.schema import schema, text
from ingot.core.spec import load_spec
from ingot.core.yaml_reader import read_yaml
from ingot.errors import SpecError
from speckit import CHAIN, KINDS, Folder, kinds_in_use

_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


class Validator:
    """The part of JSON schema that the schema of specs uses; an unknown keyword is an error of the test."""

    _NOTES = frozenset(("$schema", "$defs", "title", "description", "default", "then", "else"))

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root

    def ok(self, value: Any, rules: Any) -> bool:
        if isinstance(rules, bool):
            return rules
        return all(
            getattr(self, f"_{word.lstrip('$')}")(value, rule, rules)
            for word, rule in rules.items()
            if word not in self._NOTES
        )

    def _ref(self, value: Any, rule: str, _: Any) -> bool:
        place = self._root
        for part in rule.removeprefix("#/").split("/"):
            place = place[part]
        return self.ok(value, place)

    def _type(self, value: Any, rule: Any, _: Any) -> bool:
        wanted = [rule] if isinstance(rule, str) else rule
        return any(isinstance(value, _TYPES[t]) and (isinstance(value, bool) <= (t == "boolean")) for t in wanted)

    def _const(self, value: Any, rule: Any, _: Any) -> bool:
        return bool(value == rule)

    def _enum(self, value: Any, rule: list[Any], _: Any) -> bool:
        return value in rule

    def _pattern(self, value: Any, rule: str, _: Any) -> bool:
        return not isinstance(value, str) or re.search(rule, value) is not None

    def _minimum(self, value: Any, rule: float, _: Any) -> bool:
        return not isinstance(value, int | float) or value >= rule

    def _maximum(self, value: Any, rule: float, _: Any) -> bool:
        return not isinstance(value, int | float) or value <= rule

    def _exclusiveMinimum(self, value: Any, rule: float, _: Any) -> bool:  # noqa: N802  # the keyword's name
        return not isinstance(value, int | float) or value > rule

    def _exclusiveMaximum(self, value: Any, rule: float, _: Any) -> bool:  # noqa: N802  # the keyword's name
        return not isinstance(value, int | float) or value < rule

    def _minItems(self, value: Any, rule: int, _: Any) -> bool:  # noqa: N802  # the keyword's name
        return not isinstance(value, list) or len(value) >= rule

    def _maxItems(self, value: Any, rule: int, _: Any) -> bool:  # noqa: N802  # the keyword's name
        return not isinstance(value, list) or len(value) <= rule

    def _uniqueItems(self, value: Any, rule: bool, _: Any) -> bool:  # noqa: N802  # the keyword's name
        return not isinstance(value, list) or len({json.dumps(item) for item in value}) == len(value)

    def _items(self, value: Any, rule: Any, _: Any) -> bool:
        return not isinstance(value, list) or all(self.ok(item, rule) for item in value)

    def _minProperties(self, value: Any, rule: int, _: Any) -> bool:  # noqa: N802  # the keyword's name
        return not isinstance(value, dict) or len(value) >= rule

    def _maxProperties(self, value: Any, rule: int, _: Any) -> bool:  # noqa: N802  # the keyword's name
        return not isinstance(value, dict) or len(value) <= rule

    def _required(self, value: Any, rule: list[str], _: Any) -> bool:
        return not isinstance(value, dict) or set(rule) <= set(value)

    def _properties(self, value: Any, rule: dict[str, Any], _: Any) -> bool:
        return not isinstance(value, dict) or all(self.ok(value[k], r) for k, r in rule.items() if k in value)

    def _propertyNames(self, value: Any, rule: Any, _: Any) -> bool:  # noqa: N802  # the keyword's name
        return not isinstance(value, dict) or all(self.ok(key, rule) for key in value)

    def _patternProperties(self, value: Any, rule: dict[str, Any], _: Any) -> bool:  # noqa: N802  # the keyword's name
        return not isinstance(value, dict) or all(
            self.ok(item, r) for pattern, r in rule.items() for key, item in value.items() if re.search(pattern, key)
        )

    def _not(self, value: Any, rule: Any, _rules: Any) -> bool:
        return not self.ok(value, rule)

    def _additionalProperties(self, value: Any, rule: Any, around: Any) -> bool:  # noqa: N802  # the keyword's name
        if not isinstance(value, dict):
            return True
        patterns = around.get("patternProperties", {})
        more = [
            k for k in value if k not in around.get("properties", {}) and not any(re.search(p, k) for p in patterns)
        ]
        return all(self.ok(value[key], rule) for key in more)

    def _anyOf(self, value: Any, rule: list[Any], _: Any) -> bool:  # noqa: N802  # the keyword's name
        return any(self.ok(value, item) for item in rule)

    def _allOf(self, value: Any, rule: list[Any], _: Any) -> bool:  # noqa: N802  # the keyword's name
        return all(self.ok(value, item) for item in rule)

    def _minLength(self, value: Any, rule: int, _: Any) -> bool:  # noqa: N802  # the keyword's name
        return not isinstance(value, str) or len(value) >= rule

    def _maxLength(self, value: Any, rule: int, _: Any) -> bool:  # noqa: N802  # the keyword's name
        return not isinstance(value, str) or len(value) <= rule

    def _if(self, value: Any, rule: Any, around: Any) -> bool:
        return self.ok(value, around.get("then" if self.ok(value, rule) else "else", True))


def accepts(text: str) -> bool:
    rules = schema()
    return Validator(rules).ok(read_yaml(text.encode(), "a.yaml")[0].value, rules)


@pytest.fixture
def _kinds() -> Iterator[None]:
    with kinds_in_use():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


REPO = Path(__file__).parents[2]
HEAD = "format: 1\nname: s\ntargets:\n  w: {kind: fetch}\n  "


@pytest.mark.usefixtures("_kinds")
@pytest.mark.parametrize(
    "text",
    [
        CHAIN,
        HEAD + "c: {kind: command, command: [a], files: [x.py, '*.txt'], from: {any_role: w, more: [w]}}\n",
        HEAD + "b: {kind: convert, from: {model: w}, matrix: {dtype: [float16, {half: float16}]}}\n",
        HEAD + "p: {kind: prune, from: {model: w}, matrix: {sparsity: [0.1, 0.5]}, virtual: false}\n",
        CHAIN.replace("adapter: adapter}", "adapter: [adapter]}"),
        HEAD + "d: {kind: dataset, sources: [{path: x}], matrix: {dedup: [{a: {threshold: 0.5}}]}}\n",
    ],
)
def test_accepts_what_the_reader_accepts(folder: Folder, text: str) -> None:
    folder.load(text)
    assert accepts(text)


@pytest.mark.usefixtures("_kinds")
def test_accepts_parts_of_targets_in_a_spec_that_extends() -> None:
    assert accepts("extends: p.yaml\nname: c\ntargets: {adapter: {rank: 4}, gguf: null}\n")
    assert not accepts("extends: p.yaml\ntargets: {adapter: {rank: 4}}\n")
    assert not accepts("extends: p.yaml\nname: c\ntargets: {adapter: 5}\n")


@pytest.mark.usefixtures("_kinds")
@pytest.mark.parametrize(
    "text",
    [
        CHAIN.replace("format: 1", "format: 2"),
        CHAIN.replace("name: chain", "name: A b"),
        CHAIN.replace("seed: 7", "seed: -1"),
        CHAIN.replace("seed: 7", "sede: 7"),
        CHAIN.replace("kind: merge", "kind: murge"),
        CHAIN.replace("kind: merge, ", ""),
        CHAIN.replace("rank: 8", "rnak: 8"),
        CHAIN.replace("rank: 8", "rank: 0"),
        CHAIN.replace("rank: 8", "rank: x"),
        CHAIN.replace(", sparsity: 0.2", ""),
        CHAIN.replace("Q4_0]", "Q5]"),
        CHAIN.replace("[Q8_0, Q4_0]", "[]"),
        CHAIN.replace("{type: [", "{typ: ["),
        CHAIN.replace("from: {model: weights}", "from: {model: [weights]}"),
        CHAIN.replace("from: {model: weights}", "from: {modle: weights}"),
        CHAIN.replace(", from: {model: weights}", ""),
        CHAIN.replace("candidates: [merged, gguf]", "candidates: merged"),
        CHAIN.replace("candidates: [merged, gguf]", "candidates: [merged], evaluations: [base]"),
        CHAIN.replace("{python_stdlib: docstrings}", "{python_stdlib: words}"),
        CHAIN.replace("{max: 0.5}", "{}"),
        CHAIN.replace("{max: 0.5}", "{max: high}"),
        CHAIN.replace("  merged:", "  Merged:"),
    ],
)
def test_refuses_what_the_reader_refuses(folder: Folder, text: str) -> None:
    assert text != CHAIN
    with pytest.raises(SpecError):
        folder.load(text)
    assert not accepts(text)


@pytest.mark.usefixtures("_kinds")
def test_every_parameter_of_every_kind_is_there() -> None:
    definitions = schema()["$defs"]
    for name, kind in KINDS.items():
        fields = {field.alias or key for key, field in kind.model_fields.items()}
        assert fields <= set(definitions[name]["properties"])
    assert definitions["adapter"]["properties"]["from"]["properties"]["data"]["description"] == "Takes: dataset."


def test_the_schema_of_the_real_kinds() -> None:
    parsed = json.loads(text())
    assert set(stage.kinds()) <= set(parsed["$defs"])
    for name in stage.kinds():
        for param, rules in parsed["$defs"][name]["properties"].items():
            assert rules.get("description") or param == "kind", f"{name}.{param} has no description"
    references = set(re.findall(r'"#/\$defs/([^"]+)"', text()))
    assert references <= set(parsed["$defs"])


REPORT = (
    "  d: {kind: dataset, sources: [{path: a.jsonl}]}\n"
    "  report:\n    kind: report\n    from: {data: d, candidates: [w]}\n    tasks:\n      "
)


@pytest.mark.parametrize(
    ("task", "right"),
    [
        ("gsm8k: {kind: harness, path: tasks/gsm8k, tasks: [gsm8k], num_fewshot: 5}", True),
        ("gsm8k: {kind: harness, path: tasks/gsm8k, tasks: [gsm8k], num_fewshots: 5}", False),
        ("gsm8k: {kind: harness, path: tasks/gsm8k}", False),
        ("gsm8k: {kind: harness, path: tasks/gsm8k, tasks: []}", False),
        ("gsm8k: {kind: evaluate}", False),
        ("gsm8k: {path: tasks/gsm8k, tasks: [gsm8k]}", False),
        ("GSM8K: {kind: harness, path: tasks/gsm8k, tasks: [gsm8k]}", False),
    ],
)
def test_the_tasks_of_a_report_are_checked_with_the_parameters_of_their_kind(
    task: str, *, right: bool, folder: Folder
) -> None:
    spec = f"format: 1\nname: s\ntargets:\n  w: {{kind: fetch, path: model}}\n{REPORT}{task}\n"
    assert accepts(spec) is right
    if right:
        assert folder.load(spec)
    else:
        with pytest.raises(SpecError):
            folder.load(spec)


@pytest.mark.parametrize("path", sorted((REPO / "specs").rglob("*.yaml")), ids=lambda p: p.name)
def test_the_specs_of_the_repository_conform(path: Path) -> None:
    assert accepts(path.read_text())
    # What the graph holds is what the kind reads back in the child process.
    for node in load_spec(path, REPO).graph().nodes:
        model = stage.load_kind(node.kind).model_validate_json(json.dumps(node.params), strict=True)
        assert model.model_dump(mode="json", by_alias=True) == node.params
