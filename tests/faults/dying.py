"""A party's process that records what it sends, and kills itself at its n-th step.

Steps are: a message is written or read, a change of the ledger begins, is about to be made durable,
or has been. ``python -c "from tests.faults.dying import main; main()" RECORD N WORDS...`` runs
``radiopaque WORDS``, or the clinic below for ``clinic CONFIG ANSWERS IMAGES...``. N = 0: not
yet; SIGUSR1 lets the process die so many steps later as the file RECORD.fatal says.

A line of the record: session, kind, gate, block of a frame that is about to be sent. A mask belongs
to exactly one of these, so one that is there twice is a mask that was used twice.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from radiopaque.ledger.databases import SqliteFile
from radiopaque.wire import frames, messages
from radiopaque.wire.frames import Frame


class Steps:
    """Counts steps down; the process ends at the last one, as by a loss of power."""

    def __init__(self, fatal: int) -> None:
        self._left = fatal
        self._lock = threading.Lock()

    def arm(self, fatal: int) -> None:
        """The process ends so many steps from now."""
        with self._lock:
            self._left = fatal

    def step(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()


def watch(record: str, fatal: int) -> None:
    """From now on messages and changes of the ledger are steps, and sent frames are recorded."""
    steps = Steps(fatal)
    signal.signal(signal.SIGUSR1, lambda *_: steps.arm(int(Path(f"{record}.fatal").read_text())))
    file = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            steps.step()
            result = function(*arguments)
            steps.step()
            return result

        return called

    def recorded(function: Callable[[Frame], Any]) -> Callable[[Frame], Any]:
        def called(frame: Frame) -> Any:
            line = f"{frame.session.hex()} {frame.kind.name} {frame.gate} {frame.block}\n"
            os.write(file, line.encode("ascii"))
            return function(frame)

        return called

    frames.encode = around(recorded(frames.encode))
    messages.from_frame = around(recorded(messages.from_frame))
    frames.decode = around(frames.decode)
    messages.encode = around(messages.encode)
    messages.decode = around(messages.decode)
    transaction = SqliteFile.transaction

    @contextmanager
    def stepping(self: SqliteFile) -> Iterator[Any]:
        steps.step()
        with transaction(self) as connection:
            yield connection
            steps.step()
        steps.step()

    SqliteFile.transaction = stepping  # type: ignore[method-assign]


def clinic(config: str, answers: str, *images: str) -> None:
    """Submits images one by one; each result goes into a file of its own."""
    import numpy as np

    from data_owner import Client

    with Client.from_config(config) as client:
        for image in images:
            report = client.infer(image)
            path = Path(answers) / f"{Path(image).stem}.npy"
            np.save(path.with_suffix(".partial.npy"), np.array(report.logits))
            path.with_suffix(".partial.npy").replace(path)


def main() -> None:
    from radiopaque.cli.main import main as command
    from radiopaque.errors import RadiopaqueError

    record, fatal, *words = sys.argv[1:]
    watch(record, int(fatal))
    if words[0] != "clinic":
        return command(words)
    try:
        clinic(*words[1:])
    except RadiopaqueError as error:
        sys.exit(f"{type(error).__name__}: {error}")
