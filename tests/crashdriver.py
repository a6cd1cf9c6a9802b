"""Kill a real process at every step of two publishes: ``python crashdriver.py FOLDER`` prints what came of it as JSON.

The driver forks for each step, so that starting Python is paid for once; it has no threads and loads nothing heavy.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from crashlab import Lab, Said, at_home
from crashmodel import killed
from crashrecord import scanned
from machine import Stopping


def main() -> None:
    """Kill at step 1, 2, … until a run gets through."""
    with at_home(Path(sys.argv[1]) / "killed") as lab:
        lab.new()
        start = killed(scanned(lab.base))
        wrong: list[str] = []
        number = 0
        while True:
            lab.lay_out(start)
            signals, said = _run(lab, number + 1)
            wrong += [f"killed at step {number + 1}: {text}" for text in lab.broken_laws(said)]
            if not signals:
                break
            number += 1
    print(json.dumps({"steps": number, "wrong": wrong}))


def _run(lab: Lab, stop_at: int) -> tuple[bool, Said]:
    """Run in a child that kills itself at a step; whether it did, and what it had said."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        _die_at(lab, stop_at, theirs)
    os.close(theirs)
    with os.fdopen(ours, "rb") as file:
        told = [json.loads(line) for line in file if line.endswith(b"\n")]
    _pid, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed by itself"
    acked = {(origin, index): line.encode() for origin, index, line in told}
    # Nobody recorded what was handed to the log: only what lies there may be signed later.
    return os.WIFSIGNALED(status), replace(Said(acked), tried=frozenset(lab.lines()))


def _die_at(lab: Lab, stop_at: int, said: int) -> None:
    def killed() -> BaseException:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("it lives")

    try:
        with Stopping(lab.base, stop_at, killed).running():
            lab.run(lambda place, line: _tell(said, [*place, line.decode()]))
        os._exit(0)
    finally:
        os._exit(1)


def _tell(descriptor: int, what: list[object]) -> None:
    os.write(descriptor, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    main()
