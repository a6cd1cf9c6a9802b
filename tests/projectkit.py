"""A project in a temporary folder, used as a person would: files, ``doit`` in a subprocess, the registry on disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from warmdoit import Warm

REPO = Path(__file__).resolve().parent.parent
DOIT = str(Path(sys.executable).with_name("doit"))
#: Set to 1, every command is run by an interpreter of its own.
FRESH = "INGOT_TESTS_FRESH"
WARM = Warm()


@dataclass
class Sandbox:
    """A project folder with keys and pins of its own; two sandboxes of one ``home`` are two clones of one user."""

    root: Path
    home: Path
    extra_env: dict[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, *, home: Path | None = None) -> Sandbox:
        """A new empty project below ``folder``."""
        root = folder / "project"
        (root / "specs").mkdir(parents=True)
        shutil.copy(REPO / "dodo.py", root)
        return cls(root, home or folder / "home")

    @property
    def env(self) -> dict[str, str]:
        """The environment of every command."""
        dropped = {"CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS"}
        base = {name: value for name, value in os.environ.items() if name not in dropped}
        ours = {"XDG_CONFIG_HOME": str(self.home / "config"), "XDG_STATE_HOME": str(self.home / "state")}
        return base | ours | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"} | self.extra_env

    def spec(self, text: str, name: str = "s") -> Path:
        """Write ``specs/<name>.yaml``; ``format``, ``name`` and ``seed`` are put before ``text`` unless it has them."""
        head = "" if "format:" in text else f"format: 1\nname: {name}\nseed: 1\n"
        path = self.root / "specs" / f"{name}.yaml"
        path.write_text(head + text)
        return path

    def file(self, name: str, content: str) -> Path:
        """Write a file relative to the project."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    def doit(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run ``doit`` and give back what it printed and its status."""
        command = [DOIT, *arguments]
        done = None if os.environ.get(FRESH) == "1" else WARM.run(command, self.root, self.env, timeout)
        return done or subprocess.run(
            command,
            cwd=self.root,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def ok(self, *arguments: str) -> str:
        """Run ``doit``, which must succeed; what it printed."""
        done = self.doit(*arguments)
        assert done.returncode == 0, f"doit {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """What a command prints with ``--json``."""
        return json.loads(self.ok(*arguments, "--json"))

    def states(self) -> dict[str, str]:
        """State by target, from ``doit plan``."""
        return {item["target"]: item["state"] for item in self.json("plan")["targets"]}

    def reasons(self, target: str) -> list[str]:
        """The reason codes of one target, from ``doit plan``."""
        (item,) = [item for item in self.json("plan")["targets"] if item["target"] == target]
        return [reason["code"] for reason in item["reasons"]]

    def ran(self) -> list[str]:
        """The lines that the targets of ``counted`` have written so far, one a run; the file is emptied."""
        path = self.root / "ran.txt"
        lines = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return sorted(lines)

    def entries(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The log's entries as ``doit history`` gives them."""
        found = list(self.json("history"))
        return [entry for entry in found if kind is None or entry["type"] == kind]

    def git(self, *arguments: str) -> str:
        """Run git in the project."""
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.invalid", *arguments]
        done = subprocess.run(command, cwd=self.root, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def counted(root: Path, name: str, *, source: str = "", content: str = "x", depends: str = "") -> str:
    """A ``command`` target that notes each run in ``ran.txt`` of the project and writes ``content``.

    ``source`` is a project file whose text goes into the output; ``depends`` an input target whose output does.
    """
    script = f"echo {name} >> {root}/ran.txt; echo {content} > {{out}}/out.txt"
    if source:
        script += f"; cat {source} >> {{out}}/out.txt"
    if depends:
        script += "; cat {data}/out.txt >> {out}/out.txt"
    parts = ["kind: command", f"command: [sh, -c, {json.dumps(script)}]"]
    parts += [f"files: [{source}]"] if source else []
    parts += [f"from: {{data: {depends}}}"] if depends else []
    return f"  {name}: {{{', '.join(parts)}}}\n"
