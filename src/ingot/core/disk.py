"""Write aside, sync, rename, sync the folder: the one module that makes bytes durable.

Laws: a file that is replaced is at every instant either the old one or the new one, whole; when a
function named ``*_durable`` (or ``write_file_atomic`` with ``durable=True``) returns, the change survives
a power cut on a file system that honours fsync. A failed fsync is never tried again on the same data: the
kernel reports a lost write once and then forgets it. Every ``OSError`` leaves as ``DiskFailed`` with the
path, the ``OSError`` as its cause.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingot.errors import DiskFailed

#: macOS only: fsync there leaves the data in the drive's cache, this fcntl flushes it.
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)

_CODES = {
    errno.ENOSPC: ("E-SPACE", "the disk is full", "free some space and run again; finished targets are kept"),
    errno.EDQUOT: ("E-SPACE", "the disk quota is used up", "free some space and run again; finished targets are kept"),
    errno.EMFILE: ("E-FILES", "too many open files", "raise the limit: ulimit -n 4096"),
    errno.ENFILE: ("E-FILES", "the system has too many open files", None),
    errno.EACCES: ("E-ACCESS", "permission denied", "check the owner and the mode of the path"),
    errno.EPERM: ("E-ACCESS", "the operation is not permitted", "check the owner and the mode of the path"),
    errno.ELOOP: ("E-LINK", "a symbolic link lies where a file of ingot's own belongs", "remove the link"),
    errno.EFBIG: (
        "E-SPACE",
        "a file would be larger than the system's limit allows",
        "raise the limit: ulimit -f unlimited",
    ),
    errno.EROFS: ("E-ACCESS", "the file system is read-only", "mount it writable, or work elsewhere"),
}


def failure(error: OSError, path: Path) -> DiskFailed:
    """The ``DiskFailed`` that explains an ``OSError`` and names the path: a code of ``_CODES``, else E-IO."""
    reason = (error.strerror or type(error).__name__).lower()
    code, what, hint = _CODES.get(error.errno or 0, ("E-IO", f"the disk operation failed ({reason})", None))
    named = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(path)
    return DiskFailed(code, f"{what}: {named}", facts=[f"the system says: {reason}"], hint=hint)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise an ``OSError`` of the block as ``DiskFailed`` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise failure(error, path) from error


def _sync(descriptor: int) -> None:
    """Flush a descriptor's data to the medium; on macOS through the drive's cache too."""
    if _FULL_SYNC is not None:
        try:
            fcntl.fcntl(descriptor, _FULL_SYNC)
        except OSError as error:
            # Only "this file system does not know the call" may fall back; any other failure is a lost write.
            if error.errno not in (errno.ENOTSUP, errno.ENOTTY, errno.EINVAL):
                raise
        else:
            return
    os.fsync(descriptor)


def fsync_file(path: Path) -> None:
    """Make a file's content durable; its name is durable only after ``fsync_dir`` of its folder."""
    _sync_path(path, os.O_NOFOLLOW)


def fsync_dir(path: Path) -> None:
    """Make the names in a folder durable."""
    _sync_path(path, os.O_DIRECTORY)


def _sync_path(path: Path, flag: int) -> None:
    with explained(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flag)
        try:
            _sync(descriptor)
        finally:
            os.close(descriptor)


def forget_cached(path: Path) -> None:
    """Ask the system to drop a synced file from memory, so that the next read comes from the medium (Linux)."""
    with explained(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


#: Folders whose names this process has made durable: path, device, inode.
_kept: set[tuple[Path, int, int]] = set()


def make_dirs(path: Path, mode: int = 0o755) -> None:
    """Make a folder and its missing parents; not durable: for locks, scratch and what can be derived again."""
    if not path.is_dir():
        if path.parent != path:
            make_dirs(path.parent, mode)
        with explained(path):
            path.mkdir(mode, exist_ok=True)


def make_dirs_durable(path: Path, mode: int = 0o755) -> None:
    """Make a folder and its missing parents; their names are durable on return.

    So is the name of a folder that was there: whoever made it may have been killed before its sync, or not be there
    yet. Its parents' are, since each folder is made after its parent is durable.
    """
    found = path.is_dir()
    if found and _identity(path) in _kept:
        return
    if not found:
        if path.parent != path:
            make_dirs_durable(path.parent, mode)
        with explained(path):
            # Another process may be quicker.
            path.mkdir(mode, exist_ok=True)
    try:
        fsync_dir(path.parent)
    except DiskFailed as error:
        # Folders above ours, such as /home, need not be readable to us; what we make is in folders that are.
        if not found or error.code != "E-ACCESS":
            raise
    _kept.add(_identity(path))


def _identity(path: Path) -> tuple[Path, int, int]:
    with explained(path):
        status = os.stat(path)
    return path, status.st_dev, status.st_ino


def _write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes: the system may take fewer than it was given."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


#: What ``_aside`` makes.
_ASIDE = re.compile(r"\..+\.tmp-[0-9a-f]{8}", re.DOTALL)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")


def write_file_atomic(path: Path, data: bytes, mode: int = 0o644, *, durable: bool = True) -> None:
    """Replace a file's content whole: old or new is seen, never a part.

    ``durable=False`` leaves out both syncs, for what can be derived again. Raises DiskFailed; then the old
    file is untouched.
    """
    aside = _aside(path)
    with explained(path):
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(aside, flags, 0o600)
            try:
                _write_all(descriptor, data)
                os.fchmod(descriptor, mode)
                if durable:
                    _sync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(aside, path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            # Nobody knows the name of what is written aside.
            error.filename = os.fspath(path)
            raise
    if durable:
        fsync_dir(path.parent)


def sweep_aside(path: Path) -> int:
    """Remove what killed writers of ``path`` left beside it; call it only under the lock of its writers."""
    return _sweep(path.parent, f".{path.name}.tmp-")


def sweep_asides(folder: Path) -> int:
    """As ``sweep_aside``, for all files of a folder that has one lock; 0 when there is no such folder."""
    return _sweep(folder, "") if folder.is_dir() else 0


def _sweep(folder: Path, prefix: str) -> int:
    with explained(folder):
        left = [name for name in sorted(os.listdir(folder)) if name.startswith(prefix) and _ASIDE.fullmatch(name)]
        for name in left:
            (folder / name).unlink(missing_ok=True)
    return len(left)


def rename_durable(source: Path, target: Path) -> None:
    """Rename and sync the folder of the new name. The content must be durable before (``fsync_file``).

    The old name needs no sync of its own: file systems with a journal (ext4, xfs, btrfs, APFS) write a rename as one
    step, so once the new name is safe the old one is gone.
    """
    with explained(target):
        os.rename(source, target)
    fsync_dir(target.parent)


def replace_link(link: Path, goal: str) -> None:
    """Point a symbolic link elsewhere in one step; not durable, since links are derived."""
    aside = _aside(link)
    with explained(link):
        os.symlink(goal, aside)
        try:
            os.rename(aside, link)
        except OSError:
            aside.unlink(missing_ok=True)
            raise


def append_durable(path: Path, data: bytes, expected_size: int) -> None:
    """Append to a file of exactly ``expected_size`` bytes (made when 0 and absent); durable on return.

    Raises DiskFailed; then any prefix of ``data`` may have been appended. E-CHANGED when the size is another.
    """
    with explained(path):
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if expected_size == 0 else 0)
        descriptor = os.open(path, flags, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size != expected_size:
                raise DiskFailed("E-CHANGED", f"a file has {size} bytes where {expected_size} were expected: {path}")
            _write_all(descriptor, data)
            _sync(descriptor)
        finally:
            os.close(descriptor)
    if expected_size == 0:
        fsync_dir(path.parent)


def truncate(path: Path, size: int) -> None:
    """Cut a file to ``size`` bytes; durable with the next sync of the file."""
    with explained(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)
