"""The process of one runtime: ``python -m ingot.kit.runtime.child PARENT``.

It answers each line of standard input (one JSON object) with one on standard output: ``make`` an archive, ``open`` a
model, ``run`` once. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingot.core.worker import die_with_parent
from ingot.errors import IngotError, StageFailed
from ingot.kit.runtime.timing import Runner, continued, timed


class _Child:
    """What the process holds: the runner that it opened."""

    runner: Runner

    def answer(self, question: Mapping[str, Any]) -> dict[str, object]:
        """Do what a line says."""
        do = question["do"]
        if do == "run":
            run = timed(self.runner, question["prompt"], len(question["tokens"]), continued(question["tokens"]))
            return {"first": run.first, "steps": run.steps, "said": run.said}
        from ingot.kit.runtime.runners import make_archive, open_runner

        if do == "make":
            make_archive(question["runtime"], Path(question["path"]), Path(question["archive"]), question["threads"])
            return {}
        path, context, threads = Path(question["path"]), question["context"], question["threads"]
        self.runner, words = open_runner(question["runtime"], path, context=context, threads=threads)
        return {"words": words}


def main() -> None:
    """Answer until standard input ends."""
    die_with_parent(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    child = _Child()
    for line in sys.stdin:
        try:
            said = child.answer(json.loads(line))
        except IngotError as error:
            said = {"error": error.to_dict()}
        except ModuleNotFoundError as error:
            missing = StageFailed(
                "E-MISSING-TOOL", f"the package {error.name} is not installed", hint="pip install 'ingot[all]'"
            )
            said = {"error": missing.to_dict()}
        except Exception as error:  # noqa: BLE001 - whatever a library raises becomes one clear message
            traceback.print_exc()
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            said = {"error": StageFailed("E-BENCHMARK", what).to_dict()}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
