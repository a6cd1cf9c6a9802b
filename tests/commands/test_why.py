"""``doit why``: every form of explanation, through the real command."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ingot.commands.screen import Screen
from ingot.commands.why import Why
from ingot.core.key import key_of
from ingot.core.lookup import place_text
from ingot.core.statement import build_statement
from projectkit import Sandbox
from recordkit import copied, object_of, receipts, registry_of, simple, writable

ROWS = [{"prompt": f"question {number}", "completion": f"answer {number * 7919}"} for number in range(30)]
DATA = """targets:
  rows:
    kind: dataset
    sources: [{path: ../rows.jsonl}]
    dedup: null
    min_chars: 2
  model:
    kind: command
    command: [sh, -c, 'cp {data}/train.jsonl {out}/w']
    from: {data: rows}
  small:
    kind: command
    command: [sh, -c, 'cat {model}/w > {out}/s']
    from: {model: model}
    matrix: {env: [{one: {X: '1'}}, {two: {X: '2'}}]}
"""


def write_rows(sandbox: Sandbox, rows: list[dict[str, str]]) -> None:
    sandbox.file("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data_once(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    sandbox = Sandbox.make(tmp_path_factory.mktemp("data"))
    write_rows(sandbox, ROWS)
    sandbox.spec(DATA)
    sandbox.ok()
    return sandbox


@pytest.fixture
def data(data_once: Sandbox, tmp_path: Path) -> Sandbox:
    """rows → model → small@one, small@two; built."""
    return copied(data_once, tmp_path)


def why(sandbox: Sandbox, target: str) -> dict[str, Any]:
    (item,) = sandbox.json("why", target)["targets"]
    return dict(item)


def rebuilt_with(source: Sandbox, folder: Path, target: str, **changes: Any) -> Sandbox:
    """A project with the spec of ``source`` whose log holds one build: that of ``target``, with some fields changed."""
    sandbox = Sandbox.make(folder)
    shutil.copytree(source.root / "specs", sandbox.root / "specs", dirs_exist_ok=True)
    shutil.copy(source.root / "rows.jsonl", sandbox.root)
    receipt = {name: value for name, value in receipts(source)[target].items() if name not in ("origin", "index")}
    receipt |= changes
    registry_of(sandbox).append([build_statement(receipt | {"key": key_of(receipt["key_parts"])})])
    return sandbox


def line_of(sandbox: Sandbox, text: str, name: str = "s") -> int:
    lines = (sandbox.root / "specs" / f"{name}.yaml").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


# --- stale -------------------------------------------------------------------------------------------------------


def test_a_parameter_is_named_with_both_values_and_its_line(data: Sandbox) -> None:
    data.spec(DATA.replace("min_chars: 2", "min_chars: 3"))
    line = line_of(data, "min_chars")
    assert data.ok("why", "s:rows").splitlines()[0] == f"s:rows is stale: min_chars 2 → 3 (specs/s.yaml:{line})"
    (reason,) = why(data, "s:rows")["reasons"]
    assert reason == {
        "code": "params_changed",
        "detail": "min_chars 2 → 3",
        "where": {"file": "specs/s.yaml", "line": line},
        "note": None,
        "name": "min_chars",
        "before": 2,
        "after": 3,
    }


def test_a_parameter_that_left_the_spec_has_its_default_and_the_line_of_the_target(data: Sandbox) -> None:
    data.spec(DATA.replace("    min_chars: 2\n", ""))
    line = line_of(data, "  rows:")
    expected = f"s:rows is stale: min_chars 2 → 1 (not set: the default; specs/s.yaml:{line})"
    assert data.ok("why", "s:rows").splitlines()[0] == expected


def test_a_parameter_of_an_extended_spec_is_found_in_the_file_that_wrote_it(data: Sandbox) -> None:
    child = "format: 1\nname: child\nextends: s.yaml\ntargets:\n  rows:\n    max_chars: 900\n"
    data.spec(child, name="child")
    data.ok("child:rows")
    data.spec(DATA.replace("min_chars: 2", "min_chars: 3"))
    data.spec(child.replace("900", "800"), name="child")
    text = data.ok("why", "child:rows")
    assert f"max_chars 900 → 800 (specs/child.yaml:{line_of(data, 'max_chars', 'child')})" in text
    assert f"min_chars 2 → 3 (specs/s.yaml:{line_of(data, 'min_chars')})" in text
    assert "child:rows is stale, for 2 reasons:" in text


def test_the_value_of_a_matrix_is_found_in_its_list(data: Sandbox) -> None:
    matrix = "    matrix:\n      env:\n        - {one: {X: '1'}}\n        - {two: {X: '3'}}\n"
    data.spec(DATA[: DATA.index("    matrix:")] + matrix)
    first = data.ok("why", "s:small@two").splitlines()[0]
    assert first == f"s:small@two is stale: env.X 2 → 3 (specs/s.yaml:{line_of(data, '- {two')})"


def test_a_tool_and_a_revision_that_changed_are_named(data: Sandbox, tmp_path: Path) -> None:
    old = rebuilt_with(
        data, tmp_path / "old", "s:rows", key_parts=receipts(data)["s:rows"]["key_parts"] | {"tools": {"peft": "0.1"}}
    )
    assert old.ok("why", "s:rows").splitlines()[0] == "s:rows is stale: tool peft removed (was 0.1)"
    data.spec("targets:\n  t: {kind: command, command: [sh, -c, 'echo > {out}/o'], tools: {v: [cat, version]}}\n")
    data.file("version", "1.0")
    data.ok()
    data.file("version", "1.1")
    assert data.ok("why", "s:t").startswith(f"s:t is stale: tool v 1.0 → 1.1 (specs/s.yaml:{line_of(data, '  t:')})\n")
    parts = receipts(data)["s:t"]["key_parts"]
    older = rebuilt_with(data, tmp_path / "older", "s:t", key_parts=parts | {"revision": 0})
    expected = f"kind: revision 0 → {parts['revision']} (ingot builds it in another way now)"
    assert expected in older.ok("why", "s:t")


def test_another_kind_says_no_more_than_that(data: Sandbox) -> None:
    data.spec(DATA.replace("    matrix: {env: [{one: {X: '1'}}, {two: {X: '2'}}]}\n", ""))
    data.ok("s:small")
    line_before = "    kind: command\n    command: [sh, -c, 'cat {model}/w > {out}/s']\n    from: {model: model}\n"
    data.spec(DATA[: DATA.index("  small:")] + "  small:\n    kind: dataset\n    sources: [{path: ../rows.jsonl}]\n")
    assert line_before in DATA
    first = data.ok("why", "s:small")
    assert f"kind command → dataset (specs/s.yaml:{line_of(data, '  small:') + 1})" in first
    assert "sources" not in first


def test_a_seed_that_changed_has_its_line(data: Sandbox, tmp_path: Path) -> None:
    parts = receipts(data)["s:rows"]["key_parts"] | {"seed": 1}
    old = rebuilt_with(data, tmp_path / "old", "s:rows", key_parts=parts)
    assert "seed removed (was 1) (specs/s.yaml:3)" in old.ok("why", "s:rows")


def test_fewer_rows_are_counted(data: Sandbox) -> None:
    write_rows(data, ROWS[3:])
    data.ok("s:rows")
    text = data.ok("why", "s:model").splitlines()[0]
    assert text.startswith("s:model is stale: input rows changed: 3 rows fewer (")
    (reason,) = why(data, "s:model")["reasons"]
    assert (reason["code"], reason["name"]) == ("input_changed", "data")
    assert reason["before"]["target"] == reason["after"]["target"] == "s:rows"
    assert reason["before"]["digest"] != reason["after"]["digest"]
    assert reason["where"] is None


def test_as_many_other_rows_and_one_row_more(data: Sandbox) -> None:
    write_rows(data, [*ROWS[:-1], {"prompt": "question 29", "completion": "another"}])
    data.ok("s:rows")
    assert "input rows changed: as many rows, other content" in data.ok("why", "s:model")
    write_rows(data, [*ROWS, {"prompt": "more", "completion": "another"}])
    data.ok("s:rows")
    assert "input rows changed: 1 row more (" in data.ok("why", "s:model")


def test_other_inputs_are_compared_by_files_and_bytes(chain: Sandbox) -> None:
    before = chain.json("show", "s:a")["digest"]
    chain.spec("targets:\n" + simple("a", content="longer") + simple("b", depends="a"))
    chain.ok("s:a")
    after = chain.json("show", "s:a")["digest"]
    first = chain.ok("why", "s:b").splitlines()[0]
    assert first == f"s:b is stale: input a changed: 5 bytes more, in out.txt ({before[:12]} → {after[:12]})"


def test_an_input_that_is_wired_anew_has_its_line(chain: Sandbox) -> None:
    chain.spec("targets:\n" + simple("a") + simple("z", content="zz") + simple("b", depends="z"))
    chain.ok("s:z")
    first = chain.ok("why", "s:b").splitlines()[0]
    assert first.startswith("s:b is stale: input data is z now, was a: 1 bytes more, in out.txt (")
    assert first.endswith(f"(specs/s.yaml:{line_of(chain, '  b:')})")


def test_a_source_says_what_is_known_and_what_is_not(data: Sandbox) -> None:
    write_rows(data, ROWS[1:])
    lines = data.ok("why", "s:rows").splitlines()
    assert lines[0] == f"s:rows is stale: source rows.jsonl changed (specs/s.yaml:{line_of(data, 'sources')})"
    assert lines[1].startswith("  the file has other bytes: ")
    assert "git" not in lines[1], "the result was built outside of git"


def test_of_a_folder_only_that_something_changed_is_known_and_git_knows_more(sandbox: Sandbox) -> None:
    sandbox.spec(
        "targets:\n  t: {kind: command, command: [sh, -c, 'cat ../docs/* > {out}/o'], files: [../docs/*.txt]}\n"
    )
    sandbox.file("docs/a.txt", "a")
    sandbox.file(".gitignore", "cache/\n")
    sandbox.git("init", "-q")
    sandbox.git("add", "-A")
    sandbox.git("commit", "-q", "-m", "x")
    sandbox.ok()
    sandbox.file("docs/b.txt", "b")
    (reason,) = why(sandbox, "s:t")["reasons"]
    commit = sandbox.git("rev-parse", "HEAD")[:12]
    assert reason["code"] == "source_changed"
    assert reason["detail"] == "files docs/*.txt changed"
    assert reason["note"].startswith("a file of it was added, removed, renamed or changed; which one,")
    assert reason["note"].endswith(f"git diff --stat {commit} -- 'docs/*.txt' shows it")


def test_python_s_own_text_names_the_python_that_it_came_from(data: Sandbox, tmp_path: Path) -> None:
    data.spec(DATA.replace("{path: ../rows.jsonl}", "{python_stdlib: topics}"))
    data.ok("s:rows")
    receipt = receipts(data)["s:rows"]
    text = json.dumps(receipt["key_parts"]).replace("python_stdlib:", "python_stdlib:0", 1)
    parts = json.loads(text)
    source = parts["params"]["sources"][0]["python_stdlib"]
    source["source"] = source["source"][: len("python_stdlib:") + 64]
    environment = receipt["environment"] | {"python": "3.1.4"}
    old = rebuilt_with(data, tmp_path / "old", "s:rows", key_parts=parts, environment=environment)
    shown = old.ok("why", "s:rows")
    assert "source python_stdlib topics changed" in shown
    assert "the result's was 3.1.4" in shown


def test_a_source_that_came_and_one_that_went(data: Sandbox) -> None:
    data.file("more.jsonl", json.dumps(ROWS[0]) + "\n")
    data.spec(DATA.replace("[{path: ../rows.jsonl}]", "[{path: ../rows.jsonl}, {path: ../more.jsonl}]"))
    assert "sources[1] added: more.jsonl (specs/s.yaml:" in data.ok("why", "s:rows")
    data.ok("s:rows")
    data.spec(DATA.replace("min_chars: 2", "min_chars: 5"))
    text = data.ok("why", "s:rows")
    assert "sources[1] removed (was {" in text
    assert "min_chars 2 → 5" in text


# --- missing, damaged, forgotten -----------------------------------------------------------------------------------


def test_a_missing_artifact(chain: Sandbox) -> None:
    digest = receipts(chain)["s:b"]["digest"]
    shutil.rmtree(writable(object_of(chain, "s:b")))
    first = chain.ok("why", "s:b").splitlines()[0]
    assert first == f"s:b is stale: artifact missing: {digest[:12]} is not in the store any more"
    assert why(chain, "s:b")["reasons"][0]["code"] == "artifact_missing"


@pytest.fixture
def twins(sandbox: Sandbox) -> Sandbox:
    """a and b hold a file of the same three million bytes; b holds another file too."""
    make = "i=0; while [ $i -lt 300000 ]; do echo 123456789; i=$((i+1)); done > {out}/model.gguf"
    spec = f"targets:\n  a: {{kind: command, command: [sh, -c, {json.dumps(make)}]}}\n"
    spec += f"  b: {{kind: command, command: [sh, -c, {json.dumps(make + '; echo > {out}/z')}]}}\n"
    sandbox.spec(spec)
    sandbox.ok()
    return sandbox


def damage(sandbox: Sandbox, target: str, name: str, content: bytes, at: int) -> None:
    folder = writable(object_of(sandbox, target))
    with writable(folder / name).open("r+b") as file:
        file.seek(at)
        file.write(content)
    status = (folder / name).stat()
    os.utime(folder / name, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def test_the_first_damaged_byte_is_found_with_an_intact_copy(twins: Sandbox) -> None:
    damage(twins, "s:a", "model.gguf", b"\0\0", 1_048_576)
    first = twins.ok("why", "s:a").splitlines()[0]
    assert first == "s:a is stale: artifact damaged: model.gguf byte 1048576, compared with model.gguf of s:b"
    (reason,) = why(twins, "s:a")["reasons"]
    assert (reason["path"], reason["byte"]) == ("model.gguf", 1_048_576)


def test_a_copy_that_is_damaged_too_proves_nothing(twins: Sandbox) -> None:
    damage(twins, "s:a", "model.gguf", b"\0", 100)
    damage(twins, "s:b", "model.gguf", b"\0", 200)
    (reason,) = why(twins, "s:a")["reasons"]
    assert reason["byte"] is None
    assert "model.gguf has other content and the right size (no intact copy is at hand" in reason["detail"]


def test_a_truncated_file_ends_where_it_was_cut(twins: Sandbox) -> None:
    path = writable(writable(object_of(twins, "s:a")) / "model.gguf")
    os.truncate(path, 1000)
    (reason,) = why(twins, "s:a")["reasons"]
    assert reason["byte"] == 1000
    assert "(has 1000 bytes, not 3000000)" in reason["detail"]
    shutil.rmtree(writable(object_of(twins, "s:b")))
    (reason,) = why(twins, "s:a")["reasons"]
    assert "model.gguf has 1000 bytes, not 3000000 (no intact copy" in reason["detail"]


def test_a_file_too_many_and_one_too_few(twins: Sandbox) -> None:
    folder = writable(object_of(twins, "s:b"))
    (folder / "extra").write_text("x")
    (folder / "z").unlink()
    item = why(twins, "s:b")
    assert {(reason["code"], reason["path"]) for reason in item["reasons"]} == {
        ("artifact_damaged", "extra"),
        ("artifact_damaged", "z"),
    }
    assert "s:b is stale, for 2 reasons:" in twins.ok("why", "s:b")


def test_a_forgotten_target_says_so(chain: Sandbox) -> None:
    chain.ok("forget", "s:b")
    assert "s:b is stale: forgotten by request (doit forget)" in chain.ok("why", "s:b")


# --- waiting, never built, fresh, building ---------------------------------------------------------------------------


def test_a_chain_is_followed_to_its_root(data: Sandbox) -> None:
    data.spec(DATA.replace("min_chars: 2", "min_chars: 3"))
    expected = "s:small@one waits for model ← rows, which is stale: min_chars 2 → 3"
    assert data.ok("why", "s:small@one").startswith(expected)
    (root,) = why(data, "s:small@one")["waits_for"]
    assert root["chain"] == ["s:small@one", "s:model", "s:rows"]
    assert (root["target"], root["state"], root["reasons"][0]["name"]) == ("s:rows", "stale", "min_chars")


def test_several_roots_and_what_is_stale_by_itself(chain: Sandbox) -> None:
    three = "targets:\n" + simple("a") + simple("b", depends="a")
    join = "  c: {kind: command, command: [sh, -c, 'cat {x}/* {y}/* > {out}/o; echo %s'], from: {x: b, y: d}}\n"
    chain.spec(three + simple("d") + join % 1)
    chain.ok()
    chain.spec(three.replace("echo x", "echo y", 1) + simple("d", content="dd") + join % 2)
    lines = chain.ok("why", "s:c").splitlines()
    assert lines[0] == "s:c waits for 2 targets:"
    assert lines[1].startswith("  b ← a, which is stale: command[2] ")
    assert lines[2].startswith("  d, which is stale: command[2] ")
    assert lines[3].startswith("  besides, it is stale by itself: command[2] ")
    item = why(chain, "s:c")
    assert [root["target"] for root in item["waits_for"]] == ["s:a", "s:d"]
    assert [reason["code"] for reason in item["reasons"]] == ["params_changed"]


def test_never_built(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + simple("a") + simple("b", depends="a"))
    assert sandbox.ok("why", "s:a") == "s:a is stale: never built\n"
    assert sandbox.ok("why", "s:b") == "s:b waits for a, which is stale: never built\n"
    assert not (sandbox.root / "registry").exists()


def test_a_fresh_target_says_since_when_by_which_entry_and_why_it_was_built(chain: Sandbox) -> None:
    place = place_text(chain.json("show", "s:b"))
    lines = chain.ok("why", "s:b").splitlines()
    assert lines[0].startswith("s:b is fresh since 2")
    assert f"(entry {place}): built in 0." in lines[0]
    assert lines[1] == "  why it was built: it had never been built"
    chain.spec("targets:\n" + simple("a", content="longer") + simple("b", depends="a"))
    chain.ok()
    assert "why it was built: input a changed: 5 bytes more, in out.txt" in chain.ok("why", "s:b")
    chain.ok("-a", "s:b")
    assert "built again on request, or because its bytes were gone or damaged; it gave the same bytes" in chain.ok(
        "why", "s:b"
    )


def test_found_again_and_taken_again(chain: Sandbox) -> None:
    first = place_text(chain.json("show", "s:a"))
    old = "targets:\n" + simple("a") + simple("b", depends="a")
    chain.spec(old.replace("echo x", "echo y", 1))
    chain.ok()
    chain.spec(old)
    text = chain.ok("why", "s:a")
    assert text.startswith("s:a is fresh: an earlier result fits again: built 2")
    assert f"as s:a ({first})" in text
    assert why(chain, "s:a")["reasons"][0]["code"] == "found_again"
    chain.ok()
    text = chain.ok("why", "s:a")
    assert ": an earlier result was taken again\n" in text
    assert f"(entry {first})" in text
    item = why(chain, "s:a")["result"]
    assert item["built_index"] < item["index"]


def test_a_twin_names_the_target_that_built_it(chain: Sandbox) -> None:
    chain.spec((chain.root / "specs/s.yaml").read_text().replace("name: s\n", "name: twin\n"), name="twin")
    assert "an earlier result fits again: built 2" in chain.ok("why", "twin:a")
    chain.ok("twin")
    assert "as s:a, of the same content" in chain.ok("why", "twin:a")


def test_what_another_process_builds_is_being_built(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + simple("a"))
    (item,) = sandbox.json("plan")["targets"]
    locks = sandbox.root / "cache" / "locks"
    locks.mkdir(parents=True)
    with (locks / f"{item['key']}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert why(sandbox, "s:a")["state"] == "building"
        assert sandbox.ok("why", "s:a").startswith("s:a is being built now by another doit: never built")


def test_names_that_mean_nothing_or_no_more(chain: Sandbox) -> None:
    done = chain.doit("why", "s:aa")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("E-TARGET")
    assert chain.doit("why").returncode == 2
    chain.spec("targets:\n" + simple("a"))
    done = chain.doit("why", "s:b")
    assert done.returncode == 2
    assert "s:b is in no spec any more" in done.stderr
    assert "doit show s:b" in done.stderr


def test_a_matrix_is_explained_instance_by_instance(data: Sandbox) -> None:
    found = data.json("why", "s:small")["targets"]
    assert [item["target"] for item in found] == ["s:small@one", "s:small@two"]
    assert data.ok("why", "s:small").count(" is fresh since ") == 2


def test_the_steps_of_a_report_are_explained_by_their_own_names(sandbox: Sandbox) -> None:
    sandbox.spec(
        "targets:\n" + simple("data") + simple("one") + simple("two", content="two") + "  report:\n"
        "    kind: report\n    from: {data: data, candidates: [one, two]}\n"
    )
    (item,) = sandbox.json("why", "s:report")["targets"]
    assert item["target"] == "s:report"
    assert {root["target"] for root in item["waits_for"]} == {"s:data", "s:one", "s:two"}
    (item,) = sandbox.json("why", "s:report.one")["targets"]
    assert item["target"] == "s:report.one"
    done = sandbox.doit("diff", "s:report.one", "s:report.two")
    assert done.returncode == 1
    line = next(line for line in done.stdout.splitlines() if line.startswith("from.candidate"))
    assert line.split() == ["from.candidate", "one", "two", f"specs/s.yaml:{line_of(sandbox, '  report:')}"]


def test_a_source_that_cannot_be_read_is_named(data: Sandbox) -> None:
    (data.root / "rows.jsonl").unlink()
    what = "the source 'rows.jsonl' cannot be read: no such file or directory"
    first = data.ok("why", "s:rows").splitlines()[0]
    assert first == f"s:rows is stale: {what} (specs/s.yaml:{line_of(data, '  rows:')})"
    assert data.ok("why", "s:small@one").startswith(f"s:small@one waits for model ← rows, which is stale: {what}")
    data.spec(DATA.replace("from: {data: rows}\n", "from: {data: rows}\n    files: [../gone.txt]\n"))
    (reason,) = why(data, "s:model")["reasons"]
    assert reason["code"] == "source_missing"
    assert "'gone.txt' cannot be read" in reason["detail"]


def test_lines_are_broken_between_words_on_a_narrow_terminal(chain: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    whole = chain.ok("why", "s:a", "s:b").split()
    stream = Terminal()
    monkeypatch.chdir(chain.root)
    for name, value in {**chain.env, "COLUMNS": "40"}.items():
        monkeypatch.setenv(name, value)
    assert Why().run(Screen(stream), {"json": False}, ["s:a", "s:b"]) == 0
    assert max(map(len, stream.getvalue().splitlines())) <= 40
    assert stream.getvalue().split() == whole
