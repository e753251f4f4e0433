"""Writing the audit log."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypedDict, Unpack

from radiopaque.audit.chain import (
    HEAD_NAME,
    Head,
    against_head,
    check_joints,
    check_segment,
    digest,
    parse_head,
    segment_name,
    segments,
)
from radiopaque.errors import StoreError
from radiopaque.files import (
    PRIVATE_FILE_MODE,
    InUseError,
    make_private_directory,
    open_locked,
    sync_directory,
)
from radiopaque.telemetry import get_logger

SEGMENT_BYTES: Final = 1 << 26
"""A segment does not grow beyond this; another follows."""
_MAX_TEXT: Final = 300
_MAX_HEAD_BYTES: Final = 200
_CLOSED: Final = -1

_log = get_logger(__name__)


class Event(TypedDict, total=False):
    """All that a line may say besides its number, its time, the party and what happened."""

    peer: str
    model: str
    version: str
    session: str
    outcome: str
    count: int
    received_bytes: int
    sent_bytes: int


class AuditLog:
    """One party's log in a folder of its own, for all threads; closed to other processes.

    Opening checks the last segment, the head, and that each segment begins where the one before it
    ended. A line that the head does not count yet, from a
    process that died in between, is taken over where it is whole, and cut off where it is not.
    """

    def __init__(self, folder: Path, party: str, segment_bytes: int = SEGMENT_BYTES) -> None:
        """``party``: role and name of who writes.

        Raises StoreError where the log was changed or cut, or is in use.
        """
        make_private_directory(folder)
        self._folder = folder
        self._party = party
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()
        self._segment = _CLOSED
        self._head_file = _take(folder / HEAD_NAME)
        try:
            self._resume()
        except OSError as error:
            self.close()
            raise self._failed(error) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process write. Closing again does nothing."""
        with self._lock:
            for descriptor in (self._segment, self._head_file):
                if descriptor != _CLOSED:
                    os.close(descriptor)
            self._segment = self._head_file = _CLOSED

    @property
    def head(self) -> Head:
        """The last line."""
        return self._head

    def check(self) -> None:
        """Raises StoreError where lines cannot be written any more."""
        if self._segment == _CLOSED:
            raise StoreError(
                f"the audit log in {self._folder} cannot be written any more; see the party's log, "
                "and start it again"
            )

    def write(self, event: str, **fields: Unpack[Event]) -> None:
        """Add a line, durably. Raises StoreError, then and from then on, where that fails."""
        with self._lock:
            self.check()
            line = self._line(event, fields)
            try:
                if self._size and self._size + len(line) > self._segment_bytes:
                    self._begin_segment()
                if os.write(self._segment, line) != len(line):
                    raise OSError(28, "no space left on device")
                os.fdatasync(self._segment)
                self._size += len(line)
                self._set_head(Head(self._head.number + 1, digest(line)))
            except OSError as error:
                # what is on the disk now is not known: the next process finds out
                os.close(self._segment)
                self._segment = _CLOSED
                raise self._failed(error) from error

    def note(self, event: str, **fields: Unpack[Event]) -> None:
        """Add a line on what has happened already, and cannot be refused any more.

        Where that fails, the party's log says so, and the next :meth:`write` raises.
        """
        try:
            self.write(event, **fields)
        except StoreError as error:
            _log.failure("a line is missing in the audit log", error, kind=event)

    @contextmanager
    def attempt(self, event: str, **fields: Unpack[Event]) -> Iterator[Event]:
        """A line before the block and one behind it, with its outcome and what it adds to the
        yielded fields. Raises StoreError where the first cannot be written.
        """
        self.write(f"{event} begun", **fields)
        ended = Event(**fields, outcome="ok")
        try:
            yield ended
        except BaseException as error:
            ended["outcome"] = type(error).__name__
            raise
        finally:
            self.note(f"{event} ended", **ended)

    def _line(self, event: str, fields: Event) -> bytes:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        entry: dict[str, object] = {
            "number": self._head.number + 1,
            "time": f"{stamp}.{int(now % 1 * 1000):03d}Z",
            "party": self._party,
            "event": event,
        }
        for name, value in fields.items():
            entry[name] = value if isinstance(value, int) else str(value)[:_MAX_TEXT]
        entry["previous"] = self._head.digest
        return json.dumps(entry).encode("ascii") + b"\n"

    def _resume(self) -> None:
        self._head = parse_head(os.pread(self._head_file, _MAX_HEAD_BYTES, 0), self._folder)
        found = segments(self._folder)
        if not found:
            if self._head.number:
                raise self._changed(f"its files are gone, the head counts {self._head.number}")
            self._begin_segment()
            return
        path = found[-1]
        before, broken = check_joints(found)
        if before is None and path.name == segment_name(self._head.number + 1):
            # an empty segment follows the head; otherwise its own first line says what it follows
            before = self._head
        segment = check_segment(path, before)
        broken = broken or segment.broken or against_head(path, segment, self._head)
        if broken is not None:
            raise self._changed(str(broken))
        self._segment = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._size = segment.size
        if segment.rest:
            os.ftruncate(self._segment, segment.size)
            os.fsync(self._segment)
        self._set_head(segment.last)

    def _begin_segment(self) -> None:
        path = self._folder / segment_name(self._head.number + 1)
        fresh = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, PRIVATE_FILE_MODE)
        if self._segment != _CLOSED:
            os.close(self._segment)
        self._segment, self._size = fresh, 0
        sync_directory(self._folder)

    def _set_head(self, head: Head) -> None:
        """In place: it is less than a sector, which disks write whole."""
        os.pwrite(self._head_file, f"{head.number:012d} {head.digest}\n".encode("ascii"), 0)
        os.fdatasync(self._head_file)
        self._head = head

    def _failed(self, error: OSError) -> StoreError:
        return StoreError(
            f"cannot write the audit log in {self._folder}: {error.strerror}; check the disk and "
            "the folder's rights, and start the party again"
        )

    def _changed(self, what: str) -> StoreError:
        return StoreError(
            f"the audit log in {self._folder} was changed: {what}; keep the folder as it is, look "
            "into what happened, and move it away for the party to begin another log"
        )


def _take(path: Path) -> int:
    """Open the head and keep other processes out; the descriptor holds the lock."""
    try:
        return open_locked(path)
    except InUseError as error:
        raise StoreError(
            f"the audit log in {path.parent} is in use by another process; stop that one first"
        ) from error
    except OSError as error:
        raise StoreError(f"cannot open {path}: {error.strerror}") from error
