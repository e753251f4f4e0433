"""One process at a time has a locked file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from radiopaque.files import InUseError, open_locked


def test_a_locked_file_is_one_holders(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    umask = os.umask(0)
    held = open_locked(path)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o600
    os.write(held, b"its holder")
    opened = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(InUseError) as refused:
        open_locked(path)
    assert refused.value.begins == b"its holder"
    assert len(list(Path("/proc/self/fd").iterdir())) == opened
    assert path.read_bytes() == b"its holder"
    os.close(held)
    os.close(open_locked(path))


def test_a_locked_file_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_locked(tmp_path / "none" / "lock")
