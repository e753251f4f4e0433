"""Compiled code is executed: it is looked for only where nobody else can put it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from radiopaque import kernels
from radiopaque.errors import ConfigError


@pytest.mark.parametrize(
    ("mode", "ours"), [(0o700, True), (0o755, True), (0o757, False), (0o1777, False)]
)
def test_folders_that_others_can_write_to(tmp_path: Path, mode: int, ours: bool) -> None:
    tmp_path.chmod(mode)
    assert kernels._ours(tmp_path) is ours
    # where it is still to be made, by whom is open
    assert kernels._ours(tmp_path / "not" / "yet") is ours


def test_a_group_counts_as_others_unless_it_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o775)
    status = tmp_path.stat()
    for group, ours in ((status.st_uid, True), (status.st_uid + 1, False)):
        changed = os.stat_result([*status[:5], group, *status[6:]])
        monkeypatch.setattr(Path, "stat", lambda *_, changed=changed, **__: changed)
        assert kernels._ours(tmp_path) is ours


def test_another_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = tmp_path.stat().st_uid
    status = os.stat_result([*tmp_path.stat()[:4], owner + 4321, *tmp_path.stat()[5:]])
    monkeypatch.setattr(Path, "stat", lambda *_, **__: status)
    assert not kernels._ours(tmp_path)


def test_a_given_folder_that_others_can_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    kernels._provide_cache()
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match=r"NUMBA_CACHE_DIR.*chmod 700"):
        kernels._provide_cache()


def test_a_home_that_others_can_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a service whose HOME is /tmp, from a package that it may not change."""
    package = Path(kernels.__file__).parent
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, how: path != package and access(path, how))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    kernels._provide_cache()
    assert not os.environ["NUMBA_CACHE_DIR"]
    tmp_path.chmod(0o1777)
    kernels._provide_cache()
    made = Path(os.environ["NUMBA_CACHE_DIR"])
    assert made.stat().st_mode & 0o777 == 0o700
    assert tmp_path not in made.parents
