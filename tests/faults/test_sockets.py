"""Who opens a socket: of the stages ``fetch`` and ``teacher`` alone, and no command listens. As the kernel saw it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from samples import SAMPLES, order

from ingot.core.environment import environment
from ingot.core.stage import kinds, load_kind
from projectkit import DOIT, Sandbox
from straced import require_strace

HERE = Path(__file__).resolve().parent
#: Kinds that may use the network.
ALLOWED = {kind for kind in kinds() if load_kind(kind).network}
#: Quick enough for every day: no model is computed.
QUICK = ("fetch", "dataset", "command", "pack")
_BUILD = (
    "import os, sys; from pathlib import Path; import samples\n"
    "stories, work = Path(sys.argv[1]), Path(sys.argv[2])\n"
    "samples.prepare(stories, work)\n"
    "for kind in sys.argv[3:]: samples.run(kind, work)\n"
)


def traced(command: Sequence[str], trace: Path, folder: Path, env: dict[str, str]) -> list[str]:
    """The calls that a command and all that it starts make of these; it must end well."""
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", str(trace), "-e", "trace=socket,bind,listen,chdir"]
    done = subprocess.run(
        [*strace, *command], cwd=folder, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return trace.read_text().splitlines()


def networked(lines: Sequence[str]) -> dict[str, list[str]]:
    """The sockets of a network, by the kind in whose scratch folder the process was when it opened them."""
    found: dict[str, list[str]] = defaultdict(list)
    kind = "nothing"
    for line in lines:
        moved = re.search(r'chdir\("[^"]*/work/([a-z0-9_]+)/scratch"\)', line)
        kind = moved[1] if moved else kind
        if re.search(r"socket\(AF_(?!UNIX|LOCAL|NETLINK)", line):
            found[kind].append(line)
    return dict(found)


def listening(lines: Sequence[str]) -> list[str]:
    """The calls with which a network address would be taken or listened at."""
    return [line for line in lines if re.search(r"\bbind\(\d+, \{sa_family=AF_INET|\blisten\(", line)]


def built(wanted: Sequence[str], stories: Path, folder: Path) -> list[str]:
    """The calls of the samples of these kinds."""
    # That of a stage, in which libraries tell nobody what is done with them.
    env = environment(network=False) | {"PYTHONPATH": f"{HERE.parent / 'stages'}{os.pathsep}{HERE.parent}"}
    (folder / "work").mkdir()
    command = [sys.executable, "-c", _BUILD, str(stories), str(folder / "work"), *wanted]
    return traced(command, folder / "trace", folder, env)


@pytest.mark.fault("L3", "the system calls of a stage of each kind are traced: none but fetch opens a network socket")
def test_no_quick_kind_opens_a_socket(stories: Path, tmp_path: Path, cases: Callable[[int], None]) -> None:
    require_strace(tmp_path)
    found = networked(built(QUICK, stories, tmp_path))
    assert set(found) <= ALLOWED, found
    cases(len(QUICK))


@pytest.mark.slow
@pytest.mark.fault("L3", "the system calls of a stage of each kind are traced: none but fetch opens a network socket")
def test_no_kind_opens_a_socket(stories: Path, tmp_path: Path, cases: Callable[[int], None]) -> None:
    require_strace(tmp_path)
    assert set(SAMPLES) == set(kinds())
    found = networked(built(order(), stories, tmp_path))
    assert set(found) <= ALLOWED, found
    cases(len(SAMPLES))


COMMANDS: tuple[list[str], ...] = (
    *(["plan"], [], ["show", "s:b"], ["audit"], ["promote", "s:b"]),
    *(["why", "s:b"], ["history"], ["doctor"], ["schema"], ["diff", "s:a", "s:b"], ["report", "--all"]),
    *(["registry", "proof", "s:b"], ["materialize", "s:b"], ["unpack", "s:b", "x"]),
)


@pytest.mark.parametrize("commands", [COMMANDS[:5], pytest.param(COMMANDS[5:], marks=pytest.mark.slow)])
@pytest.mark.fault("L1", "the system calls of commands are traced: none listens, or opens a network socket")
def test_no_command_listens(
    commands: Sequence[list[str]], chain: Sandbox, tmp_path: Path, cases: Callable[[int], None]
) -> None:
    require_strace(tmp_path)
    chain.file("specs/s.yaml", (chain.root / "specs/s.yaml").read_text().replace("echo x", "echo y"))
    script = "; ".join(" ".join([DOIT, *command]) + " > /dev/null 2>&1" for command in commands) + "; true"
    lines = traced(["sh", "-c", script], tmp_path / "trace", chain.root, chain.env)
    assert listening(lines) == []
    assert networked(lines) == {}
    built_too = [] in commands
    assert ({item["state"] for item in chain.json("plan")["targets"]} == {"fresh"}) is built_too
    cases(len(commands))


def test_a_socket_is_seen_and_told_by_its_kind(tmp_path: Path) -> None:
    require_strace(tmp_path)
    code = (
        "import os, socket\n"
        "os.makedirs('work/gguf/scratch'); os.chdir('work/gguf/scratch'); os.chdir(os.getcwd())\n"
        "s = socket.create_server(('127.0.0.1', 0))\n"
        "if os.fork() == 0: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); os._exit(0)\n"
        "os.wait()\n"
    )
    lines = traced([sys.executable, "-c", code], tmp_path / "trace", tmp_path, dict(os.environ))
    found = networked(lines)
    assert set(found) == {"gguf"}
    assert len(found["gguf"]) == 2, "of a child too"
    assert len(listening(lines)) == 2
