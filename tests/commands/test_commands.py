"""What all commands share: one clear message, an exit code, options in any place, no traceback."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

import pytest

from projectkit import DOIT, REPO, Sandbox, counted

VERBS = ("plan", "show", "history", "audit", "schema", "new", "doctor", "report", "forget")
READING = ("plan", "history", "audit", "doctor", "report")


def clear(done: subprocess.CompletedProcess[str]) -> str:
    """The message of a failed command: short, without a traceback, and nothing on stdout."""
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def test_every_command_file_is_an_entry_point() -> None:
    points = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["entry-points"]["doit.COMMAND"]
    files = {path.stem for path in (REPO / "src/ingot/commands").glob("*.py")} - {"__init__", "base", "screen"}
    assert set(VERBS) <= files == set(points)


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_help(sandbox: Sandbox, verb: str) -> None:
    assert "PURPOSE" in sandbox.ok("help", verb)


def test_help_can_be_asked_of_the_command_itself(sandbox: Sandbox) -> None:
    for arguments in (("gc",), ("registry", "proof"), ("audit", "--json")):
        assert sandbox.ok(*arguments, "--help").strip() == sandbox.ok("help", arguments[0]).strip()


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_option_is_one_message_and_exit_2(sandbox: Sandbox, verb: str) -> None:
    done = sandbox.doit(verb, "x", "--jsn")
    assert done.returncode == 2
    message = clear(done)
    assert message.startswith("E-USAGE: option --jsn not recognized\n")
    assert f"usage: doit {verb}" in message


@pytest.mark.parametrize(("verb", "arguments"), [("show", []), ("show", ["a", "b"]), ("new", []), ("audit", ["x"])])
def test_a_wrong_number_of_arguments_is_exit_2(sandbox: Sandbox, verb: str, arguments: list[str]) -> None:
    done = sandbox.doit(verb, *arguments)
    assert done.returncode == 2
    assert "E-USAGE" in clear(done)


@pytest.mark.parametrize(
    ("verb", "said"), [("audit", "takes no argument, not 1: x"), ("show", "takes at most 1 argument, not 2: x y")]
)
def test_what_is_too_much_is_named(sandbox: Sandbox, verb: str, said: str) -> None:
    assert f"doit {verb} {said}" in clear(sandbox.doit(verb, *said.partition(": ")[2].split()))


def test_an_argument_may_hold_an_equals_sign(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "a"))
    sandbox.ok()
    sandbox.ok("promote", "s:a", "--reason", "kl=0.02, as wanted")
    assert sandbox.entries("promote")[0]["reason"] == "kl=0.02, as wanted"
    # It is no variable that goes unnoticed.
    done = sandbox.doit("plan", "s=a")
    assert (done.returncode, clear(done).startswith("E-TARGET: there is no target 's=a'")) == (2, True)


@pytest.mark.parametrize("option", ["--output=", "--key=", "--artifact=", "--since="])
def test_an_option_without_a_value_is_refused(sandbox: Sandbox, option: str) -> None:
    done = sandbox.doit("registry", "verify", "file", option)
    assert done.returncode == 2
    assert clear(done).startswith(f"E-USAGE: option {option[:-1]} is empty\n")


@pytest.mark.parametrize("verb", ["plan", "show", "history", "report", "forget"])
def test_an_unknown_target_is_exit_2_with_the_nearest_name(sandbox: Sandbox, verb: str) -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "numbers"))
    done = sandbox.doit(verb, "s:nubmers", "--json") if verb != "forget" else sandbox.doit(verb, "s:nubmers")
    assert done.returncode == 2
    message = clear(done)
    assert message.startswith("E-TARGET: there is no target 's:nubmers'")
    assert "did you mean s:numbers?" in message


@pytest.mark.parametrize("verb", ["plan", "doctor", "forget"])
def test_a_bad_spec_is_exit_2_with_all_its_problems(sandbox: Sandbox, verb: str) -> None:
    sandbox.spec("targets:\n  a: {kind: comand}\n  b: {kind: command, command: [x], colour: red}\n")
    done = sandbox.doit(verb)
    assert done.returncode == 2
    message = clear(done)
    assert "specs/s.yaml:5:" in message
    assert "specs/s.yaml:6:" in message
    assert "did you mean 'command'?" in message


def test_the_log_can_be_read_although_a_spec_is_bad(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "a"))
    sandbox.ok()
    sandbox.spec("targets: [\n")
    assert sandbox.json("show", "s:a")["target"] == "s:a"
    assert sandbox.json("history")
    assert sandbox.json("audit")["ok"] is True


@pytest.mark.parametrize("verb", [*READING, "new x", "forget"])
def test_outside_a_project_it_says_so(tmp_path: Path, verb: str) -> None:
    done = subprocess.run([DOIT, *verb.split()], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert clear(done).startswith("E-PROJECT: ")
    assert list(tmp_path.iterdir()) == []


def test_commands_work_from_a_folder_below(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "a"))
    done = subprocess.run(
        [DOIT, "plan"], cwd=sandbox.root / "specs", env=sandbox.env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "s:a" in done.stdout


def test_an_empty_project_is_no_failure(sandbox: Sandbox) -> None:
    plan = sandbox.json("plan")
    assert (plan["format"], plan["targets"], plan["refused"]) == (1, [], [])
    assert plan["totals"] == {"targets": 0, "unknown": [], "wall_s": None, "costs": {}}
    assert sandbox.json("history") == []
    assert sandbox.json("audit")["ok"] is True
    assert "doit new" in sandbox.ok("plan")
    assert "nothing was built" in sandbox.ok("history")
    assert not (sandbox.root / "registry").exists(), "reading begins no log"


def test_a_reader_that_goes_away_is_no_traceback(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "a"))
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [DOIT, "schema"],
        cwd=sandbox.root,
        env=sandbox.env,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 141


def test_a_terminal_without_unicode_gets_text_and_programs_get_json(sandbox: Sandbox) -> None:
    sandbox.extra_env = {"PYTHONIOENCODING": "ascii"}
    sandbox.spec("targets:\n" + counted(sandbox.root, "a"))
    sandbox.ok()
    sandbox.spec("targets:\n" + counted(sandbox.root, "a", content="b"))
    assert "s:a" in sandbox.ok("plan")
    (item,) = sandbox.json("plan")["targets"]
    assert "→" in item["reasons"][0]["detail"]


def test_an_unreadable_place_is_one_message_and_exit_7(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "a"))
    (sandbox.root / "cache").write_text("a file where a folder should be")
    done = sandbox.doit("forget", "s:a")
    assert done.returncode == 7
    assert clear(done).startswith("E-IO: ")


def test_reading_commands_load_nothing_heavy(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "a"))
    sandbox.ok()
    sandbox.ok("plan")
    heavy = [
        "torch",
        "numpy",
        "transformers",
        "pydantic",
        "ruamel",
        "safetensors",
        "gguf",
        "llama_cpp",
        "coremltools",
        "rich",
    ]
    script = (
        "import sys; from doit.doit_cmd import DoitMain; code = DoitMain().run(sys.argv[1:]);"
        f"sys.exit(code or ' '.join(n for n in {heavy!r} if n in sys.modules) or None)"
    )
    for command in ("plan", "show s:a", "history", "audit", "doctor", "plan --json"):
        python = Path(DOIT).with_name("python")
        done = subprocess.run(
            [python, "-c", script, *command.split()],
            cwd=sandbox.root, env=sandbox.env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), command
