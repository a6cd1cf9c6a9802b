"""``pack``: an artifact of any form, compressed without loss; ``doit unpack`` gives back its very bytes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from ingot.core.stage import Done, Format, Given, Measure, Metric, Progress, Role, Stage

if TYPE_CHECKING:
    from ingot.kit.pack.dictionary import Trained
    from ingot.kit.pack.manifest import Manifest

#: Who saves less than this share is told that it hardly pays.
_HARDLY = 0.05
#: Of so many files the receipt tells what became of them.
_TOLD = 5


class Pack(Stage):
    """Compress every file with zstd, each for itself, and say plainly what that saves.

    Files are read once, in blocks, whatever their size; each is compared with what the registry says of it in the same
    read. One that does not shrink is stored as it is: quantized weights hardly compress, bfloat16 weights by about a
    quarter, texts by more than half. ``pack.json`` holds size and SHA-256 of every file before and after, and the
    digest of the original, which `doit unpack` proves. The bytes do not depend on the number of threads. Unpacking
    takes memory for one window: up to 128 MiB by the level alone, 2^``long_range`` bytes with that.
    """

    kind: ClassVar[str] = "pack"
    revision: ClassVar[int] = 1
    produces: ClassVar[Format] = "packed"
    inputs: ClassVar[Mapping[str, Role]] = {"artifact": Role(accepts=("any",))}
    tools: ClassVar[tuple[str, ...]] = ("libzstd", "zstandard")
    needs: ClassVar[tuple[str, ...]] = ("numpy",)
    extra: ClassVar[str | None] = "ml"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("bytes", "B"),
        Measure("original_bytes", "B"),
        Measure("files", "files"),
        Measure("files_stored", "files"),
        Measure("ratio", "1", "unless the input is empty"),
        Measure("saved", "1", "as ratio"),
        Measure("ratio_lowest", "1", "as ratio"),
        Measure("ratio_highest", "1", "as ratio"),
        Measure("dictionary_saved", "B", "with `dictionary`"),
    )

    level: int = Field(default=9, ge=1, le=22, description="zstd's level: higher is smaller and slower")
    long_range: int | None = Field(
        default=None,
        ge=20,
        le=30,
        description="log2 of a window in which far repeats are found (27: 128 MiB); unpacking takes that much memory",
    )
    dictionary: int | None = Field(
        default=None,
        ge=1024,
        le=1 << 20,
        description="bytes of a dictionary learned from the files of at most 256 KiB; left out where it does not pay",
    )

    def measured(self, roles: frozenset[str]) -> tuple[str, ...]:
        """What a dictionary saved only where one is wanted."""
        found = super().measured(roles)
        return found if self.dictionary is not None else tuple(name for name in found if name != "dictionary_saved")

    def windowed(self) -> bool:
        """Memory is a window over the files."""
        return True

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Pack.

        RefusedInput: E-PACK-NAME (files whose packed names meet), E-PACK-DICTIONARY (nothing to learn one from);
        StoreDamaged (E-OBJECT-DAMAGED): the input is not what it was.
        """
        from ingot.kit.pack.frames import Recipe
        from ingot.kit.pack.pack import Original, Packing

        listed = given.files.get("artifact")
        original = Original(given.one("artifact"), given.digests["artifact"][0], listed[0] if listed else None)
        packing = Packing(original, out, Recipe(self.level, self.long_range), given.threads, progress)
        manifest, trained = packing.run(self.dictionary)
        written = sum(record.size for record in packing.records)
        said = verdict(manifest.size, written)
        progress.phase(said)
        sys.stdout.write(f"{said}\n")
        return Done(
            _metrics(manifest, written, trained),
            files=tuple(packing.records),
            notes={"verdict": said, "ratios": _ratios(manifest), **_dictionary_note(manifest, trained)},
        )


def verdict(before: int, after: int) -> str:
    """One sentence on what packing saved."""
    saved = 1 - after / before if before else 0.0
    if saved <= 0:
        return f"saves nothing: packed, it takes {after - before:,} bytes more"
    if saved < _HARDLY:
        return f"saves {100 * saved:.1f} %: quantized weights, and what is compressed already, hardly compress"
    return f"saves {100 * saved:.1f} %"


def _ratios(manifest: Manifest) -> list[str]:
    """How many times smaller the largest files are; a receipt has no room for all, and pack.json has their sizes."""
    found = sorted(manifest.files, key=lambda item: (-item.size, item.path))[:_TOLD]
    return [
        f"{item.path} {'stored' if item.method == 'stored' else f'{item.size / item.packed_size:.3g}:1'}"
        for item in found
    ]


def _dictionary_note(manifest: Manifest, trained: Trained | None) -> dict[str, str]:
    if trained is None:
        return {}
    saved = trained.without - trained.with_it
    verb = "is used" if manifest.dictionary else "is left out"
    return {"dictionary": f"{verb}: it saves {saved:,} bytes and takes {len(trained.data):,}"}


def _metrics(manifest: Manifest, written: int, trained: Trained | None) -> dict[str, Metric]:
    each = [item.size / item.packed_size for item in manifest.files if item.packed_size]
    stored = sum(item.method == "stored" for item in manifest.files)
    found = {
        "bytes": Metric(written, "B", "size of all files written, pack.json and dictionary included"),
        "original_bytes": Metric(manifest.size, "B", "size of the files that were packed"),
        "files": Metric(len(manifest.files), "files", "files that were packed"),
        "files_stored": Metric(stored, "files", "files that did not shrink and are stored as they are"),
    }
    if manifest.size:
        found["ratio"] = Metric(manifest.size / written, "1", "original_bytes over bytes")
        found["saved"] = Metric(
            1 - written / manifest.size, "1", "share of original_bytes that is saved; below 0: lost"
        )
    if each:
        how = "size of a file before over after; of all files"
        found["ratio_lowest"] = Metric(min(each), "1", f"{how}, the lowest", len(each))
        found["ratio_highest"] = Metric(max(each), "1", f"{how}, the highest", len(each))
    if trained is not None:
        saved = trained.without - trained.with_it - len(trained.data)
        how = "bytes that the trained dictionary saves, less its own size; negative: it was left out"
        found["dictionary_saved"] = Metric(saved, "B", how)
    return found
