"""Bad input: one clear error, the exit code as designed, no traceback, nothing built, and on it goes once mended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from projectkit import Sandbox, counted

BAD_SPECS = {
    "unknown field": ("targets:\n  a: {kind: command, command: [x], comand: 1}\n", "E-SPEC-FIELD", "did you mean"),
    "unknown kind": ("targets:\n  a: {kind: comand}\n", "E-SPEC-KIND", "command"),
    "missing target": ("targets:\n  a: {kind: command, command: [x], from: {m: aa}}\n", "E-SPEC-INPUT", "'aa'"),
    "cycle": (
        (
            "targets:\n  a: {kind: command, command: [x], from: {m: b}}\n"
            "  b: {kind: command, command: [x], from: {m: a}}\n"
        ),
        "E-SPEC-CYCLE",
        "a",
    ),
    "wrong role": ("targets:\n  a: {kind: fetch, path: x, from: {m: a}}\n", "E-SPEC-ROLE", "fetch"),
    "wrong type": ("targets:\n  a: {kind: command, command: 5}\n", "E-SPEC-TYPE", "command"),
    "duplicate key": ("targets:\n  a: {kind: command}\n  a: {kind: command}\n", "E-YAML-DUPKEY", "a"),
    "broken YAML": ("targets: [\n", "E-YAML-SYNTAX", ""),
    "empty file": ("format:", "E-SPEC", ""),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_a_bad_spec(sandbox: Sandbox, case: str) -> None:
    text, code, word = BAD_SPECS[case]
    path = sandbox.spec(text)
    if case == "empty file":
        path.write_text("")
    for command, status in (([], 3), (["list"], 3), (["plan"], 2), (["plan", "--json"], 2)):
        done = sandbox.doit(*command)
        output = done.stdout + done.stderr
        assert done.returncode == status, output
        assert "Traceback" not in output
        assert code in output
        assert word in output
        assert "specs/s.yaml:" in output
    assert not (sandbox.root / "registry").exists()
    assert not (sandbox.root / "cache" / "objects").exists()


def test_every_problem_of_every_spec_is_told_at_once(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n  a: {kind: nope}\n  b: {kind: command, command: [x], extra: 1}\n", "one")
    sandbox.spec("targets:\n  c: {kind: nada}\n", "two")
    done = sandbox.doit("plan")
    assert done.returncode == 2
    for place in ("specs/one.yaml:5", "specs/one.yaml:6", "specs/two.yaml:5"):
        assert place in done.stderr


def test_a_missing_source_stops_before_anything_is_built(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "a") + "  b: {kind: fetch, path: none.txt}\n")
    (bad,) = [item for item in sandbox.json("plan")["targets"] if item["target"] == "s:b"]
    assert (bad["state"], [reason["code"] for reason in bad["reasons"]]) == ("stale", ["source_missing"])
    assert "none.txt" in bad["reasons"][0]["detail"]
    done = sandbox.doit()
    output = done.stdout + done.stderr
    assert output.count("E-SOURCE") == 1
    assert "s:b needs it (specs/s.yaml:6)" in output
    assert sandbox.ran() == []
    done = sandbox.doit("s:b")
    assert done.returncode in {1, 2}
    assert "E-SOURCE" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    sandbox.file("specs/none.txt", "here now")
    sandbox.ok()


def test_a_wrong_digest_is_refused_and_mended(sandbox: Sandbox) -> None:
    sandbox.file("specs/x.txt", "hello")
    right = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    sandbox.spec(f"targets:\n  x: {{kind: fetch, path: x.txt, sha256: {'ab' * 32}}}\n" + counted(sandbox.root, "y"))
    done = sandbox.doit("-c")
    output = done.stdout + done.stderr
    assert done.returncode == 2
    assert output.count("E-FETCH-DIGEST") == 1
    assert right in output
    assert sandbox.states() == {"s:x": "stale", "s:y": "fresh"}
    sandbox.spec(f"targets:\n  x: {{kind: fetch, path: x.txt, sha256: {right}}}\n" + counted(sandbox.root, "y"))
    sandbox.ok()
    assert sandbox.ran() == ["y"]


def test_a_missing_package_is_named_before_the_first_stage(sandbox: Sandbox, tmp_path: Path) -> None:
    # A distribution hidden from the metadata is to ingot what one that is not installed is.
    hider = tmp_path / "hide" / "sitecustomize.py"
    hider.parent.mkdir()
    hider.write_text(
        "import importlib.metadata as m\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name == 'rensa': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
    )
    sandbox.extra_env["PYTHONPATH"] = str(hider.parent)
    sandbox.file("specs/rows.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    sandbox.spec(
        "targets:\n"
        + counted(sandbox.root, "first")
        + "  data: {kind: dataset, sources: [{path: rows.jsonl}], dedup: {threshold: 0.8}}\n"
    )
    done = sandbox.doit()
    output = done.stdout + done.stderr
    assert done.returncode == 2
    assert "E-MISSING-TOOL" in output
    assert "rensa" in output
    assert "pip install 'ingot[ml]'" in output
    assert sandbox.ran() == [], "nothing was started"


def test_a_full_disk_says_so_and_the_next_run_goes_on(sandbox: Sandbox) -> None:
    small = sandbox.root / "small"
    script = "head -c 100000 /dev/zero > {out}/x; echo ran >> " + str(sandbox.root / "ran.txt")
    full = "import os; open(r'{out}/x', 'wb').write(bytes(10)); os.write(os.open('/dev/full', 1), b'x')"
    guard = f'test -e {small} || exec python3 -c "{full}"; {script}'.replace('"', '\\"')
    sandbox.spec(f'targets:\n  big: {{kind: command, command: [bash, -c, "{guard}"]}}\n')
    done = sandbox.doit()
    assert done.returncode == 1
    assert "No space left on device" in (sandbox.root / "cache/logs/s/big.log").read_text()
    assert sandbox.states() == {"s:big": "stale"}
    small.touch()
    sandbox.ok()
    assert sandbox.ran() == ["ran"]


@pytest.mark.parametrize(
    "arguments",
    [["show", "s:nope"], ["show"], ["plan", "nope"], ["history", "nope:x"], ["plan", "--wrong"]],
    ids=" ".join,
)
def test_wrong_use_of_a_command(sandbox: Sandbox, arguments: list[str]) -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "a"))
    done = sandbox.doit(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


def test_outside_a_project(tmp_path: Path) -> None:
    sandbox = Sandbox.make(tmp_path)
    (sandbox.root / "dodo.py").unlink()
    done = sandbox.doit("plan")
    assert done.returncode == 2
    assert "E-PROJECT" in done.stderr


def test_an_edited_log_is_found_before_the_first_stage(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "a"))
    sandbox.ok()
    sandbox.ran()
    (log,) = (sandbox.root / "registry").glob("*/log.jsonl")
    log.write_bytes(log.read_bytes().replace(b'"value":2', b'"value":3'))
    sandbox.spec("targets:\n" + counted(sandbox.root, "a", content="other"))
    done = sandbox.doit()
    assert done.returncode == 3
    assert "E-REG" in done.stdout + done.stderr
    assert sandbox.ran() == [], "no stage ran for a result that could not be recorded"


def test_a_pinned_log_that_is_gone_is_told(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "a"))
    sandbox.ok()
    shutil.rmtree(sandbox.root / "registry")
    assert "is gone: restore it from git or a backup" in sandbox.ok()
    assert {problem["code"] for problem in json.loads(sandbox.doit("audit", "--json").stdout)["problems"]}


def test_the_end_of_a_failed_programs_output_is_shown(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n  a: {kind: command, command: [sh, -c, 'echo first; echo the reason >&2; exit 7']}\n")
    output = sandbox.doit().stdout
    assert "ended with status 7" in output
    assert "| the reason" in output


def test_git_never_takes_the_cache(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "a"))
    sandbox.ok()
    sandbox.git("init", "-q")
    sandbox.git("add", "-A")
    listed = sandbox.git("ls-files")
    assert "registry/" in listed
    assert "cache/" not in listed


def test_clean_says_what_it_does(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "a"))
    sandbox.ok()
    assert "remove the link cache/latest/s/a" in sandbox.ok("clean", "s:a")
    assert not (sandbox.root / "cache/latest/s/a").is_symlink()
