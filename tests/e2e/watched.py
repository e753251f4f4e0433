"""``python watched.py FOLDER WORDS...``: the command, which tells all that it can and is watched.

Everything is logged at DEBUG, traces go to ``FOLDER/traces``, and the name of every file that
Python code opens for writing to ``FOLDER/opened``.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any


def _append(name: str) -> int:
    return os.open(os.path.join(sys.argv[1], name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def _watch(opened: int) -> None:
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and arguments[2] & writing and not isinstance(arguments[0], int):
            os.write(opened, f"{os.fsdecode(arguments[0])}\n".encode())

    sys.addaudithook(hook)


def _tell_everything(traces: int) -> None:
    from radiopaque import telemetry

    quiet = telemetry.configure

    def configure(*arguments: Any, **options: Any) -> Any:
        handler = quiet(*arguments, **options)
        for name in ("", "radiopaque", "crypto_provider", "model_owner", "data_owner"):
            logging.getLogger(name).setLevel(logging.DEBUG)
        # what it says of its own compiling is long and knows no data
        logging.getLogger("numba").setLevel(logging.INFO)
        return handler

    telemetry.configure = configure  # type: ignore[assignment]
    telemetry.traces.start(lambda *trace: os.write(traces, f"{trace!r}\n".encode()) and None)
    telemetry.traces.start = lambda _: None  # type: ignore[method-assign]


if __name__ == "__main__":
    _watch(_append("opened"))
    _tell_everything(_append("traces"))
    from radiopaque.cli.main import main

    main(sys.argv[2:])
