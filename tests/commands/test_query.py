"""``doit query`` through doit itself: what satisfies, what was not measured, what does not compare, from where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chainkit import Chains, number
from ingot.core.query_text import Condition, Order, conditions, order_of, parse
from ingot.errors import UsageError
from projectkit import Sandbox


def metrics(kl: float, size: int, speed: float | None) -> dict[str, Any]:
    found = {"kl_divergence": number(kl, kl / 2, kl * 2, unit="nats/token", n=9), "bytes": number(size, unit="B")}
    return found if speed is None else found | {"generation_tokens_per_second": number(speed, unit="tokens/s", n=3)}


@pytest.fixture
def chains(tmp_path: Path) -> Chains:
    """A base and four variants of it, for a test that measures more."""
    return made_in(tmp_path)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Chains:
    """The same, for tests that only ask."""
    return made_in(tmp_path_factory.mktemp("known"))


def made_in(folder: Path) -> Chains:
    """A base and four variants of it, one of which was timed nowhere."""
    made = Chains(Sandbox.make(folder))
    made.built("base", "convert", metrics={"cost": number(0.5, unit="USD")})
    for name, kind, kl, size, speed in (
        ("gguf@Q8_0", "gguf", 0.01, 200, 30.0),
        ("gguf@Q4_0", "gguf", 0.2, 100, 40.0),
        ("coreml@int4", "coreml", 0.04, 90, None),
        ("w8", "quantize", 0.001, 300, 12.0),
    ):
        made.built(name, kind, model="base", metrics={"cost": number(size / 100, unit="USD")})
        why = {"generation_tokens_per_second": "it runs on a Mac only"} if speed is None else {}
        made.evaluated(f"report.{name}", name, metrics(kl, size, speed), reference="base", not_measured=why)
    made.evaluated("report.base", "base", {"bytes": number(400, unit="B"), "cost": number(9.0, unit="USD")})
    made.commit()
    return made


def names(data: dict[str, Any]) -> list[str]:
    return [variant["targets"][0].partition(":")[2] for variant in data["variants"]]


def test_the_smallest_that_satisfies_comes_first(known: Chains) -> None:
    done = known.sandbox.doit("query", "smallest where kl_divergence <= 0.05 and generation_tokens_per_second >= 10")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["variant", "kl_divergence", "generation_tokens_per_second", "bytes", "Pareto", "from"]
    assert [line.split()[0] for line in lines[1:3]] == ["s:gguf@Q8_0", "s:w8"]
    assert "not measured: s:coreml@int4: generation_tokens_per_second (it runs on a Mac only)" in lines
    assert "not measured: s:base: kl_divergence (the others are compared with it)" in lines
    assert not any("Q4_0" in line for line in lines), "it was measured, and does not satisfy"


def test_each_number_says_from_which_entry_it_is(known: Chains) -> None:
    data = known.sandbox.json("query", "where kl_divergence <= 0.05 and cost < 9")
    (row,) = [row for row in data["variants"] if row["targets"] == ["s:w8"]]
    kl, cost = row["values"]["kl_divergence"], row["values"]["cost"]
    assert (kl["value"], kl["unit"], kl["interval"]) == (0.001, "nats/token", [0.0005, 0.002])
    assert kl["measured_by"]["target"] == "s:report.w8" and kl["measured_by"]["index"] == 9
    assert cost["measured_by"]["target"] == "s:w8", "what its own build cost, not what measuring it did"
    line = next(
        line for line in known.sandbox.ok("query", "where cost < 9 and bytes > 250").splitlines() if "s:w8" in line
    )
    assert "/9 (bytes)" in line and "/8 (cost)" in line


def test_flags_say_the_same(known: Chains) -> None:
    sandbox = known.sandbox
    text = sandbox.json("query", "smallest where kl_divergence<=0.05 and bytes <= 250 limit 1")
    flags = sandbox.json("query", "--where", "kl_divergence <= 0.05 and bytes<=250", "--order", "bytes", "--limit", "1")
    assert text == flags
    assert names(text) == ["coreml@int4"] and text["more"] == 1
    assert names(sandbox.json("query", "--order", "generation_tokens_per_second", "--where", "bytes < 250")) == [
        "gguf@Q4_0", "gguf@Q8_0",
    ]  # fmt: skip


def test_kinds_targets_and_specs(known: Chains) -> None:
    sandbox = known.sandbox
    assert names(sandbox.json("query", "where kind = gguf")) == ["gguf@Q8_0", "gguf@Q4_0"]
    assert names(sandbox.json("query", "where target = gguf@* and kl_divergence < 0.1")) == ["gguf@Q8_0"]
    assert names(sandbox.json("query", "where kind != gguf and kind != convert")) == ["coreml@int4", "w8"]
    assert len(names(sandbox.json("query", "--spec", "s"))) == 5
    done = sandbox.doit("query", "--spec", "t")
    assert (done.returncode, "E-TARGET: there is no spec 't'" in done.stderr) == (2, True)


def test_the_pareto_front(known: Chains) -> None:
    data = known.sandbox.json("query", "--pareto", "bytes,kl_divergence")
    assert {row["targets"][0]: row["pareto"] for row in data["variants"]} == {
        "s:gguf@Q8_0": True, "s:gguf@Q4_0": False, "s:coreml@int4": True, "s:w8": True,
    }  # fmt: skip
    assert [item["metric"] for item in data["not_measured"]] == ["kl_divergence"]
    assert data["pareto"] == [{"metric": "bytes", "better": "lower"}, {"metric": "kl_divergence", "better": "lower"}]


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ({"data": "ee" * 32}, "other data ("),
        ({"params": {"documents": 99}}, "documents 99 instead of 4"),
        ({"reference": "w8"}, "other reference ("),
        ({"revision": 9}, "revision 9 instead of 1"),
    ],
)
def test_a_number_that_was_measured_otherwise_is_marked(chains: Chains, other: dict[str, Any], word: str) -> None:
    chains.built("gguf@Q2_K", "gguf", model="base")
    chains.evaluated("else", "gguf@Q2_K", metrics(0.002, 50, 50.0), **{"reference": "base", **other})
    chains.commit()
    text = chains.sandbox.ok("query", "smallest where kl_divergence <= 0.1")
    row = next(line for line in text.splitlines() if "Q2_K" in line)
    assert row.split()[1:4] == ["0.002", "[1]", "50"] and "?" in row, "its size compares, its divergence does not"
    assert f"[1] measured otherwise: {word}" in text


def test_speed_on_another_machine_is_marked_and_its_divergence_is_not(chains: Chains) -> None:
    elsewhere = {"system": "Linux", "machine": "aarch64", "cpus": 64, "threads": 64, "network": "isolated"}
    chains.built("gguf@Q2_K", "gguf", model="base")
    chains.evaluated("else", "gguf@Q2_K", metrics(0.002, 50, 500.0), reference="base", environment=elsewhere)
    chains.commit()
    data = chains.sandbox.json("query", "fastest where kl_divergence <= 0.1")
    assert names(data)[0] == "gguf@Q2_K"
    values = data["variants"][0]["values"]
    assert [item["what"] for item in values["generation_tokens_per_second"]["differs"]] == ["hardware"]
    assert "aarch64" in values["generation_tokens_per_second"]["differs"][0]["here"]
    assert values["kl_divergence"]["differs"] == [] and data["variants"][0]["pareto"] is None


def test_a_number_that_compares_is_taken_before_a_newer_one_that_does_not(chains: Chains) -> None:
    chains.evaluated("else", "w8", metrics(5.0, 300, 1.0), reference="base", data="ee" * 32)
    chains.commit()
    value = next(row for row in chains.sandbox.json("query")["variants"] if row["targets"] == ["s:w8"])["values"]
    assert (value["kl_divergence"]["value"], value["kl_divergence"]["differs"]) == (0.001, [])


def test_what_was_measured_again_replaces_what_was_measured_before(chains: Chains) -> None:
    """Three of four were measured with other settings since: these count, although all were measured before."""
    for name in ("w8", "gguf@Q8_0", "coreml@int4"):
        again = metrics(0.03, 100, None)
        chains.evaluated(f"report.{name}", name, again, reference="base", params={"documents": 8})
    chains.commit()
    data = chains.sandbox.json("query", "where kl_divergence < 9")
    values = {row["targets"][0]: row["values"]["kl_divergence"] for row in data["variants"]}
    assert {name: (value["value"], bool(value["differs"])) for name, value in values.items()} == {
        "s:gguf@Q8_0": (0.03, False), "s:gguf@Q4_0": (0.2, True), "s:coreml@int4": (0.03, False), "s:w8": (0.03, False),
    }  # fmt: skip
    # Of all that was ever measured, what was measured of most is what compares.
    old = chains.sandbox.json("query", "where kl_divergence < 9", "--all")["variants"]
    assert not any(row["values"]["kl_divergence"]["differs"] for row in old)


def test_the_newest_result_of_each_target_or_all(chains: Chains) -> None:
    chains.built("w8", "quantize", model="base", digest="ab" * 32)
    chains.commit()
    found = chains.sandbox.json("query", "where kind = quantize")
    assert [row["digest"] for row in found["variants"]] == ["ab" * 32]
    found = chains.sandbox.json("query", "where kind = quantize", "--all")
    assert len(found["variants"]) == 2
    assert [item["targets"] for item in chains.sandbox.json("query", "where kl_divergence < 9")["not_measured"]] == [
        ["s:base"], ["s:w8"],
    ]  # fmt: skip


def test_tasks_by_their_name_or_by_the_metric_alone(chains: Chains) -> None:
    for name, value in (("w8", 0.7), ("gguf@Q8_0", 0.6)):
        score = {"exact_match": number(value, n=100)}
        chains.evaluated(f"report.{name}.gsm8k", name, score, kind="harness", reference="base")
    chains.evaluated("own", "w8", {"exact_match": number(0.1, n=10)}, kind="match", reference="base")
    chains.commit()
    sandbox = chains.sandbox
    assert names(sandbox.json("query", "best gsm8k.exact_match")) == ["w8", "gguf@Q8_0"]
    done = sandbox.doit("query", "best exact_match")
    assert done.returncode == 2
    assert "E-METRIC: several tasks measure 'exact_match'" in done.stderr and "own.exact_match" in done.stderr
    assert sandbox.json("query", "where gsm8k.exact_match > 0.65")["columns"] == ["gsm8k.exact_match", "bytes"]


def test_equal_bytes_are_one_variant(chains: Chains) -> None:
    chains.built("again", "quantize", model="base", digest=chains.digests["w8"])
    chains.commit()
    (row,) = [row for row in chains.sandbox.json("query")["variants"] if "s:w8" in row["targets"]]
    assert row["targets"] == ["s:w8", "s:again"]


def test_nothing_satisfies(known: Chains) -> None:
    done = known.sandbox.doit("query", "where kl_divergence < 0")
    assert done.returncode == 1
    assert "none of 5 variants satisfies that" in done.stdout


def test_without_a_log(sandbox: Sandbox) -> None:
    done = sandbox.doit("query")
    assert done.returncode == 1
    assert "no variant was built or measured yet" in done.stdout
    done = sandbox.doit("query", "where kl_divergence < 1")
    assert (done.returncode, "nothing was measured yet" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "where kl_divergense < 1",
            "E-METRIC: nothing has measured 'kl_divergense'\n  hint: did you mean kl_divergence",
        ),
        ("tiniest", "E-QUERY: column 1: a query starts with smallest, largest"),
        ("smallest whre kl < 1", "did you mean 'where'?"),
        ("where", "E-QUERY: column 6: here comes the name of a metric, or kind, spec or target; it ends here"),
        ("where bytes", "E-QUERY: column 12: after bytes comes one of <, <=, >, >=, = and !=; it ends here"),
        ("where bytes 5", "E-QUERY: column 13: after bytes comes one of"),
        ("where bytes < ", "E-QUERY: column 14: after < comes a value"),
        ("where bytes < many", "E-QUERY: column 15: here comes a number, not 'many'"),
        ("where bytes < nan", "here comes a number"),
        ("where bytes < 5 or bytes > 7", "E-QUERY: column 17: conditions are joined by 'and' alone, not 'or'"),
        ("where bytes < 5 bytes > 7", "E-QUERY: column 17: here comes 'and'"),
        ("where kind < gguf", "kind is compared with = and != alone"),
        ("best", "'best' needs the name of a metric"),
        ("best mood", "which way mood is better is not known"),
        ("smallest order bytes", "after 'order' comes 'by'"),
        ("smallest limit 0", "after 'limit' comes a count of at least 1"),
        ("where __import__('os').system('x') < 1", "E-QUERY: column 7"),
        ("order by kind", "variants are ordered by a metric"),
    ],
)
def test_a_mistake_is_one_error_with_its_place(known: Chains, text: str, words: str) -> None:
    done = known.sandbox.doit("query", text)
    assert done.returncode == 2
    assert words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--limit", "none"), "E-USAGE: --limit is a count"),
        (("--columns", "bytes,,kl"), "--columns: a name is missing"),
        (("--pareto", "bytes,mood"), "E-METRIC"),
        (("--order", "bytes sideways"), "E-QUERY: column 7"),
        (("smallest", "fastest"), "takes at most 1"),
    ],
)
def test_wrong_flags(known: Chains, arguments: tuple[str, ...], words: str) -> None:
    done = known.sandbox.doit("query", *arguments)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr


def test_the_grammar() -> None:
    found = parse(
        "largest kl_divergence where bytes <= 98MB and a.f1_lax ≥ 0.5 and kind = 'gg*' order by bytes desc limit 3"
    )
    assert found.conditions == (
        Condition("bytes", "<=", 98_000_000.0), Condition("a.f1_lax", ">=", 0.5), Condition("kind", "=", "gg*"),
    )  # fmt: skip
    assert (found.order, found.limit) == (Order("bytes", descending=True), 3)
    assert parse("").order is None
    assert parse("best top1_agreement").order == Order("top1_agreement", descending=True)
    assert parse("cheapest").order == Order("cost")
    assert order_of("kl_divergence") == Order("kl_divergence")
    assert order_of("kl_divergence:desc") == Order("kl_divergence", descending=True)
    assert conditions("bytes>=1e3")[0].value == 1000
    with pytest.raises(UsageError):
        conditions("bytes < 1 limit 3")


def test_a_reference_that_was_measured_by_its_own_logits_compares(chains: Chains) -> None:
    chains.built("logits", "logits", model="base")
    found, how = {"perplexity": number(9.0, 8.0, 10.0, n=9)}, {"documents": 5}
    chains.evaluated("other.base", "base", found, params=how, logits="logits")
    for name in ("w8", "gguf@Q8_0"):
        chains.evaluated(f"other.{name}", name, found, params=how, reference="logits")
    chains.commit()
    data = chains.sandbox.json("query", "where perplexity < 10")
    assert names(data) == ["base", "gguf@Q8_0", "w8"]
    assert [row["values"]["perplexity"]["differs"] for row in data["variants"]] == [[], [], []]
    text = chains.sandbox.ok("query", "where kl_divergence < 1")
    assert "not measured: s:base: kl_divergence (the others are compared with it)" in text
