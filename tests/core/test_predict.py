"""Predictions: from the builds most like a target, scaled by the size of its input, and never from nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ingot.core.graph import Node
from ingot.core.past import History, fingerprints
from ingot.core.plan import Planned
from ingot.core.predict import Prediction, Predictor, predict, source_text
from ingot.core.sources import SourceReader
from ingot.core.statcache import StatCache
from projectkit import Sandbox
from recordkit import append, receipts, simple

MB = 1_000_000


def digest(number: int) -> str:
    return f"{number:08x}" * 8


class Log:
    """A history built up of receipts, as the index does it."""

    def __init__(self) -> None:
        self.history = History()
        self._count = 0

    def built(self, target: str, size: int, *, of: str = "", **more: Any) -> str:
        """One build of ``size`` bytes, made of an artifact; gives the digest."""
        self._count += 1
        timings = {name: more.pop(name) for name in ("peak_scratch_bytes", "source_bytes") if name in more}
        made = {
            "kind": more.pop("kind", "prune"),
            "target": target,
            "digest": digest(self._count),
            "files": [{"size": size}],
            "inputs": {"model": {"digest": of}} if of else {},
            "key_parts": {"params": more.pop("params", {"sparsity": 0.5})},
            "timings": {"wall_s": more.pop("wall", 1.0), "peak_anon_bytes": more.pop("memory", 100)} | timings,
        }
        assert not more
        self.history.add(made)
        return str(made["digest"])

    def of(self, node: Node, size: int) -> Prediction | None:
        """What is predicted, from the history as the next process reads it."""
        return Predictor(History(json.loads(json.dumps(self.history.to_json())))).of(node, size)


def node(name: str = "pruned", *, kind: str = "prune", produces: str = "hf", **params: Any) -> Node:
    return Node(
        kind, 1, "deterministic", produces, params or {"sparsity": 0.5},
        spec="s", name=name, target=name, inputs={"model": ("base",)},
    )  # fmt: skip


def known(prediction: Prediction | None) -> Prediction:
    assert prediction is not None
    return prediction


def test_without_a_build_there_is_no_number() -> None:
    assert Log().of(node(), MB) is None
    log = Log()
    log.built("s:other", 5, kind="merge")
    assert log.of(node(), MB) is None


def test_the_memory_of_a_window_is_not_proportional_to_the_input() -> None:
    """A first build of a small model must not keep anybody from a large one."""
    log = Log()
    base = log.built("s:base", 10 * MB, kind="convert")
    log.built("s:pruned", 6 * MB, of=base, memory=30 * MB)
    windowed = replace(node(), windowed=True)
    assert known(log.of(windowed, 20 * MB)).peak_anon_bytes == 60 * MB
    assert known(log.of(windowed, 16_000 * MB)).peak_anon_bytes == 30 * MB + (1 << 30)
    assert known(log.of(node(), 16_000 * MB)).peak_anon_bytes == 48_000 * MB


def test_of_one_size_everything_is_proportional_to_the_input() -> None:
    log = Log()
    base = log.built("s:base", 10 * MB, kind="convert")
    log.built("s:pruned", 6 * MB, of=base, wall=2.0, memory=30 * MB, peak_scratch_bytes=MB)
    assert known(log.of(node(), 10 * MB)) == Prediction(2.0, 30 * MB, 6 * MB, MB, 1, "same_parameters")
    assert known(log.of(node(), 20 * MB)) == Prediction(4.0, 60 * MB, 12 * MB, 2 * MB, 1, "same_parameters")


def test_of_several_sizes_a_fixed_part_is_found() -> None:
    log = Log()
    for size in (10 * MB, 20 * MB, 40 * MB):
        base = log.built("s:base", size, kind="convert")
        log.built("s:pruned", size, of=base, wall=3 + size / MB, memory=500 * MB + size)
    found = known(log.of(node(), 80 * MB))
    assert found.wall_s == pytest.approx(83.0)
    assert found.peak_anon_bytes == pytest.approx(580 * MB)
    assert (found.bytes, found.n) == (80 * MB, 3)


def test_a_line_never_leaves_what_a_fixed_and_a_growing_part_allow() -> None:
    log = Log()
    for size, wall in ((10 * MB, 9.0), (20 * MB, 3.0)):
        base = log.built("s:base", size, kind="convert")
        log.built("s:pruned", size, of=base, wall=wall)
    # The larger one was quicker: a line would end below zero.
    assert known(log.of(node(), 1000 * MB)).wall_s == pytest.approx(6.0)


def test_one_odd_build_does_not_decide() -> None:
    log = Log()
    for wall in (1.0, 1.2, 90.0, 1.1):
        log.built("s:pruned", MB, wall=wall)
    assert known(log.of(node(), 0)).wall_s == pytest.approx(1.15)


def test_the_likest_builds_are_taken() -> None:
    log = Log()
    log.built("s:any", 1, params={"sparsity": 0.5, "method": "other"})
    assert known(log.of(node(method="wanda", sparsity=0.5), 0)).basis == "same_kind"
    log.built("s:like", 2, params={"method": "wanda", "sparsity": 0.1})
    assert known(log.of(node(method="wanda", sparsity=0.5), 0)).basis == "same_shape"
    log.built("s:pruned", 3, params={"method": "magnitude"})
    found = known(log.of(node(method="wanda", sparsity=0.5), 0))
    assert (found.basis, found.bytes) == ("same_target", 3)
    log.built("t:elsewhere", 4, params={"method": "wanda", "sparsity": 0.5})
    found = known(log.of(node(method="wanda", sparsity=0.5), 0))
    assert (found.basis, found.bytes, found.n) == ("same_parameters", 4, 1)


def test_a_program_says_nothing_of_another_program() -> None:
    log = Log()
    log.built("s:a", 9, kind="command", params={"command": ["cp"]})
    assert log.of(node("b", kind="command", produces="any", command=["mv"]), 0) is None
    assert known(log.of(node("b", kind="command", produces="any", command=["cp"]), 0)).bytes == 9


def test_the_newest_and_the_nearest_in_size_are_taken() -> None:
    log = Log()
    for number in range(8):
        log.built("s:pruned", number)
    found = known(log.of(node(), 0))
    assert (found.n, found.bytes) == (5, 5), "the newest five: 3, 4, 5, 6, 7"
    log = Log()
    for size in (1, 100):
        base = log.built("s:base", size * MB, kind="convert")
        for number in range(5):
            log.built(f"s:p{number}", size * MB, of=base, wall=float(size))
    assert known(log.of(node(), 90 * MB)).wall_s == pytest.approx(90.0)


def test_a_history_stays_small() -> None:
    log = Log()
    for _ in range(50):
        log.built("s:pruned", 1)
    assert len(list(log.history.of_kind("prune"))) == 6


def test_what_was_not_measured_is_not_predicted() -> None:
    log = Log()
    log.built("s:pruned", 7, memory=None, wall="soon")
    found = known(log.of(node(), 0))
    assert (found.wall_s, found.peak_anon_bytes, found.scratch_bytes, found.bytes) == (None, None, None, 7)


def test_a_build_whose_inputs_are_not_known_counts_as_it_was() -> None:
    log = Log()
    log.built("s:pruned", 7, of="f" * 64)
    log.built("s:data", 3, kind="dataset", params={"sources": [{"source": "file:" + "0" * 64}]})
    assert known(log.of(node(), 99)).bytes == 7
    assert known(log.of(node("data", kind="dataset", sources=[{"source": "tree:1"}]), 99)).bytes == 3


def test_the_size_of_sources_counts_as_input() -> None:
    log = Log()
    params: dict[str, Any] = {"sources": [{"source": "file:" + "0" * 64}]}
    log.built("s:data", 30, kind="dataset", params=params, source_bytes=10)
    assert known(log.of(node("data", kind="dataset", **params), 20)).bytes == 60


def test_fingerprints_leave_out_what_is_no_other_work() -> None:
    one = fingerprints("k", {"a": 1.0, "s": {"source": "file:1"}, "b": True, "l": [1, "x", None, 0.5]})
    same = fingerprints("k", {"l": (1, "x", None, 0.5), "b": True, "s": {"source": "tree:2"}, "a": 1})
    assert one == same
    other = fingerprints("k", {"a": 2, "s": {"source": "file:1"}, "b": True, "l": [3, "x", None, 0.5]})
    assert (other[0] == one[0], other[1]) == (False, one[1])
    assert fingerprints("k", {"b": True}) != fingerprints("k", {"b": False})


def test_a_waiting_target_is_predicted_from_its_inputs_prediction(sandbox: Sandbox) -> None:
    log = Log()
    base = log.built("s:base", 10 * MB, kind="convert", params={"to": "hf"})
    log.built("s:pruned", 5 * MB, of=base)
    first = Node("convert", 1, "deterministic", "hf", {"to": "hf"}, spec="s", name="base", target="base")
    plan = {"s:base": Planned(first, "stale"), "s:pruned": Planned(node(), "waiting")}
    reader = SourceReader(sandbox.root, StatCache(sandbox.root / "stat.json"))
    assert {name: known(found).bytes for name, found in predict(plan, plan, log.history, reader).items()} == {
        "s:base": 10 * MB,
        "s:pruned": 5 * MB,
    }
    assert known(predict(plan, plan, log.history, reader)["s:base"]).to_dict()["basis"] == "same_parameters"
    gone = ("/path", {"path": "gone.txt"}, "")
    missing = {**plan, "s:base": Planned(replace(first, sources=(gone,)), "stale")}
    assert predict(missing, plan, log.history, reader) == {"s:base": None, "s:pruned": None}, "the run will say so"
    nothing = predict(plan, plan, History(), reader)
    assert nothing == {"s:base": None, "s:pruned": None}
    unknown = Log()
    unknown.built("s:pruned", 5 * MB, of="f" * 64)
    assert predict(plan, plan, unknown.history, reader)["s:pruned"] is None, "its input's size is not known"


def test_words_for_where_it_comes_from() -> None:
    assert source_text(1, "same_kind") == "1 build of the same kind"
    assert Prediction(None, None, 1, None, 3, "same_parameters").source_text() == "3 builds with the same parameters"
    assert source_text(2, "another word") == "2 builds another word"


def test_the_size_of_an_input_and_of_sources_is_recorded_and_used(sandbox: Sandbox) -> None:
    sandbox.file("specs/in.txt", "x" * 1000)
    sandbox.spec(
        "targets:\n"
        "  a: {kind: command, files: [in.txt], command: [sh, -c, 'cat in.txt > {out}/o; cat in.txt > $TMPDIR/t']}\n"
        "  b: {kind: command, from: {data: a}, command: [sh, -c, 'cat {data}/o {data}/o > {out}/o']}\n"
    )
    sandbox.ok()
    timings = receipts(sandbox)["s:a"]["timings"]
    assert timings["source_bytes"] == 1000
    assert timings["peak_scratch_bytes"] >= 2000, "the snapshot of the source, and what the stage left in its scratch"
    sandbox.file("specs/in.txt", "x" * 3000)
    a, b = (item["predicted"] for item in sandbox.json("plan")["targets"])
    assert (a["bytes"], b["bytes"]) == (3000, 6000)
    assert (a["n"], a["basis"], a["scratch_bytes"]) == (1, "same_parameters", 3 * timings["peak_scratch_bytes"])


def test_a_small_file_that_was_fetched_keeps_nobody_from_a_large_one(sandbox: Sandbox) -> None:
    sandbox.file("specs/in.txt", "x" * 10)
    sandbox.spec("targets:\n  a: {kind: fetch, path: in.txt}\n")
    sandbox.ok()
    took = receipts(sandbox)["s:a"]["timings"]["peak_anon_bytes"]
    with (sandbox.root / "specs" / "in.txt").open("r+b") as file:
        file.truncate(30_000_000)
    (item,) = sandbox.json("plan")["targets"]
    assert item["predicted"]["peak_anon_bytes"] == took + (1 << 30)


def test_a_source_that_is_missing_makes_no_prediction(sandbox: Sandbox) -> None:
    sandbox.file("specs/in.txt", "x")
    sandbox.spec("targets:\n  a: {kind: command, files: [in.txt], command: [cp, in.txt, '{out}/o']}\n")
    sandbox.ok()
    (sandbox.root / "specs" / "in.txt").unlink()
    (item,) = sandbox.json("plan")["targets"]
    assert (item["predicted"], item["reasons"][0]["code"]) == (None, "source_missing")


def test_a_build_records_what_was_predicted_when_the_run_started(chain: Sandbox) -> None:
    assert "predicted" not in receipts(chain)["s:a"], "the first build had nothing to be predicted from"
    before = receipts(chain)["s:b"]["timings"]
    chain.ok("forget")
    told = {item["target"]: item["predicted"] for item in chain.json("plan")["targets"]}
    chain.ok()
    found = receipts(chain)
    assert {name: receipt["predicted"] for name, receipt in found.items()} == told
    assert told["s:b"]["wall_s"] == before["wall_s"]
    assert chain.ok("audit")


def test_an_entry_without_a_prediction_stays_valid(chain: Sandbox) -> None:
    append(chain, "s:a")
    chain.spec("targets:\n" + simple("a", content="other") + simple("b", depends="a"))
    chain.ok()
    chain.ok("audit")
    history = {(entry["target"], entry["predicted"] is None) for entry in chain.entries("build")}
    assert history == {("s:a", True), ("s:b", True), ("s:a", False), ("s:b", False)}
