"""``python watched.py FOLDER WORDS...``: the command, which tells all that it can and is watched.

Everything is logged at DEBUG, traces go to ``FOLDER/traces``, and the name of every file that
Python code opens for writing to ``FOLDER/opened``, also by Python processes that it starts, whose
commands are in ``FOLDER/children``. Several commands, with ``--then`` between them, are run one
after the other, and say their exit codes.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

_CHILD = "import watched; watched.watch_child({folder!r})\n"


def _append(folder: str, name: str) -> int:
    return os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def watch_child(folder: str) -> None:
    """What a Python process does first of all that finds this folder on its path."""
    os.write(_append(folder, "children"), f"{' '.join(sys.orig_argv)}\n".encode())
    _watch(_append(folder, "opened"))


def _watch_children(folder: str) -> None:
    """They are given the path of this process, and so begin with this file."""
    with open(os.path.join(folder, "sitecustomize.py"), "w") as file:
        file.write(_CHILD.format(folder=folder))
    sys.path.insert(0, folder)


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

    def tell(*trace: Any) -> None:
        os.write(traces, f"{trace!r}\n".encode())

    telemetry.traces.start(tell)
    telemetry.traces.start = lambda _: None  # type: ignore[method-assign, assignment]


def _run(words: list[str]) -> None:
    from radiopaque.cli.main import main

    if "--then" not in words:
        main(words)
    while words:
        one, words = _cut(words)
        try:
            main(one)
        except SystemExit as ended:
            print(f"{' '.join(one[:2])}: exit {ended.code or 0}", flush=True)


def _cut(words: list[str]) -> tuple[list[str], list[str]]:
    end = words.index("--then") if "--then" in words else len(words)
    return words[:end], words[end + 1 :]


if __name__ == "__main__":
    _watch_children(sys.argv[1])
    _watch(_append(sys.argv[1], "opened"))
    _tell_everything(_append(sys.argv[1], "traces"))
    _run(sys.argv[2:])
