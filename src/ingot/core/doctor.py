"""What the specs at hand need of this machine, each need one line: met, or missing with one command that mends it.

Only targets that would be built count: a fresh chain needs no torch. Nothing here touches the network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ingot.core import filesystems, gpu
from ingot.core.capacity import Peak
from ingot.core.checkpoints import Kept
from ingot.core.forecast import Forecast
from ingot.core.graph import Node
from ingot.core.key import NOT_INSTALLED
from ingot.core.plan import Planned, tool_version
from ingot.core.quantities import size_text
from ingot.errors import DiskFailed

Word = Literal["ok", "note", "missing"]

_OLDEST_PYTHON = (3, 11)
_PROBE_SECONDS = 120


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it is, the facts, and the command that mends it."""

    name: str
    word: Word
    detail: str
    fix: str = ""

    def to_dict(self) -> dict[str, str]:
        """As ``--json`` shows it."""
        return {"name": self.name, "state": self.word, "detail": self.detail, "fix": self.fix}


def python(version: Sequence[int] = tuple(sys.version_info[:3])) -> Check:
    """Whether Python is new enough."""
    text = ".".join(str(part) for part in version[:3])
    if tuple(version[:2]) >= _OLDEST_PYTHON:
        return Check("python", "ok", text)
    return Check("python", "missing", f"{text}, needs 3.11 or later", "uv venv --python 3.12")


def packages(nodes: Iterable[Node], version: Callable[[str], str] = tool_version) -> Iterator[Check]:
    """One check a pip extra: the packages that these targets need of it. A package that is there is named once."""
    kinds: dict[str, set[str]] = {}
    wanted: dict[str, set[str]] = {}
    for node in nodes:
        extra = node.extra or ("all" if node.tools or node.needs else "")
        if extra:
            kinds.setdefault(extra, set()).add(node.kind)
            wanted.setdefault(extra, set()).update((*node.tools, *node.needs))
    named: set[str] = set()
    for extra in sorted(wanted):
        found = {name: version(name) for name in sorted(wanted[extra])}
        absent = [name for name, installed in found.items() if installed == NOT_INSTALLED]
        users = f"for {', '.join(sorted(kinds[extra]))}"
        if absent:
            yield Check(
                f"packages [{extra}]", "missing", f"{', '.join(absent)} {users}", f"pip install 'ingot[{extra}]'"
            )
        else:
            shown = ", ".join(f"{name} {installed}" for name, installed in found.items() if name not in named)
            yield Check(f"packages [{extra}]", "ok", f"{shown or 'as above'} {users}")
            named |= found.keys()


def programs(nodes: Iterable[Node], which: Callable[[str], str | None] = shutil.which) -> Iterator[Check]:
    """One check a program on PATH that these targets declare."""
    users: dict[str, list[str]] = {}
    for node in nodes:
        for command in node.programs.values():
            users.setdefault(command[0], []).append(node.id)
    for program, targets in sorted(users.items()):
        path = which(program)
        if path is None:
            shown = f"not on PATH, for {', '.join(targets[:3])}"
            yield Check(f"program {program}", "missing", shown, f"install {program}, or put its folder on PATH")
        else:
            yield Check(f"program {program}", "ok", path)


def device(nodes: Iterable[Node], present: Callable[[], bool] = gpu.visible) -> Iterator[Check]:
    """Whether there is a GPU for the targets that ask for one; nothing where none does."""
    wanted = [node.id for node in nodes if node.device == "cuda"]
    if wanted and present():
        yield Check("GPU", "ok", f"for {', '.join(wanted[:3])}")
    elif wanted:
        shown = f"none to be seen, for {', '.join(wanted[:3])}"
        yield Check("GPU", "missing", shown, "set 'device: auto' in the spec, or build on a machine with a GPU")


def disk(found: Forecast) -> Check:
    """Free space where the store lies, against the fullest moment of the run that is to come."""
    room = found.room
    check = _room("disk", "E-SPACE", found, f"{size_text(room.free_bytes)} free", found.disk)
    if check.word == "ok" and not room.usable_bytes:
        kept = size_text(room.reserve_bytes)
        return replace(
            check, word="missing", detail=f"{check.detail}, less than the {kept} that the log needs", fix=f"free {kept}"
        )
    return check


def file_system(store: Path, mounts: str | None = None) -> Iterator[Check]:
    """What is to be known of the file system on which the store lies; nothing where it is an ordinary one."""
    try:
        filesystems.require_local([store], mounts)
    except DiskFailed as error:
        yield Check(
            "file system", "missing", error.what, f"export {filesystems.ALLOW}=1  # if only this machine uses it"
        )
    for text in filesystems.warnings([store], mounts):
        yield Check("file system", "note", text)


def memory(found: Forecast) -> Check:
    """Memory at hand, against the highest peak of the run that is to come."""
    room = found.room
    if not room.total_bytes:
        return Check("memory", "note", "this system does not say how much is available")
    there = f"{size_text(room.available_bytes)} of {size_text(room.total_bytes)} available"
    return _room("memory", "E-MEMORY", found, there, found.memory)


def _room(name: str, code: str, found: Forecast, there: str, peak: Peak | None) -> Check:
    # Disk adds up over the run: whoever writes last needs no more of it than the others.
    facts = [there] if peak is None else [there, f"{size_text(peak.needed_bytes)} needed {_by(name, peak)}"]
    if found.unknown:
        facts.append(f"{len(found.unknown)} target{'s' * (len(found.unknown) != 1)} with no history yet")
    for refusal in found.refusals():
        if refusal.code == code:
            return Check(name, "missing", ", ".join(facts), refusal.hint)
    return Check(name, "ok", ", ".join(facts))


def _by(name: str, peak: Peak) -> str:
    return "in all" if name == "disk" else f"by {' and '.join(peak.at)}"


def checkpoints(found: Sequence[Kept], plan: Mapping[str, Planned], store: Path) -> Iterator[Check]:
    """What ended builds have left: what the next run goes on from, and what is of no target as the specs are now.

    What waits has no key yet, so what was kept of a target of its name may still be wanted.
    """
    keys = {item.key for item in plan.values()}
    waiting = {name for name, item in plan.items() if item.key is None}
    wanted = [item for item in found if item.key in keys or item.target in waiting]
    if wanted:
        named = ", ".join(f"{item.target} goes on from {item.words()}" for item in wanted)
        yield Check("checkpoints", "ok", f"{named} ({size_text(sum(item.bytes for item in wanted))})")
    for item in found:
        if item not in wanted:
            shown = f"{size_text(item.bytes)} of {item.target or 'a target'} as it was before its spec changed"
            yield Check("checkpoints", "note", shown, f"rm -r {os.path.relpath(store / 'checkpoints' / item.key)}")


def llama_cpp(nodes: Iterable[Node], version: Callable[[str], str] = tool_version) -> Iterator[Check]:
    """Whether llama.cpp's library can really be loaded, tried in a process of its own; nothing where none needs it."""
    if not any("llama-cpp-python" in (*node.tools, *node.needs) for node in nodes):
        return
    installed = version("llama-cpp-python")
    if installed == NOT_INSTALLED:
        return  # the packages' check names it
    again = "pip install --force-reinstall --no-cache-dir llama-cpp-python"
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import llama_cpp; llama_cpp.llama_backend_init()"],
            capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        yield Check("llama.cpp", "missing", f"llama-cpp-python {installed} does not load in {_PROBE_SECONDS} s", again)
        return
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        yield Check("llama.cpp", "missing", f"llama-cpp-python {installed} cannot be loaded: {last[:160]}", again)
    else:
        yield Check("llama.cpp", "ok", f"llama-cpp-python {installed} loads")


def signing_key(registry: Path, keys: Path) -> Check:
    """Whether this user can go on in a log of the project, or will begin one."""
    logs = sorted(path.name for path in registry.iterdir() if path.is_dir()) if registry.is_dir() else []
    mine = [name for name in logs if (keys / name).is_file()]
    if mine:
        return Check("registry", "ok", f"this user signs log {', '.join(mine)} with the key in {keys}")
    others = f"{len(logs)} log{'s' * (len(logs) != 1)} of others; " if logs else ""
    return Check("registry", "ok", f"{others}the first build begins a log and keeps its key in {keys}")


def git(root: Path) -> Check:
    """Whether receipts can name a commit and the log is kept by git."""
    if shutil.which("git") is None:
        return Check("git", "note", "not installed: receipts will name no commit", "install git")
    done = subprocess.run(
        ("git", "rev-parse", "--is-inside-work-tree"), cwd=root, capture_output=True, text=True, check=False
    )
    if done.stdout.strip() != "true":
        return Check("git", "note", "the project is in no repository: nothing pins the log", "git init")
    ignored = subprocess.run(
        ("git", "check-ignore", "registry/log", "ingot.lock"), cwd=root, capture_output=True, check=False
    )
    if ignored.returncode == 0:
        return Check(
            "git", "note", "registry/ or ingot.lock is ignored by git: nothing pins the log", "edit .gitignore"
        )
    merge = subprocess.run(
        ("git", "check-attr", "merge", "ingot.lock"), cwd=root, capture_output=True, text=True, check=False
    )
    if not merge.stdout.strip().endswith("union"):
        lines = r"printf 'ingot.lock -text merge=union\nregistry/** -text\n' >> .gitattributes"
        return Check("git", "note", "two clones that both built will conflict on ingot.lock", lines)
    head = subprocess.run(("git", "rev-parse", "--verify", "-q", "HEAD"), cwd=root, capture_output=True, check=False)
    if head.returncode:
        return Check("git", "note", "no commit yet: receipts name none, and nothing pins the log", "git commit")
    return Check("git", "ok", "receipts name the commit; commit registry/ and ingot.lock to pin the log")


def remotes(nodes: Iterable[Node], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The addresses that these targets fetch from: name → URL, by their parameters and the user's settings."""
    found: dict[str, str] = {}
    for node in nodes:
        if node.params.get("pypi"):
            found["PyPI"] = environment.get("PIP_INDEX_URL", "https://pypi.org/simple/")
        if node.params.get("hf"):
            found["hub"] = environment.get("HF_ENDPOINT", "https://huggingface.co")
        url = node.params.get("url")
        if isinstance(url, str):
            found[node.id] = url
    return found
