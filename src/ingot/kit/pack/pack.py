"""Pack a folder: every file read once, hashed and compressed in that read; what does not shrink is stored as it is."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ingot.core.digest import FileRecord, sha256_bytes, tree_preimage, walk_files
from ingot.core.stage import Progress
from ingot.errors import RefusedInput, StoreDamaged
from ingot.kit.pack import dictionary as dictionaries
from ingot.kit.pack.frames import BLOCK, Frame, Output, Recipe, loaded
from ingot.kit.pack.manifest import DICTIONARY, NAME, Dictionary, Manifest, PackedFile, place
from ingot.kit.stream.verified import Buffers, VerifiedFile, damaged


@dataclass(frozen=True)
class Original:
    """What is packed: a folder, its digest, and (None: nobody knows) what each of its files must be, by path."""

    folder: Path
    digest: str
    files: Mapping[str, FileRecord] | None = None

    def expected(self, name: str) -> FileRecord | None:
        """What a file must be; StoreDamaged when others are known and it is not."""
        if self.files is None:
            return None
        if name not in self.files:
            raise damaged(self.folder / name, "is not in the registry's list")
        return self.files[name]


@dataclass
class Packing:
    """One run: the settings, and what was written so far."""

    original: Original
    out: Path
    recipe: Recipe
    threads: int
    progress: Progress
    records: list[FileRecord] = field(default_factory=list)
    done: int = 0
    total: int = 0

    def run(self, dictionary: int | None) -> tuple[Manifest, dictionaries.Trained | None]:
        """Pack everything; ``dictionary`` is the size of the one to train. Gives back what was trained, used or not.

        RefusedInput: E-PACK-NAME (names that have no place), E-PACK-DICTIONARY. StoreDamaged (E-OBJECT-DAMAGED).
        """
        names = list(walk_files(self.original.folder))
        _check_places(names)
        sizes = {name: (self.original.folder / name).stat().st_size for name in names}
        self.total = sum(sizes.values())
        trained = None
        small = [name for name in names if 0 < sizes[name] <= dictionaries.SMALL] if dictionary else []
        if dictionary:
            self.progress.phase("learn a dictionary")
            trained = dictionaries.train([self.original.folder / name for name in small], dictionary, self.recipe)
        data = trained.data if trained and trained.gains else None
        if data is not None:
            self._write(DICTIONARY, data)
        self.progress.phase("compress")
        packed = [self._file(name, data if name in set(small) else None) for name in names]
        manifest = Manifest(
            artifact=self._digest(packed),
            level=self.recipe.level,
            window_log=max((self.recipe.window_log(size) for size in sizes.values() if size), default=10),
            dictionary=None if data is None else _described(data),
            files=tuple(packed),
        )
        self._write(NAME, manifest.text().encode())
        return manifest, trained

    def _digest(self, packed: list[PackedFile]) -> str:
        """The digest of what was read, which must be that of the input."""
        found = sha256_bytes(tree_preimage((item.path, item.sha256) for item in packed))
        if found != self.original.digest:
            facts = [f"what was read has the digest {found}", f"it must be {self.original.digest}"]
            raise StoreDamaged("E-OBJECT-DAMAGED", "the input is damaged in the store", facts=facts)
        return found

    def _write(self, name: str, data: bytes) -> None:
        with Output(self.out, name) as output:
            output.write(data)
        self.records.append(output.record())

    def _file(self, name: str, dictionary: bytes | None) -> PackedFile:
        """One file, compressed or, where that does not make it smaller, copied."""
        sha = hashlib.sha256()
        target = place(name, "zstd")
        with self._opened(name) as source, Output(self.out, target) as output:
            size = source.size
            frame = Frame(output, self.recipe.parameters(size, self.threads), size, dictionary)
            for piece in self._pieces(source):
                sha.update(piece)
                frame.write(piece)
            frame.finish()
        record = output.record()
        method: Literal["zstd", "stored"] = "zstd"
        if record.size >= size:
            (self.out / target).unlink()
            _prune(self.out, (self.out / target).parent)
            record, method, dictionary = self._stored(name), "stored", None
            if record.sha256 != sha.hexdigest():
                raise damaged(self.original.folder / name, "changed between two readings")
        self.records.append(record)
        return PackedFile(
            path=name,
            size=size,
            sha256=sha.hexdigest(),
            method=method,
            packed_size=record.size,
            packed_sha256=record.sha256,
            dictionary=dictionary is not None,
        )

    def _opened(self, name: str) -> VerifiedFile:
        return VerifiedFile(self.original.folder / name, self.original.expected(name), Buffers())

    def _pieces(self, source: VerifiedFile) -> Iterator[Any]:
        """The content of a file in blocks; StoreDamaged at its end when it is not what it must be."""
        while source.at < source.size:
            piece = memoryview(source.take(min(BLOCK, source.size - source.at)))  # type: ignore[arg-type]
            self.done += len(piece)
            yield piece
            self.progress(self.done, self.total, "B")
        source.finish()

    def _stored(self, name: str) -> FileRecord:
        self.done -= (self.original.folder / name).stat().st_size  # it is read a second time
        with self._opened(name) as source, Output(self.out, place(name, "stored")) as output:
            for piece in self._pieces(source):
                output.write(piece)
        return output.record()


def _described(data: bytes) -> Dictionary:
    return Dictionary(size=len(data), sha256=sha256_bytes(data), id=loaded(data).dict_id())


def _prune(root: Path, folder: Path) -> None:
    """Remove folders that became empty: an artifact has none."""
    while folder != root and not any(folder.iterdir()):
        shutil.rmtree(folder)
        folder = folder.parent


def _check_places(names: list[str]) -> None:
    """RefusedInput (E-PACK-NAME) for names whose packed files would be in each other's way, or too long."""
    folders = {place(name, "zstd")[: -len(".zst")].rpartition("/")[0] for name in names}
    folders |= {"/".join(folder.split("/")[:depth]) for folder in folders for depth in range(1, folder.count("/") + 2)}
    for name in names:
        target = place(name, "zstd")
        if target in folders or len(target.rpartition("/")[2].encode()) > 255:
            what = f"{name!r} cannot be packed: {target!r} is the name of a folder, or too long"
            raise RefusedInput("E-PACK-NAME", what, hint="name it otherwise")
