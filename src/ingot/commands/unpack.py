"""``doit unpack``: the files that a packed artifact was made of, every byte proven."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ingot import registry
from ingot.commands.base import JSON_OPTION, IngotCommand, keep_derived, remedy
from ingot.commands.screen import Screen, plural, size_text
from ingot.errors import MissingTool, RefusedInput, StoreDamaged, UsageError

if TYPE_CHECKING:
    from ingot.kit.pack.manifest import Manifest

#: Refusals that, of an artifact in the store, mean that it was damaged there.
_DAMAGE = ("E-PACK-", "E-NOT-PACKED", "E-NAME", "E-OUTPUT-FILE")


class Unpack(IngotCommand):
    """Restore what ``pack`` packed."""

    name = "unpack"
    doc_purpose = "restore the files of a packed artifact"
    doc_usage = "SPEC:TARGET FOLDER | PATH FOLDER [--json]"
    doc_description = (
        "Writes the original files into FOLDER, which must be new or empty. The first argument is a target of the "
        "kind pack, whose newest result is taken, or the path of a folder that holds a packed artifact: that works "
        "outside a project, too. Every file is compared with its SHA-256 before and after, and all of them with the "
        "digest of the original artifact; no more is written than pack.json says. FOLDER appears when all is right; "
        "otherwise nothing is left."
    )
    arguments: ClassVar[tuple[int, int | None]] = (2, 2)
    cmd_options = (JSON_OPTION,)

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:
        """0; 2 wrong use, never built or FOLDER is there; 3 refused; 4 missing or damaged in the store; 7 disk."""
        source, target = arguments[0], Path(arguments[1])
        if "/" in source and not Path(source).is_dir():
            raise UsageError("E-UNPACK-SOURCE", f"there is no folder {source!r}", hint="or name a target: SPEC:TARGET")
        manifest = _unpacked(Path(source), target) if Path(source).is_dir() else _of_target(source, target)
        packed = sum(item.packed_size for item in manifest.files)
        if options["json"]:
            told = {"artifact": manifest.artifact, "bytes": manifest.size, "packed_bytes": packed}
            screen.json({"format": 1, "folder": str(target), "files": len(manifest.files), **told})
        else:
            sizes = f"{size_text(manifest.size)} out of {size_text(packed)}"
            screen.line(f"unpacked {plural(len(manifest.files), 'file')} into {target}: {sizes}")
            screen.line(f"digest {manifest.artifact}, every file verified")
        return 0


def _unpacked(folder: Path, target: Path) -> Manifest:
    try:
        from ingot.kit.pack.unpack import unpack
    except ModuleNotFoundError as error:
        what = f"unpacking needs the package {error.name}"
        raise MissingTool("E-MISSING-TOOL", what, hint="pip install zstandard") from error
    return unpack(folder, target)


def _of_target(name: str, target: Path) -> Manifest:
    """Unpack the newest result of a target; what is wrong with it was damaged in the store."""
    project = registry.open_log()
    receipt = registry.receipt_of_target(project, name)
    keep_derived(project)
    if receipt["kind"] != "pack":
        what = f"{name} is of the kind {receipt['kind']}: nothing of it is packed"
        raise UsageError("E-UNPACK-KIND", what, hint="name a target of the kind pack, or a folder")
    folder = project.store.object_path(str(receipt["digest"]))
    hint = remedy(project, name)
    if not folder.is_dir():
        raise StoreDamaged("E-OBJECT-MISSING", f"the artifact of {name} is not in the store", hint=hint)
    try:
        _compare(folder, receipt)
        return _unpacked(folder, target)
    except RefusedInput as error:
        if not error.code.startswith(_DAMAGE):
            raise
        facts = [f"{error.code}: {error.what}", *error.facts]
        raise StoreDamaged("E-OBJECT-DAMAGED", f"the artifact of {name} is damaged", facts=facts, hint=hint) from error


def _compare(folder: Path, receipt: Mapping[str, Any]) -> None:
    """``pack.json`` is the one that the log knows: then all that it says of the other files is."""
    from ingot.core.digest import hash_file

    wanted = next((file["sha256"] for file in receipt["files"] if file["path"] == "pack.json"), None)
    if not (folder / "pack.json").is_file() or hash_file(folder / "pack.json")[1] != wanted:
        raise RefusedInput("E-PACK-FORM", "pack.json is not the one that the log knows")
