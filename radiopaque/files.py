"""Files that exist whole or not at all, readable by their owner alone unless said otherwise."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from radiopaque.errors import StoreError

PRIVATE_FILE_MODE = 0o600
PRIVATE_DIRECTORY_MODE = 0o700


def write_atomically(path: Path, data: bytes, mode: int = PRIVATE_FILE_MODE) -> None:
    """Write ``data`` to ``path`` durably, through a temporary file beside it.

    Raises StoreError when the folder is missing, full or not writable.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
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


def sync_directory(path: Path) -> None:
    """Make the entries of a folder survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private_directory(path: Path) -> None:
    """Create a folder for secrets, or check that an existing one is closed to others.

    Raises StoreError when it cannot be created or others may look into it.
    """
    try:
        path.mkdir(mode=PRIVATE_DIRECTORY_MODE, parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        raise StoreError(f"cannot create the folder {path}: {error.strerror}") from error
    if mode & 0o077:
        raise StoreError(
            f"folder {path} is open to other users (mode {mode:03o}); run: chmod 700 {path}"
        )
