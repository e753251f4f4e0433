"""What a site remembers of the rounds of one run, so that none of them can be played twice.

Two rules. No attempt at a round is begun twice, so that a site never masks two updates in one
context. And no round is opened twice, however often it was attempted: two sums of one round over
different sites would differ by the update of a single one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from training.errors import RepeatedRoundError, SettingsError
from training.files import write_atomically

_VERSION = 1


class Journal:
    """The journal of a site in one run; in memory if `path` is None (one process, simulations).

    Everything is on disk before it counts.

    Raises:
        SettingsError: the file cannot be read.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.session = b""
        self.attempt = -1
        self.opened = -1
        if path is not None and path.exists():
            self._read(path)

    def begin(self, session: bytes, attempt: int, number: int) -> None:
        """Enter that an attempt at round `number` begins.

        Raises:
            RepeatedRoundError: the run has another session, the attempt is not a new one, or the
                round has been opened.
            SettingsError: it cannot be written.
        """
        if self.session and session != self.session:
            raise RepeatedRoundError(
                "this run has been begun in another session, and a run takes place once; to train "
                "again, agree on a run file with another seed"
            )
        if attempt <= self.attempt:
            raise RepeatedRoundError(
                f"attempt {attempt} is to be made after attempt {self.attempt}; each is made once. "
                "The coordinator has gone back to an older state of the run"
            )
        if number <= self.opened:
            raise RepeatedRoundError(
                f"round {number + 1} has been opened already, and two sums of one round could give "
                "away the update of a single site; the coordinator has to go on with a later round"
            )
        self.session, self.attempt = session, attempt
        self._write()

    def open(self, number: int) -> None:
        """Enter that this site opens the sum of round `number`.

        Raises:
            SettingsError: it cannot be written.
        """
        self.opened = max(self.opened, number)
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        content = {
            "version": _VERSION,
            "session": self.session.hex(),
            "attempt": self.attempt,
            "opened": self.opened,
        }
        try:
            write_atomically(self._path, (json.dumps(content) + "\n").encode())
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise SettingsError(
                f"the journal {self._path} cannot be written ({error.strerror}); without it a "
                "round could be played twice, so nothing is done"
            ) from error

    def _read(self, path: Path) -> None:
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            known = content["version"] == _VERSION
            self.session = bytes.fromhex(content["session"])
            self.attempt, self.opened = int(content["attempt"]), int(content["opened"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise SettingsError(
                f"{path} is not a journal ({type(error).__name__}); restore it from a backup, or "
                "agree on a run file with another seed"
            ) from error
        if not known:
            raise SettingsError(f"{path} is of another version; finish the run with the one it had")
