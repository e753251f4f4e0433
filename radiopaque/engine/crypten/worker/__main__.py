"""``python -m radiopaque.engine.crypten.worker FD``: one worker process on an inherited socket."""

from __future__ import annotations

import socket
import sys
import traceback
from contextlib import suppress

from radiopaque.engine.crypten.pipe import Pipe, Record
from radiopaque.errors import EngineError, RadiopaqueError


def main() -> None:
    """Run until the answer is given, something fails, or the party closes the pipe."""
    pipe = Pipe(socket.socket(fileno=int(sys.argv[1])), None)
    try:
        # inside, so that a missing or broken library is reported like everything else
        from radiopaque.engine.crypten.worker.session import run

        run(pipe)
    except Exception as error:
        with suppress(EngineError):
            pipe.write(Record.FAILED, 0, _last_words(error).encode())


def _last_words(error: Exception) -> str:
    """Name and text; of an unexpected error the places instead, since its text may quote values."""
    name = type(error).__name__
    # torch has no error of its own for it
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return f"{name}\nit takes more memory than is free or than its plan accounts for"
    if isinstance(error, RadiopaqueError | ImportError):
        return f"{name}\n{error}"
    places = traceback.extract_tb(error.__traceback__, limit=-5)
    return f"{name}\n" + " < ".join(f"{p.filename}:{p.lineno} {p.name}" for p in reversed(places))


if __name__ == "__main__":
    main()
