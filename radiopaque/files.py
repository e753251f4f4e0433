"""Files: whole or not at all, one process's alone, closed to others unless said otherwise."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Final

from radiopaque.errors import StoreError

PRIVATE_FILE_MODE = 0o600
PRIVATE_DIRECTORY_MODE = 0o700
_BEGINS_BYTES = 20
_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]{16}", re.DOTALL)
"""What :func:`write_atomically` writes to; a process that is killed meanwhile leaves it."""


def write_atomically(path: Path, data: bytes, mode: int = PRIVATE_FILE_MODE) -> None:
    """Write ``data`` to ``path`` durably, through a temporary file beside it.

    Raises StoreError when the folder is missing, full or not writable.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                # where locks are not to be had, nothing is taken for a leftover either
                with suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                file.write(data)
                file.flush()
                os.fsync(descriptor)
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror}; check the folder, its rights and free space"
        ) from error


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read it. Raises OSError, also for what never ends: a device, a pipe."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")


class InUseError(Exception):
    """Another process has the file; ``begins`` is the start of what is in it."""

    def __init__(self, begins: bytes) -> None:
        super().__init__("another process has the file")
        self.begins = begins


def open_locked(path: Path) -> int:
    """Open a file, made where there is none, and keep other processes out until it is closed.

    The descriptor holds the lock, which the kernel drops with the process. Raises InUseError where
    it cannot be had, OSError where the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE_MODE)
    try:
        _lock(descriptor)
    except OSError as error:
        try:
            raise InUseError(os.read(descriptor, _BEGINS_BYTES)) from error
        finally:
            os.close(descriptor)
    return descriptor


def remove_leftovers(directory: Path) -> None:
    """Remove from a folder what processes that were killed had begun to write.

    What another process is writing now is locked, and stays. Raises StoreError.
    """
    try:
        for path in directory.iterdir():
            if _TEMPORARY.fullmatch(path.name):
                _remove_leftover(path)
    except OSError as error:
        raise StoreError(f"cannot clear {directory}: {error.strerror}") from error


def _remove_leftover(path: Path) -> None:
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with suppress(BlockingIOError):
                _lock(descriptor)
                # whoever has just made it has not locked it yet, nor written anything
                if os.fstat(descriptor).st_size:
                    path.unlink()
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sync_directory(path: Path) -> None:
    """Make the entries of a folder survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private_directory(path: Path) -> None:
    """Create a folder for secrets, or check that an existing one is this user's and closed.

    What a killed process had begun to write there is removed. Raises StoreError when it cannot be
    created, or others may look into it.
    """
    try:
        path.mkdir(mode=PRIVATE_DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot create the folder {path}: {error.strerror}") from error
    check_private(path)
    remove_leftovers(path)


def open_store(path: Path) -> None:
    """A party's folder, with everything in it checked: ledger, keys, material, logs.

    Raises StoreError for the first that others may read or that another user owns.
    """
    make_private_directory(path)
    for folder, names, files in os.walk(path):
        for name in (*names, *files):
            check_private(Path(folder) / name)


def check_private(path: Path) -> None:
    """Raises StoreError where another user may read a file or folder, or owns it.

    A file that is gone meanwhile is nobody's.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"cannot look at {path}: {error.strerror}") from error
    if stat.S_ISLNK(status.st_mode):
        check_private(path.resolve())
        return
    what, wanted = ("folder", 700) if stat.S_ISDIR(status.st_mode) else ("file", 600)
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise StoreError(
            f"{what} {path} is open to other users (mode {mode:03o}); run: chmod {wanted} {path}"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise StoreError(
            f"{what} {path} belongs to the user {status.st_uid}, who could open it to others; "
            f"run this as the party's user, or let it be its own: chown {os.geteuid()} {path}"
        )
