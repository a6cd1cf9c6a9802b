"""``command``: any program of the user as a target; the extension point for everything that is not built in.

The program runs on a snapshot of the declared ``files:``, in the folder of the spec, with a clean environment. Input
targets and the output folder are named by placeholders (``{data}``, ``{out}``) and by environment variables
(``INGOT_IN_DATA``, ``INGOT_OUT``, ``INGOT_SCRATCH``, ``INGOT_THREADS``). A program that ``{checkpoints}`` is handed to
finds there what it left when it was ended before its time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field, field_validator

from ingot.core.stage import Files, Given, Measure, Metric, Metrics, Progress, Reproducibility, Role, Source, Stage
from ingot.errors import RefusedInput, StageFailed

#: Placeholders of every command, beside those of its roles, and the variables of the same meaning.
_ALWAYS = {
    "out": "INGOT_OUT",
    "scratch": "INGOT_SCRATCH",
    "checkpoints": "INGOT_CHECKPOINTS",
    "threads": "INGOT_THREADS",
}
_PLACEHOLDER = re.compile(r"\{([a-z_][a-z0-9_]*)\}")


def _as_files(value: object) -> object:
    """``files:`` is written as a list; the resolved spec holds it as ``{"paths": [...]}``."""
    paths = value.get("paths") if isinstance(value, dict) else value
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str) for path in paths):
        raise ValueError("files must be a list of paths")
    return Files(paths=tuple(paths))


class Command(Stage):
    """Run a program of the project that writes files into an output folder."""

    model_config = ConfigDict(serialize_by_alias=True)

    kind: ClassVar[str] = "command"
    revision: ClassVar[int] = 2  # 2: placeholders in env
    # Nothing is known of the program: only building again shows whether its bytes repeat.
    reproducibility: ClassVar[Reproducibility] = "device_dependent"
    resumes: ClassVar[bool] = True
    inputs: ClassVar[Mapping[str, Role]] = {"*": Role()}
    measures: ClassVar[tuple[Measure, ...]] = (Measure("bytes", "B"),)

    command: tuple[str, ...] = Field(
        min_length=1,
        description="Program and arguments; {out}, {scratch}, {checkpoints}, {threads} and {ROLE} stand for folders "
        "and numbers. What a program leaves in {checkpoints} is there again when it was ended and is run anew.",
    )
    files: Annotated[Files, BeforeValidator(_as_files)] = Field(
        default=Files(),
        description="Project files that the program reads: paths, folders or globs, relative to the spec.",
    )
    programs_on_path: dict[str, tuple[str, ...]] = Field(
        default={},
        alias="tools",
        description="Programs on PATH that change the result, each with the command line that prints its version.",
    )
    env: dict[str, str] = Field(
        default={}, description="Further environment variables of the program; placeholders as in command."
    )

    @field_validator("command")
    @classmethod
    def _program_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value[0].strip():
            raise ValueError("the program's name is empty")
        return value

    def found_sources(self) -> Iterator[tuple[str, Source | Files]]:
        """The files, when there are any: no files, no snapshot."""
        if self.files.paths:
            yield "/files", self.files

    def goes_on(self) -> bool:
        """Only a program that is told where its checkpoints lie can go on from them."""
        return any("{checkpoints}" in text for text in (*self.command, *self.env.values()))

    def programs(self) -> Mapping[str, tuple[str, ...]]:
        """The declared programs: what their command lines print is a key part."""
        return self.programs_on_path

    def misfits(self, roles: frozenset[str]) -> Iterator[tuple[str, str]]:
        """Placeholders that stand for nothing, and roles that would hide a placeholder."""
        known = ", ".join(f"{{{name}}}" for name in sorted({*roles, *_ALWAYS}))
        for name, texts in (("command", self.command), ("env", tuple(self.env.values()))):
            for found in (match[1] for text in texts for match in _PLACEHOLDER.finditer(text)):
                if found not in roles and found not in _ALWAYS:
                    yield name, f"the placeholder {{{found}}} names no input of this target; known: {known}"
        for role in sorted(roles & set(_ALWAYS)):
            yield role, f"a role cannot be called {role!r}: {{{role}}} stands for something else in commands"

    def run(self, given: Given, out: Path, progress: Progress) -> Metrics:
        """Run the program; it fails when the exit status is not 0 (E-COMMAND), naming the status."""
        import subprocess

        progress.phase(Path(self.command[0]).name)
        places = {role: [str(path) for path in paths] for role, paths in given.inputs.items()}
        places |= {"out": [str(out)], "scratch": [str(given.scratch)], "threads": [str(given.threads)]}
        if self.goes_on():
            places["checkpoints"] = [str(_made(given.checkpoints or given.scratch / "checkpoints"))]
        arguments = [argument for word in self.command for argument in _fill(word, places)]
        folder = given.sources[0] if given.sources else given.scratch
        try:
            done = subprocess.run(
                arguments, cwd=folder, env=self._environment(places), stdin=subprocess.DEVNULL, check=False
            )
        except OSError as error:
            raise StageFailed(
                "E-COMMAND",
                f"the program {arguments[0]!r} cannot be started: {(error.strerror or str(error)).lower()}",
                hint="name it under files: when it is the project's, or install it",
            ) from error
        if done.returncode != 0:
            how = f"status {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
            raise StageFailed("E-COMMAND", f"{Path(arguments[0]).name} ended with {how}")
        sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
        return {"bytes": Metric(sum(sizes), "B", "sum of the sizes of the files written", n=len(sizes))}

    def _environment(self, places: Mapping[str, list[str]]) -> dict[str, str]:
        ours = {_ALWAYS.get(role, f"INGOT_IN_{role.upper()}"): os.pathsep.join(paths) for role, paths in places.items()}
        return {**os.environ, **{name: _joined(text, places) for name, text in self.env.items()}, **ours}


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _fill(word: str, places: Mapping[str, list[str]]) -> Iterator[str]:
    """A word with its placeholders filled; a word that is one list role's placeholder becomes several words."""
    whole = _PLACEHOLDER.fullmatch(word)
    if whole:
        yield from _look_up(whole[1], places)
    else:
        yield _joined(word, places)


def _joined(text: str, places: Mapping[str, list[str]]) -> str:
    """A text with its placeholders filled; several paths are joined as PATH is."""
    return _PLACEHOLDER.sub(lambda match: os.pathsep.join(_look_up(match[1], places)), text)


def _look_up(name: str, places: Mapping[str, Any]) -> list[str]:
    if name not in places:
        raise RefusedInput(
            "E-COMMAND-PLACEHOLDER",
            f"the placeholder {{{name}}} names no input of this target",
            facts=[f"known: {', '.join(sorted(places))}"],
        )
    return list(places[name])
