"""The graph: variants against a naive model; implied targets; the cache of resolved graphs."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot.core import spec as spec_module
from ingot.core import spec_cache
from ingot.core.graph import Node, SpecGraph, from_json, to_json
from ingot.core.instances import topological
from ingot.core.plan import Planned
from ingot.core.spec_cache import load_graphs
from ingot.errors import SpecError
from speckit import CHAIN, Folder, kinds_in_use


@pytest.fixture(autouse=True, scope="module")
def _kinds() -> Iterator[None]:
    with kinds_in_use():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def graph(folder: Folder, *lines: str) -> dict[str, Node]:
    text = "format: 1\nname: s\nseed: 9\ntargets:\n" + "".join(f"  {line}\n" for line in lines)
    return {node.name: node for node in folder.load(text).graph().nodes}


def test_nodes_of_a_chain(folder: Folder) -> None:
    nodes = folder.load(CHAIN).graph().nodes
    assert [node.name for node in nodes] == [
        "weights", "base", "data", "adapter", "merged", "pruned", "gguf@Q8_0", "gguf@Q4_0",
        "report.base", "report.merged", "report.gguf@Q8_0", "report.gguf@Q4_0", "report",
    ]  # fmt: skip
    by_name = {node.name: node for node in nodes}
    adapter = by_name["adapter"]
    assert (adapter.id, adapter.kind, adapter.seed, adapter.reproducibility) == (
        "chain:adapter",
        "adapter",
        7,
        "seeded",
    )
    assert adapter.inputs == {"model": ("base",), "data": ("data",)}
    assert adapter.single_roles == ("model", "data")
    base = by_name["base"]
    assert (base.seed, base.tools, base.needs, base.extra, base.preload) == (
        None,
        ("torch",),
        ("tqdm",),
        "ml",
        ("torch",),
    )
    assert by_name["weights"].network
    assert by_name["gguf@Q4_0"].params == {"type": "Q4_0"}
    assert by_name["gguf@Q4_0"].group == "gguf"


def test_reproducibility_follows_from_parameters_and_the_seed_from_the_kind(folder: Folder) -> None:
    nodes = graph(folder, "one: {kind: trained}", "two: {kind: trained, device: cpu}", "data: {kind: fetch}")
    one, two, data = nodes.values()
    assert [(it.reproducibility, it.seed, it.device, it.resumes) for it in (one, two, data)] == [
        ("device_dependent", 9, "auto", True),
        ("seeded", 9, "cpu", True),
        ("deterministic", None, None, False),
    ]
    # What can come out differently elsewhere is built again where its bytes are lost; else its digest holds.
    lost = [Planned(it, "stale", key="k", receipt={"digest": "d"}) for it in (one, two, data)]
    assert [item.identity for item in lost] == [None, None, "d"]


def test_implied_targets(folder: Folder) -> None:
    by_name = {node.name: node for node in folder.load(CHAIN).graph().nodes}
    of_reference, of_variant, report = by_name["report.base"], by_name["report.gguf@Q8_0"], by_name["report"]
    assert of_reference.inputs == {"candidate": ("base",), "data": ("data",)}
    assert of_variant.inputs == {"candidate": ("gguf@Q8_0",), "data": ("data",), "reference": ("base",)}
    assert of_variant.single_roles == ("candidate", "data", "reference")
    assert (of_variant.kind, of_variant.hidden, of_variant.seed, of_variant.params) == (
        "evaluate", True, 7, {"documents": 32},
    )  # fmt: skip
    assert (of_variant.target, of_variant.line) == ("report", 12)
    assert report.inputs["evaluations"] == ("report.base", "report.merged", "report.gguf@Q8_0", "report.gguf@Q4_0")
    assert report.inputs["candidates"] == ("merged", "gguf@Q8_0", "gguf@Q4_0")
    assert report.single_roles == ("data", "reference")
    assert not report.hidden


def test_a_reference_among_the_candidates_is_measured_once(folder: Folder) -> None:
    nodes = folder.load(CHAIN.replace("[merged, gguf]", "[base, gguf]")).graph().nodes
    names = [node.name for node in nodes]
    assert names.count("report.base") == 1
    assert nodes[-1].inputs["evaluations"] == ("report.base", "report.base", "report.gguf@Q8_0", "report.gguf@Q4_0")


def test_without_a_reference_nothing_is_compared(folder: Folder) -> None:
    text = CHAIN.replace("reference: base, ", "").replace("Q8_0.kl_divergence", "Q8_0.nll")
    by_name = {node.name: node for node in folder.load(text).graph().nodes}
    assert by_name["report.merged"].inputs == {"candidate": ("merged",), "data": ("data",)}
    assert "report.base" not in by_name


def test_hidden_targets_read_one_another(folder: Folder) -> None:
    """``NAME:ROLE`` is the hidden target of each element of a role, ``NAME:*`` that of the same element."""
    text = CHAIN.replace("candidates: [merged, gguf]}}", "candidates: [merged, base]}, asked: {quiz: 3}}")
    by_name = {node.name: node for node in folder.load(text.partition("gates")[0]).graph().nodes}
    assert [name for name in by_name if name.endswith((".quiz", ".said"))] == [
        "report.base.quiz.said", "report.merged.quiz.said", "report.merged.quiz",
    ]  # fmt: skip
    assert by_name["report.merged.quiz"].inputs == {"a": ("report.merged.quiz.said",), "b": ("report.base.quiz.said",)}
    assert by_name["report.merged.quiz"].params["y"] == 3
    assert by_name["report"].inputs["evaluations"] == (
        "report.base", "report.merged", "report.base", "report.merged.quiz",
    )  # fmt: skip


def test_what_is_wrong_with_a_hidden_target_is_reported_where_it_is_asked_for(folder: Folder) -> None:
    text = CHAIN.replace("candidates: [merged, gguf]}}", "candidates: [merged, gguf]}, asked: {quiz: 0.5}}")
    assert [problem[2] for problem in folder.problems(text)] == ["targets.report.asked.quiz"]


def test_a_report_in_a_matrix_has_its_own_evaluations(folder: Folder) -> None:
    text = CHAIN.replace("candidates: [merged, gguf]}}", "candidates: [merged]}, matrix: {documents: [8, 16]}}")
    nodes = {node.name: node for node in folder.load(text.partition("gates")[0]).graph().nodes}
    assert nodes["report@8.merged"].params == {"documents": 8}
    assert nodes["report@16"].inputs["evaluations"] == ("report@16.base", "report@16.merged")


def test_bad_parameters_of_an_implied_target_are_reported_at_the_one_that_implies_it(folder: Folder) -> None:
    text = CHAIN.replace("candidates: [merged, gguf]}}", "candidates: [merged, gguf]}, documents: 1}")
    assert folder.problems(text) == [("E-SPEC-VALUE", "specs/a.yaml:12:11", "targets.report")]


class TestVariants:
    def test_a_single_role_inherits_and_own_axes_come_last(self, folder: Folder) -> None:
        nodes = graph(
            folder,
            "p: {kind: node, matrix: {y: [1, 2], x: [5]}}",
            "q: {kind: node, from: {a: p}, matrix: {z: [0.25, 1e-7]}}",
        )
        assert list(nodes) == ["p@1+5", "p@2+5", "q@1+5+0.25", "q@1+5+1e-7", "q@2+5+0.25", "q@2+5+1e-7"]
        assert nodes["q@2+5+1e-7"].inputs == {"a": ("p@2+5",)}
        assert nodes["q@2+5+1e-7"].params == {"x": 0, "y": 0, "z": 1e-7}

    def test_a_diamond_does_not_multiply(self, folder: Folder) -> None:
        nodes = graph(
            folder,
            "p: {kind: node, matrix: {x: [1, 2]}}",
            "l: {kind: node, from: {a: p}, matrix: {y: [3, 4]}}",
            "r: {kind: node, from: {a: p}}",
            "d: {kind: node, from: {a: r, b: l}}",
        )
        assert [name for name in nodes if name[0] == "d"] == ["d@1+3", "d@1+4", "d@2+3", "d@2+4"]
        assert nodes["d@2+3"].inputs == {"a": ("r@2",), "b": ("l@2+3",)}

    def test_a_list_role_collects_what_agrees(self, folder: Folder) -> None:
        nodes = graph(
            folder,
            "p: {kind: node, matrix: {x: [1, 2]}}",
            "l: {kind: node, from: {a: p}, matrix: {y: [3, 4]}}",
            "some: {kind: node, from: {a: p, many: [l, p]}}",
            "all: {kind: node, from: {many: [l, l@1+3]}}",
        )
        assert nodes["some@2"].inputs == {"a": ("p@2",), "many": ("l@2+3", "l@2+4", "p@2")}
        assert nodes["all"].inputs == {"many": ("l@1+3", "l@1+4", "l@2+3", "l@2+4")}

    def test_a_role_that_is_either_is_what_is_written(self, folder: Folder) -> None:
        nodes = graph(
            folder,
            "w: {kind: fetch}",
            "b: {kind: convert, from: {model: w}}",
            "d: {kind: dataset, sources: [{python_stdlib: topics}]}",
            "ad: {kind: adapter, from: {model: b, data: d}, matrix: {rank: [4, 8]}}",
            "one: {kind: merge, from: {model: b, adapter: ad}}",
            "both: {kind: merge, from: {model: b, adapter: [ad]}}",
        )
        assert nodes["one@8"].inputs == {"model": ("b",), "adapter": ("ad@8",)}
        assert nodes["one@8"].single_roles == ("model", "adapter")
        assert nodes["both"].inputs == {"model": ("b",), "adapter": ("ad@4", "ad@8")}
        assert nodes["both"].single_roles == ("model",)

    def test_a_named_instance_is_one_and_its_axes_are_not_inherited(self, folder: Folder) -> None:
        nodes = graph(
            folder,
            "p: {kind: node, matrix: {x: [1, 2]}}",
            "one: {kind: node, from: {a: p@2}}",
            "both: {kind: node, from: {a: p@2, b: p}}",
            "picked: {kind: node, from: {a: p, many: [p@1]}}",
        )
        assert nodes["one"].inputs == {"a": ("p@2",)}
        assert nodes["both@1"].inputs == {"a": ("p@2",), "b": ("p@1",)}
        assert nodes["picked@2"].inputs == {"a": ("p@2",), "many": ("p@1",)}

    def test_labels(self, folder: Folder) -> None:
        nodes = graph(
            folder,
            "w: {kind: fetch, matrix: {note: [{long: 'a b c'}, x, {none: ''}], sha256: [~, abc]}}",
            "n: {kind: node, matrix: {z: [1.0, 0.5]}}",
        )
        assert list(nodes) == [
            "w@long+null", "w@long+abc", "w@x+null", "w@x+abc", "w@none+null", "w@none+abc", "n@1", "n@0.5",
        ]  # fmt: skip
        assert nodes["w@long+null"].params == {"path": None, "sha256": None, "note": "a b c"}

    def test_roles_of_any_name(self, folder: Folder) -> None:
        nodes = graph(
            folder,
            "p: {kind: node, matrix: {x: [1, 2]}}",
            "c: {kind: command, command: [run], from: {zeta: p@1, alpha: [p]}}",
        )
        assert nodes["c"].inputs == {"alpha": ("p@1", "p@2"), "zeta": ("p@1",)}
        assert nodes["c"].single_roles == ("zeta",)


# --- random graphs against a naive model ---


def naive(targets: dict[str, dict[str, Any]]) -> dict[str, dict[str, tuple[str, ...]]]:
    """The rules of variants said once more: name of an instance → its inputs. Targets are in topological order."""
    axes: dict[str, list[tuple[str, str]]] = {}
    values = {(name, param): labels for name, target in targets.items() for param, labels in target["matrix"].items()}
    found: dict[str, list[dict[tuple[str, str], str]]] = {}
    result: dict[str, dict[str, tuple[str, ...]]] = {}

    def called(name: str, point: dict[tuple[str, str], str]) -> str:
        return name + "@" * bool(axes[name]) + "+".join(point[axis] for axis in axes[name])

    for name, target in targets.items():
        singles = [item for role in ("a", "b") if (item := target["from"].get(role)) and "@" not in item]
        inherited = [axis for item in singles for axis in axes[item]]
        axes[name] = list(dict.fromkeys(inherited)) + [(name, param) for param in target["matrix"]]
        found[name] = []
        for labels in itertools.product(*(values[axis] for axis in axes[name])):
            point = dict(zip(axes[name], labels, strict=True))
            found[name].append(point)
            inputs = {}
            for role, item in target["from"].items():
                names: list[str] = []
                for one in item if role == "many" else [item]:
                    if "@" in one:
                        names.append(one)
                        continue
                    agreeing = [
                        p for p in found[one] if all(point.get(axis, label) == label for axis, label in p.items())
                    ]
                    names += [called(one, p) for p in agreeing]
                inputs[role] = tuple(dict.fromkeys(names))
            result[called(name, point)] = inputs
    return result


@st.composite
def random_specs(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """Up to six targets; each reads earlier ones (or instances of them) and has up to two axes."""
    targets: dict[str, dict[str, Any]] = {}
    coin: st.SearchStrategy[Any] = st.booleans()
    for index in range(draw(st.integers(1, 6))):
        known = list(naive(targets)) if draw(coin) else list(targets)
        roles: dict[str, Any] = {}
        for role in ("a", "b"):
            if known and draw(coin):
                roles[role] = draw(st.sampled_from(known))
        if known and draw(coin):
            roles["many"] = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True))
        params = draw(st.lists(st.sampled_from(["x", "y"]), max_size=2, unique=True))
        labels = st.lists(st.sampled_from(["1", "2", "3"]), min_size=1, max_size=2, unique=True)
        targets[f"t{index}"] = {"from": roles, "matrix": {param: draw(labels) for param in params}}
    return targets


@settings(max_examples=120, deadline=None)
@given(random_specs(), st.randoms(use_true_random=False))
def test_random_graphs_equal_the_naive_model(targets: dict[str, dict[str, Any]], pick: Any) -> None:
    written = pick.sample(sorted(targets), len(targets))
    value = {
        name: {
            "kind": "node",
            "from": targets[name]["from"],
            **({"matrix": {p: [int(v) for v in vs] for p, vs in m.items()}} if (m := targets[name]["matrix"]) else {}),
        }
        for name in written
    }
    with tempfile.TemporaryDirectory() as name:
        text = json.dumps({"format": 1, "name": "s", "targets": value})
        nodes = Folder(Path(name)).load(text).graph().nodes
    assert {node.name: node.inputs for node in nodes} == naive(targets)
    place = {node.name: index for index, node in enumerate(nodes)}
    assert all(place[item] < place[node.name] for node in nodes for names in node.inputs.values() for item in names)
    for node in nodes:
        own = targets[node.target]["matrix"]
        labels = node.name.partition("@")[2].split("+")
        assert [str(node.params[param]) for param in own] == labels[len(labels) - len(own) :][: len(own)]


def test_long_chains_need_no_recursion() -> None:
    edges = {f"t{index}": [f"t{index + 1}"] for index in range(5000)}
    order, cycles = topological({**edges, "t5000": []})
    assert (order[0], order[-1], cycles) == ("t5000", "t0", ())
    _, cycles = topological({**edges, "t5000": ["t0"]})
    assert len(cycles[0]) == 5001


# --- JSON and cache ---


def test_a_graph_survives_json(folder: Folder) -> None:
    graph = folder.load(CHAIN).graph()
    assert from_json(json.loads(json.dumps(to_json(graph)))) == graph
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_json({"name": "x"})


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for the installed code whose changes make every entry a miss."""
    path = tmp_path / "package"
    for name in ("core", "stages"):
        (path / name).mkdir(parents=True)
    (path / "stages" / "node.py").write_text("x")
    monkeypatch.setattr(spec_cache, "_PACKAGE", path)
    return path


@pytest.fixture
def counted(package: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The spec files that were really read."""
    read: list[str] = []
    load = spec_module.load_spec

    def counting(path: Path, root: Path) -> Any:
        read.append(path.name)
        return load(path, root)

    monkeypatch.setattr(spec_module, "load_spec", counting)
    return read


def cached(folder: Folder, *names: str) -> list[SpecGraph]:
    return load_graphs(folder.root, [folder.root / name for name in names or ("specs/a.yaml",)], folder.root / "cache")


def test_an_unchanged_spec_is_not_read_again(folder: Folder, counted: list[str]) -> None:
    folder.write(CHAIN)
    first = cached(folder)
    assert cached(folder) == first == [folder.load(CHAIN).graph()]
    assert counted == ["a.yaml"]
    os.utime(folder.root / "specs" / "a.yaml", (1, 1))
    cached(folder)
    assert counted == ["a.yaml"]
    folder.write(CHAIN.replace("rank: 8", "rank: 9"))
    assert [node.params["rank"] for node in cached(folder)[0].nodes if node.name == "adapter"] == [9]
    folder.write(CHAIN)
    assert cached(folder) == first
    assert counted == ["a.yaml", "a.yaml"]


def test_a_changed_parent_is_read_again(folder: Folder, counted: list[str]) -> None:
    folder.write(CHAIN, "specs/p.yaml")
    folder.write("extends: p.yaml\nname: child\n")
    before = cached(folder)
    assert cached(folder) == before
    assert counted == ["a.yaml"]
    folder.write(CHAIN.replace("seed: 7", "seed: 8"), "specs/p.yaml")
    assert (before[0].seed, cached(folder)[0].seed) == (7, 8)
    (folder.root / "specs" / "p.yaml").unlink()
    with pytest.raises(SpecError, match=r"p\.yaml"):
        cached(folder)


def test_two_specs_of_the_same_bytes_in_two_folders_differ(folder: Folder) -> None:
    text = "format: 1\nname: {}\ntargets:\n  d: {{kind: dataset, sources: [{{path: x}}]}}\n"
    folder.write(text.format("a"), "specs/a.yaml")
    assert cached(folder)[0].nodes[0].sources[0][1]["path"] == "specs/x"
    folder.write(text.format("a"), "other/a.yaml")
    assert cached(folder, "other/a.yaml")[0].nodes[0].sources[0][1]["path"] == "other/x"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data.replace(b'"rank":8', b'"rank":9'),
        lambda data: b"",
        lambda data: b"[]\n",
        lambda data: b"\xff\xfe",
        lambda data: re.sub(rb'"format": \d+', b'"format": 0', data, count=1),
    ],
)
def test_a_damaged_entry_is_read_again(folder: Folder, counted: list[str], damage: Callable[[bytes], bytes]) -> None:
    folder.write(CHAIN)
    before = cached(folder)
    (entry,) = (folder.root / "cache" / "specs").iterdir()
    whole = entry.read_bytes()
    assert damage(whole) != whole
    entry.chmod(0o644)
    entry.write_bytes(damage(whole))
    assert cached(folder) == before
    assert counted == ["a.yaml", "a.yaml"]
    assert entry.read_bytes() == whole


def test_a_changed_kind_is_a_miss(folder: Folder, counted: list[str], package: Path) -> None:
    folder.write(CHAIN)
    cached(folder)
    cached(folder)
    assert counted == ["a.yaml"]
    (package / "stages" / "node.py").write_text("xy")
    cached(folder)
    assert counted == ["a.yaml", "a.yaml"]
    (package / "stages" / "new.py").write_text("")
    cached(folder)
    assert counted == ["a.yaml"] * 3


def test_problems_of_all_specs_come_at_once_and_are_not_cached(folder: Folder) -> None:
    folder.write("format: 1\nname: a\ntargets: {w: {kind: fetsch}}\n", "specs/a.yaml")
    folder.write("", "specs/b.yaml")
    with pytest.raises(SpecError) as error:
        cached(folder, "specs/a.yaml", "specs/b.yaml", "specs/none.yaml")
    assert [(p.file, p.code) for p in error.value.problems] == [
        ("specs/a.yaml", "E-SPEC-KIND"),
        ("specs/b.yaml", "E-SPEC-EMPTY"),
        ("specs/none.yaml", "E-SPEC-FILE"),
    ]
    assert not (folder.root / "cache").exists()


def test_two_specs_of_one_name_are_refused(folder: Folder) -> None:
    folder.write(CHAIN, "specs/a.yaml")
    folder.write(CHAIN, "specs/b.yaml")
    for _ in range(2):  # also when both come from the cache
        with pytest.raises(SpecError) as error:
            cached(folder, "specs/a.yaml", "specs/b.yaml")
        assert [(p.code, p.file) for p in error.value.problems] == [("E-SPEC-DUPNAME", "specs/b.yaml")]


def test_a_cached_project_loads_no_parser_and_no_model(tmp_path: Path) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "a.yaml").write_text("format: 1\nname: a\ntargets: {c: {kind: command, command: [ls]}}\n")
    code = """
import sys
from pathlib import Path
from ingot.core.spec_cache import load_graphs
graphs = load_graphs(Path("."), [Path("specs/a.yaml")], Path("cache"))
heavy = [name for name in ("pydantic", "ruamel.yaml", "ingot.core.stage", "ingot.stages.command", "torch", "numpy")
         if name in sys.modules]
print(graphs[0].nodes[0].id, heavy)
"""
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0].startswith("a:c ['pydantic', 'ruamel.yaml', 'ingot.core.stage', 'ingot.stages.command'")
    assert "torch" not in runs[0]
    assert runs[1] == "a:c []\n"
