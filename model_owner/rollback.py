"""Which versions of its models a model owner serves now: rolled back by command, while it serves.

The file ``served.json`` in its store names, for each model that was rolled back, the newest version
that is served. Newer ones are neither listed nor fetched, no session is prepared for them, and none
that was prepared is started. Sessions under way finish. Rolling forward is the same with a newer
version: whatever was prepared meanwhile and still waits can be used again, until the next restart,
which burns what is not served.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from radiopaque.engine.plans import decode_any
from radiopaque.engine.weights_file import PLAN_FILE, read_limited
from radiopaque.errors import StoreError, UnknownModelError
from radiopaque.files import make_private_directory, write_atomically
from radiopaque.wire.plans import MAX_PLAN_BYTES

FILE: Final = "served.json"
_MAX_BYTES: Final = 1 << 20

_Stamp = tuple[int, int, int]


class Newest:
    """The newest version to serve of each model that was rolled back; for all threads.

    The file is read again whenever it has changed. Raises StoreError where it is not readable.
    """

    def __init__(self, store: Path) -> None:
        self._path = store / FILE
        self._lock = threading.Lock()
        self._stamp: _Stamp | None = None
        self._versions: dict[str, str] = {}
        self.versions()

    def versions(self) -> Mapping[str, str]:
        """By the model's name."""
        with self._lock:
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._versions, self._stamp = read(self._path.parent), stamp
            return self._versions


def read(store: Path) -> dict[str, str]:
    """The file's content; empty where there is none. Raises StoreError."""
    path = store / FILE
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("too long")
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict) or not all(
            isinstance(one, str) for one in document.values()
        ):
            raise ValueError("not a version for each name")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} does not say which versions are served: {error}; "
            "remove it to serve the newest, or run `radiopaque model-owner roll-back`"
        ) from error
    return document


def roll_back(
    store: Path, models: Iterable[tuple[Path, str | None, str | None]], name: str, version: str
) -> tuple[list[str], list[str]]:
    """Serve nothing newer than ``version`` of the model ``name``, from now on.

    ``models`` are the hosted ones: folders, with the name and version that they are offered under.
    Returns the versions that are served, and those that are withdrawn, oldest first. Raises
    UnknownModelError for what is not hosted, and StoreError.
    """
    versions = sorted(
        (offered for title, offered in map(_title, models) if title == name), key=version_key
    )
    if version not in versions:
        known = f"hosted are {', '.join(versions)}" if versions else "no model of that name is"
        raise UnknownModelError(
            f"{name} {version} is not hosted, {known}; add its folder to [[models]] and "
            "restart first"
        )
    make_private_directory(store)
    newest = read(store)
    newest[name] = version
    write_atomically(store / FILE, json.dumps(newest, indent=2).encode())
    place = versions.index(version) + 1
    return versions[:place], versions[place:]


def version_key(version: str) -> list[tuple[int, str]]:
    """Orders 1.10 after 1.9, and 1.0 after 1.0-rc1."""
    parts = re.split(r"[.+-]", version)
    return [*((int(part), "") if part.isdecimal() else (-1, part) for part in parts), (0, "")]


def _title(model: tuple[Path, str | None, str | None]) -> tuple[str, str]:
    path, name, version = model
    plan = decode_any(read_limited(path / PLAN_FILE, MAX_PLAN_BYTES))
    return name or plan.name, version or plan.version


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; check its rights") from error
    return found.st_ino, found.st_mtime_ns, found.st_size
