"""Files appear whole or not at all, and closed to others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from radiopaque.errors import StoreError
from radiopaque.files import make_private_directory, open_store, write_atomically


@pytest.fixture(autouse=True)
def _open_umask() -> object:
    old = os.umask(0)
    yield
    os.umask(old)


def test_written_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_atomically(path, b"one")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"one", 0o600)
    write_atomically(path, b"two", 0o644)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"two", 0o644)
    assert [one.name for one in tmp_path.iterdir()] == ["key"]


def test_a_failure_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    write_atomically(path, b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["key"]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write"):
        write_atomically(tmp_path / "none" / "key", b"x")


def test_private_directory(tmp_path: Path) -> None:
    store = tmp_path / "a" / "b"
    make_private_directory(store)
    make_private_directory(store)
    assert store.stat().st_mode & 0o777 == 0o700
    store.chmod(0o710)
    with pytest.raises(StoreError, match=f"chmod 700 {store}"):
        make_private_directory(store)


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(StoreError, match="cannot create"):
        make_private_directory(tmp_path / "store")


@pytest.mark.parametrize(("mode", "closed"), [(0o640, False), (0o604, False), (0o400, True)])
def test_a_store_is_looked_through(tmp_path: Path, mode: int, closed: bool) -> None:
    store = tmp_path / "store"
    open_store(store)
    (store / "deep").mkdir(mode=0o700)
    path = store / "deep" / "keys"
    path.touch(mode=0o600)
    open_store(store)
    path.chmod(mode)
    if closed:
        open_store(store)
    else:
        with pytest.raises(StoreError, match=f"run: chmod 600 {path}"):
            open_store(store)
    path.chmod(0o600)
    path.parent.chmod(0o750)
    with pytest.raises(StoreError, match=f"run: chmod 700 {path.parent}"):
        open_store(store)


def test_a_link_is_followed(tmp_path: Path) -> None:
    store = tmp_path / "store"
    open_store(store)
    (tmp_path / "elsewhere").touch(mode=0o600)
    (store / "link").symlink_to(tmp_path / "elsewhere")
    open_store(store)
    (tmp_path / "elsewhere").chmod(0o644)
    with pytest.raises(StoreError, match="chmod 600"):
        open_store(store)
    (tmp_path / "elsewhere").unlink()
    open_store(store)


def test_another_users_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    open_store(store)
    monkeypatch.setattr(os, "geteuid", lambda: store.stat().st_uid + 1)
    if store.stat().st_uid == 0:
        store.mkdir(exist_ok=True)
        os.chown(store, 12345, -1)
    with pytest.raises(StoreError, match="belongs to the user"):
        open_store(store)
