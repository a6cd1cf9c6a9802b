"""Make a fixture of what this version writes: a project with its specs, store and registry, as an archive.

    python tests/compat/make.py 1

writes ``tests/compat/v1.tar.xz``. One is made for each version whose formats differ, and never made again: every later
version must verify and read it (``test_compat.py``). It holds every type of entry, an evicted result, a proof and a
checkpoint that the log has outgrown.
"""

from __future__ import annotations

import lzma
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent / "src")]

from projectkit import Sandbox  # noqa: E402
from recordkit import simple  # noqa: E402


def spec(word: str, limit: float) -> str:
    """Files, a chain of programs and a gate."""
    return (
        "targets:\n  files: {kind: fetch, path: ../data}\n"
        + simple("one")
        + simple("two", content=word, depends="one")
        + "  sized: {kind: command, from: {data: two}, command: [cp, '{data}/out.txt', '{out}/copy.txt']}\n"
        + f"gates:\n  sized.bytes: {{max: {limit}}}\n"
    )


def fill(sandbox: Sandbox) -> None:
    """Builds, a restored result, a failed gate, a promotion, a rollback, an acceptance, a reproduction, an eviction."""
    sandbox.file("data/text.txt", "what is said\n")
    sandbox.spec(spec("first", 100))
    sandbox.ok("s")
    (checkpoint,) = (sandbox.root / "registry").glob("*/checkpoint")
    shutil.copy(checkpoint, sandbox.root / "earlier-checkpoint")
    sandbox.ok("promote", "s:sized", "--reason", "the first")
    sandbox.spec(spec("second", 100))
    sandbox.ok("s")
    sandbox.ok("promote", "s:sized")
    sandbox.ok("rollback", "s:sized")
    sandbox.spec(spec("second", 1))
    assert sandbox.doit("s").returncode == 1
    sandbox.spec(spec("first", 100))
    sandbox.ok("s")
    sandbox.spec(spec("first", 100).replace("cp,", "cp, -p,"))
    sandbox.ok("accept", "s:sized", "--reason", "the option changes no byte")
    sandbox.ok("reproduce", "s:one")
    sandbox.ok("gc", "--newest", "0", "--drop", "s:one")
    sandbox.ok("registry", "proof", "s:two", "--output", str(sandbox.root / "two.tlog-proof"))


def main() -> None:
    """Write the archive: the same names, modes and bytes, and no owner or time of this machine."""
    target = HERE / f"v{int(sys.argv[1])}.tar.xz"
    if target.exists():
        sys.exit(f"{target.name} is there: what an earlier version wrote is not made again")
    with tempfile.TemporaryDirectory() as name:
        sandbox = Sandbox.make(Path(name))
        fill(sandbox)
        for derived in ("staging", "locks", "registry.lock", "logs", "specs", "stat.json"):
            path = sandbox.root / "cache" / derived
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        with lzma.open(target, "wb", preset=9) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(sandbox.root, "project", filter=_plain)


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info


if __name__ == "__main__":
    main()
