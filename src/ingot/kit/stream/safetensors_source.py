"""A source over the safetensors files of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ingot.core.digest import FileRecord
from ingot.errors import RefusedInput
from ingot.kit import hf
from ingot.kit.stream.file_source import FileSource
from ingot.kit.stream.verified import Buffers, VerifiedFile, expectation
from ingot.kit.stream.vocabulary import ELEMENT_BYTES, Block, Slot


class SafetensorsSource(FileSource):
    """The tensors of a folder in the order of its files and of the bytes in them; every file is read once.

    The headers are checked when it is made (E-ST-*, E-NOT-HF, E-FORMAT-PICKLE). ``expected`` holds what each file must
    be: it is compared with what was read, in that same read. ``tensors``: the xxh3-128 of the tensors read so far.
    """

    def __init__(self, folder: Path, expected: Mapping[str, FileRecord] | None = None) -> None:
        self._parts = dict(hf.files_with_entries(folder))
        slots = []
        for path, entries in self._parts.items():
            for entry in entries:
                if entry.dtype not in ELEMENT_BYTES:
                    raise RefusedInput("E-ST-DTYPE", f"{path.name}: no stage reads {entry.dtype} ({entry.name})")
                slots.append(Slot(entry.name, entry.shape, entry.dtype))
        super().__init__(slots)
        self._expected = {path: expectation(path, expected) for path in self._parts}

    def blocks(self, rows: Sequence[int]) -> Iterator[Block]:
        """See ``Source``."""
        buffers, index = Buffers(), 0
        for path, entries in self._parts.items():
            with VerifiedFile(path, self._expected[path], buffers) as file:
                # What comes before the data was checked already, and counts in the hash like the rest.
                file.skip(file.size - (entries[-1].end if entries else 0))
                for _ in entries:
                    yield from self._cut(file, index, rows[index])
                    index += 1
                file.finish()
