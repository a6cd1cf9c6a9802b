"""``doit diff``: targets, entries, digests and exports, through the real command."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ingot.core.lookup import place_text
from projectkit import DOIT, Sandbox
from recordkit import append, copied, receipts, simple, writable

VARIANTS = (
    "targets:\n" + simple("a") + "  v: {kind: command, from: {data: a}, "
    "command: [sh, -c, 'echo $X > {out}/x; cat {data}/out.txt > {out}/same; echo > {out}/only$X'], "
    "matrix: {env: [{one: {X: '1'}}, {two: {X: '22'}}]}}\n"
)


@pytest.fixture(scope="module")
def variants_once(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    sandbox = Sandbox.make(tmp_path_factory.mktemp("variants"))
    sandbox.spec(VARIANTS)
    sandbox.ok()
    return sandbox


@pytest.fixture
def variants(variants_once: Sandbox, tmp_path: Path) -> Sandbox:
    """a → v@one, v@two, built."""
    return copied(variants_once, tmp_path)


def diff(sandbox: Sandbox, one: str, other: str, code: int = 1) -> dict[str, Any]:
    """What ``--json`` prints; the exit code must be ``code``."""
    done = sandbox.doit("diff", one, other, "--json")
    assert done.returncode == code, done.stderr
    return dict(json.loads(done.stdout))


def shown(sandbox: Sandbox, one: str, other: str, code: int = 1) -> str:
    done = sandbox.doit("diff", one, other)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def metric(value: float, interval: tuple[float, float] | None = None) -> dict[str, Any]:
    known = {"value": value, "unit": "nats/token", "method": "measured", "n": 10}
    return known if interval is None else known | {"interval": list(interval)}


def test_two_instances_differ_in_spec_files_and_metrics(variants: Sandbox) -> None:
    data = diff(variants, "s:v@one", "s:v@two")
    assert data["equal"] is False
    assert [(item["name"], item["before"], item["after"]) for item in data["spec"]] == [("env.X", "1", "22")]
    assert [(item["code"], item["name"]) for item in data["parts"]] == [("params_changed", "env.X")]
    assert data["files"] == [
        {"path": "only1", "change": "removed", "size_before": 1, "size_after": None},
        {"path": "only22", "change": "added", "size_before": None, "size_after": 1},
        {"path": "x", "change": "changed", "size_before": 2, "size_after": 3},
    ]
    (bytes_,) = [item for item in data["metrics"] if item["name"] == "bytes"]
    assert (bytes_["before"]["value"], bytes_["after"]["value"], bytes_["difference"]) == (5, 6, 1)
    assert data["inputs"] == []
    assert (data["a"]["target"], data["b"]["target"]) == ("s:v@one", "s:v@two")


def test_a_person_reads_tables(variants: Sandbox) -> None:
    text = shown(variants, "s:v@one", "s:v@two")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "spec, as it is now:" in lines
    assert "env.X 1 22 specs/s.yaml:6" in lines
    assert "removed only1 1 B" in lines
    assert "added only22 1 B" in lines
    assert "changed x 2 B 3 B" in lines
    assert "bytes 5 6 +1 (+20 %) B" in lines
    assert "what the results depend on:" not in lines, "the spec already says it"
    assert lines[-1] == "different: other bytes"


def test_a_result_equals_itself_by_every_name(variants: Sandbox) -> None:
    receipt = variants.json("show", "s:a")
    origin, index, digest = receipt["origin"], receipt["index"], receipt["digest"]
    short = origin.removeprefix("ingot.local/")
    variants.file("a.json", json.dumps(receipt))
    names = [digest, digest[:8], f"{origin}/{index}", f"{short}:{index}", f"{short[:4]}/{index}", "a.json", "./a.json"]
    for name in names:
        data = diff(variants, "s:a", name, 0)
        assert data["equal"] is True, name
        assert data["b"]["digest"] == digest
    assert shown(variants, "s:a", digest, 0).endswith("equal: the same key, the same bytes, the same metrics\n")


def test_the_place_that_why_prints_is_understood(variants: Sandbox) -> None:
    place = place_text(variants.json("show", "s:v@two"))
    assert place in variants.ok("why", "s:v@two")
    assert diff(variants, "s:v@two", place, 0)["equal"]


def test_two_builds_of_a_target_by_their_entries(chain: Sandbox) -> None:
    first = place_text(chain.json("show", "s:b"))
    chain.spec("targets:\n" + simple("a", content="longer") + simple("b", depends="a"))
    chain.ok()
    second = place_text(chain.json("show", "s:b"))
    data = diff(chain, first, second)
    assert data["spec"] == [], "an entry has no spec of today"
    assert [item["name"] for item in data["inputs"]] == ["data"]
    text = shown(chain, first, second)
    assert "inputs:" in text
    assert "5 bytes more, in out.txt" in text
    # a selected entry names the result that was taken again
    chain.spec("targets:\n" + simple("a") + simple("b", depends="a"))
    chain.ok()
    (again,) = [entry for entry in chain.entries("selected") if entry["target"] == "s:b"]
    assert diff(chain, first, place_text(again), 0)["equal"]


def test_metrics_stand_side_by_side_with_their_intervals(chain: Sandbox) -> None:
    parts = receipts(chain)["s:b"]["key_parts"]
    one = {"nll": metric(2.0, (1.9, 2.1)), "flat": metric(1.5), "gone": metric(3)}
    other = {"nll": metric(2.5, (2.4, 2.6)), "flat": metric(1.5), "zero": metric(0)}
    append(chain, "s:b", target="s:one", key_parts=parts | {"seed": 1}, metrics=one)
    append(chain, "s:b", target="s:two", key_parts=parts | {"seed": 2}, metrics=other)
    lines = [" ".join(line.split()) for line in shown(chain, "s:one", "s:two").splitlines()]
    assert "nll 2 [1.9, 2.1] 2.5 [2.4, 2.6] +0.5 (+25 %) nats/token" in lines
    assert "flat 1.5 1.5 = nats/token" in lines
    assert "gone 3 – nats/token" in lines
    assert "zero – 0 nats/token" in lines
    assert "seed 1 2" in lines
    assert lines[-1] == "different, and the bytes are the same"
    pairs = {item["name"]: item for item in diff(chain, "s:one", "s:two")["metrics"]}
    assert (pairs["nll"]["difference"], pairs["nll"]["equal"]) == (0.5, False)
    assert (pairs["flat"]["difference"], pairs["flat"]["equal"]) == (0.0, True)
    assert (pairs["gone"]["after"], pairs["gone"]["difference"]) == (None, None)


def test_a_metric_alone_makes_a_difference(chain: Sandbox) -> None:
    append(chain, "s:b", target="s:one", metrics={"nll": metric(2.0)})
    append(chain, "s:b", target="s:two", metrics={"nll": metric(2.1)})
    assert shown(chain, "s:one", "s:two").endswith("the same key and bytes; see what differs above\n")


def test_the_environment_is_shown_and_makes_no_difference(chain: Sandbox) -> None:
    receipt = receipts(chain)["s:b"]
    append(chain, "s:b", target="s:one")
    append(
        chain,
        "s:b",
        target="s:two",
        environment=receipt["environment"] | {"threads": 99, "python": "3.99"},
        git={"commit": "c" * 40, "clean": True},
        timings=receipt["timings"] | {"wall_s": 61.0, "peak_rss_bytes": 5_000_000},
    )
    text = shown(chain, "s:one", "s:two", 0)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert f"threads {receipt['environment']['threads']} 99" in lines
    assert f"python {receipt['environment']['python']} 3.99" in lines
    assert "git commit not known cccccccccccc" in lines
    assert any(line.startswith("wall_s") and line.endswith("1 min 01 s") for line in lines)
    assert any(line.startswith("peak_rss_bytes") and line.endswith("5.0 MB") for line in lines)
    assert diff(chain, "s:one", "s:two", 0)["equal"] is True


def test_the_same_key_with_other_bytes_is_told(chain: Sandbox) -> None:
    append(chain, "s:b", target="s:one")
    append(chain, "s:b", target="s:two", digest="d" * 64, files=receipts(chain)["s:a"]["files"])
    text = shown(chain, "s:one", "s:two")
    assert text.endswith("the same key gave other bytes: it is device dependent with these parameters\n")


def test_targets_of_two_specs_compare_what_the_specs_say(variants: Sandbox) -> None:
    text = (variants.root / "specs/s.yaml").read_text().replace("name: s\n", "name: other\n")
    variants.spec(text.replace("{data: a}", "{data: z}").replace("  a: {", "  z: {"), name="other")
    data = diff(variants, "s:v@one", "other:v@one")
    assert [(item["name"], item["before"], item["after"]) for item in data["spec"]] == [("from.data", "a", "z")]
    lines = [" ".join(line.split()) for line in shown(variants, "s:v@one", "other:v@one").splitlines()]
    assert "from.data a z specs/s.yaml:6 | specs/other.yaml:6" in lines
    assert lines[-1] == "other:v@one: never built, so only specs were compared: different"


def test_a_value_that_only_one_spec_sets_says_so(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + simple("a") + "  b: {kind: command, command: [sh, x], env: {Y: '1'}}\n")
    lines = [" ".join(line.split()) for line in shown(sandbox, "s:a", "s:b").splitlines()]
    assert "env.Y – 1 specs/s.yaml:5 (not set) | specs/s.yaml:6" in lines


def test_an_export_of_another_checkout(variants: Sandbox, tmp_path: Path) -> None:
    theirs = Sandbox.make(tmp_path / "theirs")
    theirs.spec(VARIANTS.replace("'22'", "'33'"))
    theirs.ok()
    receipt = theirs.json("show", "s:v@two")
    variants.file("theirs.json", json.dumps(receipt))
    data = diff(variants, "s:v@two", "theirs.json")
    assert [(item["name"], item["after"]) for item in data["parts"]] == [("env.X", "33")]
    assert {item["path"] for item in data["files"]} == {"only22", "only33", "x"}
    # nothing but the key parts
    variants.file("parts.json", json.dumps(receipt["key_parts"]))
    data = diff(variants, "s:v@two", "parts.json")
    assert [(item["name"], item["after"]) for item in data["parts"]] == [("env.X", "33")]
    assert data["files"] == data["metrics"] == []
    text = shown(variants, "s:v@two", "parts.json")
    assert "file: key parts of kind command" in text
    assert text.endswith("only key parts were compared: different\n")
    # the line of their log, which is an in-toto statement
    (log,) = theirs.root.glob("registry/*/log.jsonl")
    variants.file("line.json", log.read_text().splitlines()[receipt["index"]])
    assert diff(variants, "theirs.json", "line.json", 0)["equal"]


def test_inputs_are_compared_by_digest_where_only_key_parts_are_known(chain: Sandbox) -> None:
    receipt = chain.json("show", "s:b")
    parts = receipt["key_parts"]
    chain.file("parts.json", json.dumps(parts | {"inputs": {"data": "sha256:" + "e" * 64}}))
    line = next(line for line in shown(chain, "s:b", "parts.json").splitlines() if line.startswith("input data"))
    assert line.split() == ["input", "data", receipt["inputs"]["data"]["digest"][:12], "e" * 12]


def test_files_are_compared_outside_a_project(variants: Sandbox, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(json.dumps(variants.json("show", f"s:v@{name}")))
    done = subprocess.run(
        [DOIT, "diff", "one.json", "two.json"],
        cwd=tmp_path,
        env=variants.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "env.X" in done.stdout
    done = subprocess.run(
        [DOIT, "diff", "one.json", "s:a"], cwd=tmp_path, env=variants.env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("E-PROJECT: this folder is in no ingot project, and s:a is no file")


def test_a_bad_spec_does_not_hide_the_log(variants: Sandbox) -> None:
    variants.spec("targets:\n  a: {kind: nonsense}\n")
    data = diff(variants, "s:v@one", "s:v@two")
    assert data["spec"] == []
    assert data["parts"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "it is not JSON"),
        ("[]", "it is not a JSON object"),
        ('{"a": 1, "a": 2}', "it is not JSON: duplicate key"),
        ("{}", "it holds neither a receipt nor key parts"),
        ('{"_type": "https://in-toto.io/Statement/v1"}', "an entry is not a build statement"),
        ("[" * 100_000, "it is not JSON"),
        ('{"key_parts": ' + "[" * 70 + "]" * 70 + "}", "nested deeper than 64 levels"),
        ('{"key_parts": {"params": 1e999}}', "a number that is not finite"),
    ],
)
def test_a_file_that_is_no_export_is_refused(chain: Sandbox, content: str, why: str) -> None:
    chain.file("x.json", content)
    done = chain.doit("diff", "s:a", "x.json", "--json")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("E-EXPORT: x.json is no export of ingot: ")
    assert why in done.stderr


def test_a_receipt_of_another_form_is_refused(chain: Sandbox) -> None:
    receipt = chain.json("show", "s:a")
    for broken in (
        receipt | {"timings": {}},
        receipt | {"files": [{"path": "x"}]},
        receipt | {"inputs": [1]},
        receipt | {"metrics": {"x": 1}},
        receipt | {"metrics": {"x": receipt["metrics"]["bytes"] | {"interval": [1]}}},
        receipt | {"metrics": {"x": receipt["metrics"]["bytes"] | {"value": True}}},
        receipt | {"key_parts": {"format": 1, "kind": 1}},
        receipt | {"key_parts": receipt["key_parts"] | {"programs": 1}},
        receipt | {"target": 1},
        receipt | {"git": None},
        receipt | {"index": "x"},
    ):
        chain.file("x.json", json.dumps(broken))
        done = chain.doit("diff", "s:a", "x.json")
        assert done.returncode == 3, done.stderr
        assert done.stderr.startswith("E-EXPORT"), done.stderr


def test_wrong_use(variants: Sandbox) -> None:
    for arguments, code in (
        (["s:a"], "E-USAGE"),
        (["s:a", "s:b", "s:c"], "E-USAGE"),
        (["s:a", "s:v"], "E-TARGET: 's:v' names several targets"),
        (["s:a", "s:aa"], "E-TARGET: nothing is known of 's:aa'\n  hint: did you mean s:a"),
        (["s:a", "zzz"], "E-TARGET: nothing is known of 'zzz'\n  hint: give a target (spec:target)"),
        (["s:a", "0123456"], "E-TARGET"),
        (["s:a", f"{place_text(variants.json('show', 's:a')).partition('/')[0]}/99"], "E-TARGET"),
        (["s:a", f"{place_text(variants.json('show', 's:a')).partition('/')[0]}/0"], "E-ENTRY"),
    ):
        done = variants.doit("diff", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), (arguments, done.stdout)
        assert done.stderr.startswith(code), done.stderr


def test_an_ambiguous_digest_and_an_ambiguous_log_are_listed(chain: Sandbox, tmp_path: Path) -> None:
    digests = ["ab" * 4 + f"{number}" * 56 for number in (1, 2)]
    for number, digest in enumerate(digests):
        append(chain, "s:b", target=f"s:n{number}", digest=digest)
    done = chain.doit("diff", "s:a", "abababab")
    assert done.returncode == 2
    assert done.stderr.startswith("E-DIGEST: 2 artifacts' digests start with abababab")
    assert all(digest in done.stderr for digest in digests)
    # clones without the key begin logs of their own until two of them start with the same digit
    shutil.rmtree(chain.home)
    for number in range(16):
        append(chain, "s:b", target=f"s:m{number}")
        shutil.rmtree(chain.home)
    names = [path.name for path in (chain.root / "registry").iterdir()]
    assert len(names) == 17
    twice = next(name[0] for name in names if sum(other[0] == name[0] for other in names) > 1)
    done = chain.doit("diff", "s:a", f"{twice}/1")
    assert done.returncode == 2
    assert "logs start with" in done.stderr


def test_a_log_that_was_altered_explains_nothing(chain: Sandbox) -> None:
    digest = chain.json("plan")["targets"][1]["digest"]
    (log,) = chain.root.glob("registry/*/log.jsonl")
    text = log.read_bytes()
    assert b"echo x" in text
    writable(log).write_bytes(text.replace(b"echo x", b"echo z"))
    for arguments in (("diff", "s:a", digest), ("plan", "s:a"), ("why", "s:a")):
        done = chain.doit(*arguments)
        assert (done.returncode, done.stdout) == (5, "")
        assert done.stderr.startswith("E-REG-ROOT")
