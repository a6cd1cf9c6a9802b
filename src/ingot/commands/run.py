"""``doit`` and ``doit run``: doit's own command, with ``--force`` to build what is predicted not to fit.

Takes the place of doit's command of that name, in other projects too: there it is doit's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import wraps
from typing import Any

from doit.cmd_run import Run as DoitRun
from doit.cmdparse import CmdParseError

_FORCE = "--force"
#: Written out here: a run with nothing to do is quick because it imports little, and no base of our other commands.
_OPTION: Mapping[str, Any] = {
    "name": "force",
    "long": "force",
    "type": bool,
    "default": False,
    "help": "build although disk or memory are predicted not to suffice (doit plan shows the prediction)",
}


class Run(DoitRun):  # type: ignore[misc]  # doit ships no types
    """Run tasks; before the first stage starts, what is predicted not to fit is refused unless forced."""

    name = "run"
    cmd_options = (*DoitRun.cmd_options, _OPTION)
    _force = False

    def parse_execute(self, in_args: Sequence[str]) -> Any:
        """``--force`` may follow the names of targets, which doit's options may not."""
        others = [each for each in in_args if each != _FORCE]
        try:
            return super().parse_execute([_FORCE, *others] if len(others) < len(in_args) else others)
        except CmdParseError as error:
            # doit adds all options that there are, as Python writes them.
            raise CmdParseError(f"{str(error).partition(' (parsing options')[0]}; doit help {self.name}") from None

    def execute(self, params: Mapping[str, Any], args: Sequence[str]) -> Any:
        """Load the tasks and run them."""
        self._force = bool(params["force"])
        return super().execute(params, args)

    # doit reads from the signature which options to hand over.
    @wraps(DoitRun._execute)  # noqa: SLF001 - what doit has its own commands override
    def _execute(self, **options: Any) -> Any:
        # Only dodo.py of a project of ours has loaded it.
        reporter = sys.modules.get("ingot.reporter")
        session = reporter.LiveReporter.session if reporter is not None else None
        if session is not None:
            parallel = max(1, int(options["num_process"]))
            session.begin(force=self._force, parallel=parallel, always=bool(options["always"]))
        code = super()._execute(**options)
        # To doit a target is built whatever its gates say.
        return 1 if not code and session is not None and session.broken else code
