"""Files appear whole or not at all, and closed to others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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


_WRITER = """
import os, signal, sys
from pathlib import Path
from radiopaque.files import write_atomically

def interrupted(descriptor):
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print("writing", flush=True)
    sys.stdin.readline()

os.fsync = interrupted
write_atomically(Path(sys.argv[1]), b"a key")
"""


def _writer(path: Path, how: str) -> subprocess.Popen[bytes]:
    """Another process that is interrupted when all is written but the name."""
    command = (sys.executable, "-c", _WRITER, str(path), how)
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_what_a_killed_process_had_begun_to_write_is_removed(tmp_path: Path) -> None:
    make_private_directory(tmp_path / "store")
    with _writer(tmp_path / "store" / "key", "killed") as writer:
        assert writer.wait() == -signal.SIGKILL
    (left,) = (tmp_path / "store").iterdir()
    assert left.read_bytes() == b"a key"
    mine = tmp_path / "store" / ".key"
    mine.write_bytes(b"of somebody else")
    make_private_directory(tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == [mine]


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    make_private_directory(tmp_path / "store")
    # of a process that has not come to lock it
    made = tmp_path / "store" / f".key.{bytes(8).hex()}"
    made.touch(mode=0o600)
    with _writer(tmp_path / "store" / "key", "alive") as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        make_private_directory(tmp_path / "store")
        writer.communicate(b"\n")
    assert writer.returncode == 0
    assert {path.name for path in (tmp_path / "store").iterdir()} == {"key", made.name}
