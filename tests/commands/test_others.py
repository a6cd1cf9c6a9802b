"""``doit audit``, ``doit new``, ``doit schema``, ``doit doctor`` and ``doit report`` as a person runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from projectkit import Sandbox
from recordkit import append, object_of, publish, simple, writable

# --- audit -------------------------------------------------------------------------------------------------------


def test_a_clean_audit(chain: Sandbox) -> None:
    data = chain.json("audit")
    assert data | {"bytes": 0} == {
        "format": 1, "ok": True, "entries": 3, "objects": 2, "bytes": 0, "absent": 0, "evicted": 0, "metrics": 2,
        "problems": [], "notes": [],
    }  # fmt: skip
    assert chain.ok("audit").endswith("no problem found\n")


def test_an_audit_of_nothing_says_so(sandbox: Sandbox) -> None:
    assert sandbox.ok("audit").endswith("no problem found, for there is no log that could have one\n")
    assert sandbox.ok("audit", "--sample", "5%").endswith("no result is here and up to date: none was sampled\n")


def test_a_damaged_artifact_is_exit_4_and_doit_mends_it(chain: Sandbox) -> None:
    path = writable(object_of(chain, "s:a") / "out.txt")
    path.write_bytes(b"y\n")
    done = chain.doit("audit", "--json")
    assert done.returncode == 4
    data = json.loads(done.stdout)
    assert data["ok"] is False
    (problem,) = data["problems"]
    assert set(problem) == {"code", "where", "detail"}
    text = chain.doit("audit")
    assert text.returncode == 4
    assert "artifact_damaged" in text.stdout
    assert "cache/quarantine" in text.stdout
    assert path.read_bytes() == b"y\n", "an audit repairs nothing"
    chain.ok()
    assert chain.json("audit")["ok"] is True
    assert list((chain.root / "cache/quarantine").iterdir()), "the damaged bytes are kept"


def test_an_altered_log_is_exit_5(chain: Sandbox) -> None:
    (log,) = (chain.root / "registry").glob("*/log.jsonl")
    log.write_bytes(log.read_bytes().replace(b'"s:a"', b'"s:z"', 1))
    done = chain.doit("audit", "--json")
    assert done.returncode == 5
    assert "root_mismatch" in {problem["code"] for problem in json.loads(done.stdout)["problems"]}
    assert "Traceback" not in done.stderr
    done = chain.doit("history")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("E-REG-ROOT")


def test_a_log_that_is_gone_is_exit_5(chain: Sandbox) -> None:
    (folder,) = (chain.root / "registry").iterdir()
    folder.rename(chain.root / "elsewhere")
    done = chain.doit("audit", "--json")
    assert done.returncode == 5
    assert "log_missing" in {problem["code"] for problem in json.loads(done.stdout)["problems"]}


# --- new and schema ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["model", "command"])
def test_a_starter_is_a_valid_commented_spec(sandbox: Sandbox, kind: str) -> None:
    text = sandbox.ok("new", "mine", f"--kind={kind}")
    assert "doit plan mine" in text
    spec = (sandbox.root / "specs/mine.yaml").read_text()
    assert spec.count("#") > 5
    assert "name: mine\n" in spec
    assert "NAME" not in spec
    assert {item["target"].partition(":")[0] for item in sandbox.json("plan")["targets"]} == {"mine"}


def test_the_command_starter_builds(sandbox: Sandbox) -> None:
    sandbox.ok("new", "mine", "--kind", "command")
    sandbox.ok()
    assert (sandbox.root / "cache/latest/mine/total/total.txt").read_text() == "100\n"


def test_new_never_overwrites(sandbox: Sandbox) -> None:
    sandbox.spec("targets: {}\n", name="mine")
    before = (sandbox.root / "specs/mine.yaml").read_text()
    done = sandbox.doit("new", "mine")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("E-EXISTS: specs/mine.yaml exists already")
    assert (sandbox.root / "specs/mine.yaml").read_text() == before


@pytest.mark.parametrize("name", ["Mine", "plan", "../mine", "a b", "-x", "a/b", "a:b"])
def test_a_name_that_cannot_be_one_writes_nothing(sandbox: Sandbox, name: str) -> None:
    done = sandbox.doit("new", "--", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("E-")
    assert list((sandbox.root / "specs").iterdir()) == []


def test_an_unknown_starter_names_those_that_there_are(sandbox: Sandbox) -> None:
    done = sandbox.doit("new", "mine", "--kind=modle")
    assert done.returncode == 2
    assert "'model', 'command'" in done.stderr


def test_the_schema_names_every_kind(sandbox: Sandbox) -> None:
    from ingot.core.stage import kinds

    text = sandbox.ok("schema")
    assert json.loads(text) == sandbox.json("schema")
    assert all(f'"{kind}"' in text for kind in kinds())


# --- doctor ------------------------------------------------------------------------------------------------------


def test_nothing_missing_is_exit_0(chain: Sandbox) -> None:
    data = chain.json("doctor")
    assert data["ok"] is True
    assert {"specs", "python", "disk", "memory", "registry", "git"} <= {check["name"] for check in data["checks"]}
    assert "nothing to build" in chain.ok("doctor")


def test_a_missing_program_is_exit_1_with_a_fix(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n  a: {kind: command, command: [x], tools: {nope: [no-such-program-x, -v]}}\n")
    done = sandbox.doit("doctor")
    assert done.returncode == 1
    assert "not on PATH, for s:a" in done.stdout
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    at = lines.index("program no-such-program-x missing not on PATH, for s:a")
    assert lines[at + 1].startswith("fix: install no-such-program-x")
    data = json.loads(sandbox.doit("doctor", "--json").stdout)
    assert data["ok"] is False


def test_git_is_looked_at(chain: Sandbox) -> None:
    def git() -> dict[str, str]:
        (found,) = [check for check in chain.json("doctor")["checks"] if check["name"] == "git"]
        return dict(found)

    assert git()["state"] == "note"
    chain.git("init", "-q")
    assert "conflict on ingot.lock" in git()["detail"]
    chain.file(".gitattributes", "ingot.lock merge=union\n")
    assert "no commit yet" in git()["detail"]
    chain.git("commit", "-q", "--allow-empty", "-m", "x")
    assert git()["state"] == "ok"
    chain.file(".gitignore", "registry/\n")
    assert "ignored" in git()["detail"]


# --- report ------------------------------------------------------------------------------------------------------


def row(candidate: str, perplexity: float) -> dict[str, Any]:
    metric = {"value": perplexity, "unit": "1", "method": "exp of nll", "n": 9}
    size = {"value": 1000, "unit": "B", "method": "size of the weight files"}
    return {
        "candidate": candidate, "container": "hf", "precision": "float32",
        "metrics": {"perplexity": metric, "bytes": size}, "not_measured": {},
    }  # fmt: skip


@pytest.fixture
def reported(chain: Sandbox) -> Sandbox:
    """A report over a (the reference) and b, recorded as its kind does."""
    a, b = (chain.json("show", name)["digest"] for name in ("s:a", "s:b"))
    report = {"format": 1, "data": a, "reference": a, "rows": [row(a, 12.5), row(b, 11.25)], "settings": {}}
    digest, files = publish(chain, {"report.json": json.dumps(report).encode()})
    inputs = {
        "reference": {"target": "s:a", "digest": a},
        "candidates": [{"target": "s:b", "digest": b}],
    }
    listed = [record.to_dict() for record in files]
    append(chain, "s:b", target="s:report", kind="report", digest=digest, files=listed, inputs=inputs, metrics={})
    return chain


@pytest.mark.parametrize("name", [[], ["s"], ["s:report"]])
def test_a_report_is_shown_with_names(reported: Sandbox, name: list[str]) -> None:
    text = reported.ok("report", *name)
    assert "a (reference)" in text
    assert "11.250" in text
    assert reported.ok("report", *name, "--markdown").startswith("# Report")
    (found,) = reported.json("report", *name)["reports"]
    assert found["target"] == "s:report"
    assert sorted(found["names"].values()) == [["a"], ["b"]]
    assert len(found["report"]["rows"]) == 2


def test_what_is_no_report_is_exit_2(reported: Sandbox) -> None:
    done = reported.doit("report", "s:a")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("E-NOT-BUILT: no report was built for 's:a'")


def test_a_damaged_report_is_exit_4_and_not_shown(reported: Sandbox) -> None:
    path = writable(object_of(reported, "s:report") / "report.json")
    path.write_text(path.read_text().replace("11.25", "10.25"))
    done = reported.doit("report")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("E-OBJECT-DAMAGED")
    assert Path(path).is_file(), "a reading command moves nothing"


def test_a_report_that_is_gone_hides_no_other(reported: Sandbox) -> None:
    report = (object_of(reported, "s:report") / "report.json").read_bytes()
    digest, files = publish(reported, {"report.json": report + b"\n"})
    listed = [record.to_dict() for record in files]
    append(reported, "s:report", target="old:report", digest=digest, files=listed)
    shutil.rmtree(writable(object_of(reported, "old:report")))
    done = reported.doit("report")
    assert done.returncode == 0
    assert "a (reference)" in done.stdout
    assert done.stderr == "note: old:report is not in the store: its spec is gone\n"
    assert [found["target"] for found in reported.json("report")["reports"]] == ["s:report"]
    named = reported.doit("report", "old")
    assert named.returncode == 4
    assert "doit old:report" not in named.stderr
    assert "(its spec is gone)" in reported.ok("show", "old:report")


def test_a_report_shows_its_gates(reported: Sandbox) -> None:
    assert "gate" not in reported.ok("report")
    text = (reported.root / "specs/s.yaml").read_text()
    reported.spec(text + simple("report") + "gates:\n  report.bytes: {max: 5}\n")
    append(reported, "s:report", metrics={"bytes": {"value": 7, "unit": "B", "method": "counted"}})
    assert reported.ok("report").endswith("\ngate: report.bytes ≤ 5: FAIL at 7\n")
    assert "## Gates\n\n- report.bytes ≤ 5: FAIL at 7\n" in reported.ok("report", "--markdown")
    (found,) = reported.json("report")["reports"]
    limit = {"max": 5, "bound": "value"}
    (gate,) = found["gates"]
    assert {name: gate[name] for name in ("gate", "limit", "value", "verdict")} == {
        "gate": "report.bytes",
        "limit": limit,
        "value": 7,
        "verdict": "fail",
    }
    reported.spec("targets: [\n")
    assert "gate" not in reported.ok("report"), "the report can be read although the spec is bad"
