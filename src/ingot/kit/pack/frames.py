"""zstd frames: one a file, written and read in pieces, hashed on the way.

Law: the bytes of a frame follow from the content, its size and the ``Recipe``; the number of threads changes nothing.
zstd cuts what it compresses into jobs only when it has workers, and then always at the same places; so there is always
at least one, and the size of a job is fixed here. A frame states the size of its content and ends in a checksum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import xxhash
import zstandard

from ingot.core import disk, files
from ingot.core.digest import FileRecord
from ingot.errors import RefusedInput
from ingot.kit.pack import AGAIN

#: What is read, and what is handed on, at once.
BLOCK = 1 << 20
#: What one worker compresses at once: part of the format of the bytes, since matches end at a job's overlap.
_JOB = 8 << 20


@dataclass(frozen=True)
class Recipe:
    """What decides the bytes of a frame. ``long_range``: log2 of the window in which far repeats are found."""

    level: int
    long_range: int | None = None

    def parameters(self, size: int, threads: int) -> Any:
        """zstd's parameters for content of ``size`` bytes."""
        options: dict[str, Any] = {"write_content_size": True, "write_checksum": True, "job_size": _JOB}
        if self.long_range is not None:
            options |= {"enable_ldm": True, "window_log": self.long_range}
        return zstandard.ZstdCompressionParameters.from_level(
            self.level, source_size=size, threads=max(1, threads), **options
        )

    def window_log(self, size: int) -> int:
        """log2 of the largest window that a frame of so much content may ask its reader for."""
        return int(self.parameters(size, 1).window_log)


class Output:
    """A new file that is hashed as it is written."""

    def __init__(self, root: Path, name: str) -> None:
        self._name = name
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("xb", buffering=0)
        self._sha, self._fast, self.size = hashlib.sha256(), xxhash.xxh3_128(), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def write(self, data: Any) -> None:
        """Append all of it."""
        view = memoryview(data)
        self._sha.update(view)
        self._fast.update(view)
        self.size += len(view)
        while view:
            view = view[self._file.write(view) :]

    def record(self) -> FileRecord:
        """What was written so far."""
        return FileRecord(self._name, self.size, self._sha.hexdigest(), self._fast.hexdigest())


class Frame:
    """A frame that grows with the pieces of its content."""

    def __init__(self, output: Output, parameters: Any, size: int, dictionary: bytes | None) -> None:
        options = {} if dictionary is None else {"dict_data": loaded(dictionary)}
        compressor = zstandard.ZstdCompressor(compression_params=parameters, **options)
        self._output, self._stream = output, compressor.compressobj(size=size)

    def write(self, piece: Any) -> None:
        """The next piece."""
        self._output.write(self._stream.compress(piece))

    def finish(self) -> None:
        """After the last piece; zstd refuses another size than was said."""
        self._output.write(self._stream.flush())


def loaded(dictionary: bytes) -> Any:
    """A trained dictionary for zstd."""
    return zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_FULLDICT)


class Source:
    """A file that is hashed as it is read, for whoever reads it through ``read``."""

    def __init__(self, path: Path) -> None:
        self._file = open(files.open_regular(path), "rb", buffering=0)  # noqa: SIM115 - closed by __exit__
        self._sha, self.size = hashlib.sha256(), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def read(self, size: int = -1) -> bytes:
        """As a file's; never more than a block."""
        data = self._file.read(min(size, BLOCK) if size >= 0 else BLOCK)
        self._sha.update(data)
        self.size += len(data)
        return data

    def rest(self) -> str:
        """Read what is left; the SHA-256 of the whole file."""
        while self.read(BLOCK):
            pass
        return self._sha.hexdigest()


def decompressor(window_log: int, dictionary: bytes | None) -> Any:
    """zstd's decompressor; a frame that wants a larger window is refused by it, too."""
    options = {} if dictionary is None else {"dict_data": loaded(dictionary)}
    return zstandard.ZstdDecompressor(max_window_size=1 << window_log, **options)


def contents(source: Source, most: int, opened: Any | None) -> Iterator[bytes]:
    """The pieces of what a packed file holds, at most ``most`` + 1 bytes of them: a bomb ends there.

    ``opened`` is the decompressor; None: the file is stored as it is. RefusedInput (E-PACK-DAMAGED) for a bad frame.
    """
    # Across frames: what follows the frame is then read as another one, and refused for its size or its form.
    reader = source if opened is None else opened.stream_reader(source, read_size=BLOCK, read_across_frames=True)
    left = most + 1
    while left > 0:
        try:
            piece = reader.read(min(BLOCK, left))
        except zstandard.ZstdError as error:
            raise RefusedInput("E-PACK-DAMAGED", "a frame is damaged", facts=[str(error)], hint=AGAIN) from error
        if not piece:
            return
        left -= len(piece)
        yield piece


def check_header(path: Path, size: int, window_log: int) -> None:
    """RefusedInput where a frame's own header says otherwise than ``pack.json``, before any memory is taken for it.

    E-PACK-DAMAGED: no frame; E-PACK-SIZE: another size of the content, or none; E-PACK-WINDOW: more memory is wanted.
    """
    try:
        header = zstandard.get_frame_parameters(files.read_regular(path, 32))
    except zstandard.ZstdError as error:
        raise RefusedInput("E-PACK-DAMAGED", f"{path.name} is no zstd frame", facts=[str(error)], hint=AGAIN) from error
    except OSError as error:
        raise disk.failure(error, path) from error
    if header.content_size != size:
        what = f"the frame {path.name} says that it holds {header.content_size:,} bytes, and pack.json {size:,}"
        raise RefusedInput("E-PACK-SIZE", what, hint=AGAIN)
    if header.window_size > max(1 << window_log, 1 << 10):
        what = f"the frame {path.name} wants a window of {header.window_size:,} bytes"
        raise RefusedInput("E-PACK-WINDOW", what, facts=[f"pack.json allows {1 << window_log:,}"], hint=AGAIN)
