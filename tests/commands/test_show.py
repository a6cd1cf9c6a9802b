"""``doit show``, ``doit history``, ``doit forget`` and ``from ingot import registry``: what the log says."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from ingot import registry
from ingot.commands.screen import Screen
from ingot.commands.show import Show
from ingot.core.project import Project
from ingot.core.statement import decision_statement
from ingot.errors import UsageError
from ingot.view.parities import compared
from ingot.view.runtimes import of_baseline, side_by_side
from projectkit import Sandbox, counted
from recordkit import append, object_of, registry_of, simple, writable

FIELDS = [
    "target",
    "kind",
    "revision",
    "key",
    "key_parts",
    "digest",
    "inputs",
    "files",
    "metrics",
    "environment",
    "timings",
    "built_at",
    "origin",
    "index",
    "git",
]


def test_the_receipt_has_the_documented_fields(chain: Sandbox) -> None:
    receipt = chain.json("show", "s:b")
    assert set(FIELDS) <= receipt.keys()
    assert receipt["inputs"] == {"data": {"target": "s:a", "digest": chain.json("show", "s:a")["digest"]}}
    (file,) = receipt["files"]
    assert set(file) == {"path", "size", "sha256", "xxh3_128"}
    assert receipt["metrics"]["bytes"] | {"method": ""} == {"value": 4, "unit": "B", "method": "", "n": 1}
    assert receipt["built_at"] == receipt["timings"]["finished"]
    assert receipt["present"] is True


def test_a_person_reads_the_place_and_the_figures(chain: Sandbox) -> None:
    text = chain.ok("show", "s:b")
    assert "artifact     cache/latest/s/b" in text
    assert "sum of the sizes of the files written" in text
    assert "no commit" in text
    assert (chain.root / "cache/latest/s/b/out.txt").is_file()


def test_an_artifact_that_is_gone_is_said_to_be(chain: Sandbox) -> None:
    shutil.rmtree(writable(object_of(chain, "s:b")))
    assert chain.json("show", "s:b")["present"] is False
    assert "not present in the store or damaged (build it again: doit s:b)" in chain.ok("show", "s:b")


def test_runtimes_that_were_measured_together_stand_side_by_side() -> None:
    def metrics(prefix: str, unit: float) -> dict[str, dict[str, float]]:
        names = ("first_token_s", "token_p50_s", "token_p95_s", "token_p99_s")
        rates = ("prompt_tokens_per_second", "generation_tokens_per_second")
        values = dict.fromkeys(names, unit) | dict.fromkeys(rates, 1.5 / unit)
        return {f"{prefix}{name}": {"value": value} for name, value in values.items()}

    notes = {"runtime": {"runtime": "llama.cpp", "baselines": {"transformers": "transformers in float32"}}}
    found = {**metrics("", 0.0123456), **metrics("transformers_", 0.5), "run_memory": {"value": 2e6}}
    _titles, rows, _right = side_by_side({"metrics": found, "notes": notes})
    assert rows == [
        ("llama.cpp", *["12.3 ms"] * 4, *["122 tokens/s"] * 2, "2.0 MB"),
        ("transformers", *["500 ms"] * 4, *["3.00 tokens/s"] * 2, ""),
    ]
    told = {"metrics": found, "notes": notes}
    shown = [name for name in found if not of_baseline(name, told)]
    assert "first_token_s" in shown
    assert not any(name.startswith("transformers") for name in shown), "the table has them"
    assert side_by_side({"metrics": found})[1] == side_by_side({"metrics": {}, "notes": notes})[1] == []


def test_what_was_compared_stands_beside_its_limits(chain: Sandbox) -> None:
    def text(tokens: int, cosine: float) -> dict[str, float]:
        found = {"cosine": cosine, "cosine_mean": cosine, "kl": 1 - cosine, "max_difference": 10 * (1 - cosine)}
        return {**found, "tokens": tokens, "top1_agreement": cosine}

    runs = {"prefill": {"texts": [text(1, 0.5), text(3, 1.0)]}, "decode": {"texts": [text(4, 1.0)]}}
    limits = {"cosine": None, "cosine_mean": 0.7, "top1": 0.35, "kl": 2.0, "max_difference": None}
    exact = {**limits, "cosine": 0.999, "cosine_mean": -1.0}
    notes = {
        "parity": {"runs": runs, "limits": limits},
        "execution": {"runs": {"only": runs["decode"]}, "limits": exact},
    }
    _titles, rows, _right = compared({"notes": {"parity": notes}})
    assert rows == [
        # means are over positions, not over texts
        ("parity", "prefill", "0.5", "0.875", "87.5%", "0.125", "5"),
        ("parity", "decode", "1", "1", "100.0%", "0", "0"),
        ("", "limit", "–", "≥ 0.7", "≥ 35.0%", "≤ 2", "–"),
        ("execution", "only", "1", "1", "100.0%", "0", "0"),
        ("", "limit", "≥ 0.999", "–", "≥ 35.0%", "≤ 2", "–"),
    ]
    assert compared({"notes": {"parity": {"of": "another version"}}})[1] == compared({})[1] == []
    append(chain, "s:b", notes={"parity": notes, "runtime": {"threads": 2, "hardware": {"processor": "Z80"}}})
    shown = chain.ok("show", "s:b")
    assert "compared with its source:\n" in shown
    assert shown.partition("notes:\n")[2].partition("\n\n")[0] == "runtime  Z80, 2 threads"


def test_what_a_stage_told_beside_numbers_is_shown(chain: Sandbox) -> None:
    assert "notes:" not in chain.ok("show", "s:b")
    fallbacks = {f"blk.{number}.ffn_down.weight": "Q4_K -> F16" for number in range(7)}
    told = {"fallbacks": fallbacks, "limits": ["llama.cpp attends to all positions"], "reuse": "all was encoded"}
    append(chain, "s:b", notes=told)
    lines = chain.ok("show", "s:b").partition("notes:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [
        *(["fallbacks", f"blk.{number}.ffn_down.weight: Q4_K -> F16"] for number in range(5)),
        ["fallbacks", "and 2 more (doit show --json has all)"],
        ["limits", "llama.cpp attends to all positions"],
        ["reuse", "all was encoded"],
    ]
    assert chain.json("show", "s:b")["notes"] == told


def test_never_built_is_not_unknown(chain: Sandbox) -> None:
    chain.spec((chain.root / "specs/s.yaml").read_text() + simple("c"))
    done = chain.doit("show", "s:c", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("E-NOT-BUILT: s:c was never built\n")
    assert "doit s:c" in done.stderr


def test_a_name_of_several_targets_lists_them(chain: Sandbox) -> None:
    done = chain.doit("show", "s")
    assert done.returncode == 2
    assert "s:a" in done.stderr
    assert "s:b" in done.stderr


def test_a_target_that_left_the_spec_is_still_shown(chain: Sandbox) -> None:
    chain.spec("targets:\n" + simple("a"))
    assert chain.json("show", "s:b")["target"] == "s:b"
    shutil.rmtree(writable(object_of(chain, "s:b")))
    assert "(its spec declares it no longer)" in chain.ok("show", "s:b")


def test_what_another_target_built_says_so(chain: Sandbox) -> None:
    text = (chain.root / "specs/s.yaml").read_text()
    chain.spec(text.replace("name: s\n", "name: twin\n"), name="twin")
    chain.ok("twin")
    receipt = chain.json("show", "twin:a")
    assert (receipt["target"], receipt["built_as"]) == ("twin:a", "s:a")
    assert "the same content, built once" in chain.ok("show", "twin:a")


def test_history_is_complete_and_in_order(chain: Sandbox) -> None:
    entries = chain.json("history")
    assert sorted(entry["type"] for entry in entries) == ["build", "build", "origin"]
    assert [entry["index"] for entry in entries] == [0, 1, 2]
    for entry in entries:
        assert {"origin", "index", "type", "target", "digest", "time"} <= entry.keys()
    (origin,) = [entry for entry in entries if entry["type"] == "origin"]
    assert origin["target"] is None


def test_history_of_a_target_and_of_a_spec(chain: Sandbox) -> None:
    assert [entry["target"] for entry in chain.json("history", "s:b")] == ["s:b"]
    assert [entry["target"] for entry in chain.json("history", "s")] == ["s:a", "s:b"]
    chain.spec((chain.root / "specs/s.yaml").read_text() + simple("ab"))
    assert chain.json("history", "s:ab") == []


def test_history_says_what_changed(chain: Sandbox) -> None:
    chain.spec("targets:\n" + simple("a", content="y") + simple("b", depends="a"))
    chain.ok()
    chain.spec("targets:\n" + simple("a") + simple("b", depends="a"))
    chain.ok()
    text = chain.ok("history")
    assert "first build" in text
    assert "command[2] echo" in text
    assert "input data changed" in text
    assert "found again, built 20" in text


def test_history_compares_with_all_builds_of_the_key(chain: Sandbox) -> None:
    first, changed = "targets:\n" + simple("a"), "targets:\n" + simple("a", content="y")
    chain.spec(changed)
    chain.ok()
    chain.spec(first)
    chain.ok("forget", "s:a")
    chain.ok()
    row = chain.ok("history", "s:a").splitlines()[-1]
    assert ": the same bytes as on 20" in row
    assert "other bytes" not in row


def test_history_knows_what_was_restored_last(chain: Sandbox) -> None:
    for content in ("y", "x", "z"):
        chain.spec("targets:\n" + simple("a", content=content))
        chain.ok()
    *_, restored, last = chain.ok("history", "s:a").splitlines()
    assert "  restored  " in restored
    assert "echo x" in last
    assert "echo y" not in last


def test_history_names_the_target_under_which_a_result_was_built(chain: Sandbox) -> None:
    chain.spec("format: 1\nname: twin\nseed: 1\ntargets:\n" + simple("a"), name="twin")
    assert "restored: found again, built 20" in chain.ok("plan", "twin")
    assert chain.ok("plan", "twin").splitlines()[1].endswith(" as s:a")
    chain.ok("twin")
    assert chain.ok("history", "twin").splitlines()[-1].endswith(" as s:a")


@pytest.mark.parametrize(("bound", "end"), [("value", ""), ("upper", " (upper end of the interval)")])
def test_history_names_the_end_of_the_interval_that_a_gate_judged(chain: Sandbox, bound: str, end: str) -> None:
    fields = {
        "target": "s:a", "digest": "ab" * 32, "gate": "a.x", "metric": "x", "value": 0.0063,
        "limit": {"max": 0, "bound": bound}, "reference": None,
    }  # fmt: skip
    registry_of(chain).append([decision_statement("gate-failed", fields)])
    assert f"a.x is 0.0063{end}, gate: max 0\n" in chain.ok("history")


def test_forgotten_targets_are_built_again(chain: Sandbox) -> None:
    assert chain.ok("forget", "s:b") == "forgetting s:b\n"
    assert chain.states() == {"s:a": "fresh", "s:b": "stale"}
    chain.ok()
    assert [entry["target"] for entry in chain.json("history", "s")] == ["s:a", "s:b", "s:b"]
    assert "built again: the same bytes as on 20" in chain.ok("history", "s:b")
    assert set(chain.states().values()) == {"fresh"}


@pytest.mark.parametrize("arguments", [["s:b", "-s"], ["--all"], ["s"], ["s:*"], []])
def test_forget_takes_what_doit_takes(chain: Sandbox, arguments: list[str]) -> None:
    assert chain.ok("forget", *arguments) == "forgetting s:a\nforgetting s:b\n"


def test_forget_forgets_nothing_when_told_so_or_when_a_name_is_wrong(chain: Sandbox) -> None:
    chain.ok("forget", "--disable-default")
    assert chain.doit("forget", "s:a", "s:nope").returncode == 2
    assert set(chain.states().values()) == {"fresh"}


def test_programs_get_the_same_answers(chain: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.latest("s:b", chain.root) == chain.json("show", "s:b")
    assert registry.history(root=chain.root) == chain.json("history")
    assert registry.history("s:b", chain.root) == chain.json("history", "s:b")
    monkeypatch.chdir(chain.root / "specs")
    assert registry.latest("s:b")["target"] == "s:b"
    statements = [entry["statement"] for entry in registry.entries()]
    assert {statement["_type"] for statement in statements} == {"https://in-toto.io/Statement/v1"}
    with pytest.raises(UsageError, match=r"never built|no target"):
        registry.latest("s:c")


def test_specs_in_folders_below_are_known_and_a_bad_one_hides_no_other(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "a"))
    (sandbox.root / "specs/examples").mkdir()
    sandbox.spec("targets:\n" + counted(sandbox.root, "far"), "examples/e")
    sandbox.file(
        "specs/examples/e.yaml", (sandbox.root / "specs/examples/e.yaml").read_text().replace("examples/e", "e")
    )
    for bad in (False, True):
        if bad:
            sandbox.spec("targets: [\n", "bad")
        done = sandbox.doit("show", "e:far")
        assert (done.returncode, done.stderr) == (
            2,
            "E-NOT-BUILT: e:far was never built\n  hint: build it: doit e:far\n",
        )
        assert sandbox.doit("show", "s:a").stderr.startswith("E-NOT-BUILT")
        assert "did you mean e:far" in sandbox.doit("show", "e:fra").stderr


def test_a_receipt_with_gates_is_shown_from_one_reading(
    chain: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = chain.root / "specs/s.yaml"
    spec.write_text(spec.read_text() + "gates: {b.bytes: {max: 3}}\n")
    opened: list[Path] = []
    begin = Project.__init__

    def counting(self: Project, root: Path, graphs: Any) -> None:
        opened.append(root)
        begin(self, root, graphs)

    monkeypatch.setattr(Project, "__init__", counting)
    monkeypatch.chdir(chain.root)
    for name, value in chain.env.items():
        monkeypatch.setenv(name, value)
    assert Show().run(Screen(sys.stdout), {"json": False, "active": False}, ["s:b"]) == 0
    assert "gate: b.bytes ≤ 3: FAIL at 4" in capsys.readouterr().out
    assert len(opened) == 1
