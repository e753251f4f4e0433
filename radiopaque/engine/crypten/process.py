"""A party's side of one inference under CrypTen: the worker process, and the frames to the peer.

CrypTen keeps its state in globals, so each inference gets a process of its own, which ends with it.
The party's process imports neither torch nor CrypTen; it forwards what the worker wants sent, as
frames of the session, and accepts exactly the frames that are due.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from types import TracebackType
from typing import Any, Final

from numpy.typing import NDArray

from radiopaque.engine.crypten.pipe import Pipe, Record
from radiopaque.errors import ConfigError, EngineError, PlanError
from radiopaque.prg import KEY_BYTES, SecretKey
from radiopaque.transport.link import Link, payload_pieces
from radiopaque.wire.frames import DIGEST_BYTES, SESSION_BYTES, Kind

MAX_SETUP_BYTES: Final = 8 << 20
MAX_ANSWER_BYTES: Final = 1 << 30
VERSION: Final = "0.4.1"
"""Of CrypTen. Both ranks must ask for the same tuples, and what is replaced must be there."""
INSTALL: Final = f"pip install 'radiopaque[crypten]' && pip install --no-deps crypten=={VERSION}"

_SETUP: Final = struct.Struct(f"<B{SESSION_BYTES}s{DIGEST_BYTES}s{KEY_BYTES}s")
_MODULE: Final = "radiopaque.engine.crypten.worker"
_NEEDED: Final = ("torch", "omegaconf", "yaml", "crypten")


class Job(IntEnum):
    """What a worker is for. The first two are CrypTen's ranks."""

    MODEL_OWNER = 0
    DATA_OWNER = 1
    TRACE = 2


@dataclass(frozen=True)
class Setup:
    """What a worker is told before it starts."""

    job: Job
    session: bytes
    plan_digest: bytes
    key: SecretKey = field(repr=False)
    plan: bytes = field(repr=False)

    def encode(self) -> bytes:
        """The SETUP record; it holds the key, so it goes to the worker and nowhere else."""
        return _SETUP.pack(self.job, self.session, self.plan_digest, self.key.reveal()) + self.plan

    @classmethod
    def decode(cls, data: bytes | bytearray) -> Setup:
        """The inverse, in the worker."""
        job, session, digest, key = _SETUP.unpack_from(data)
        return cls(Job(job), session, digest, SecretKey(key), bytes(data[_SETUP.size :]))


def check_installed() -> None:
    """Raise ConfigError where this Python lacks what the worker needs. Imports none of it."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the CrypTen engine needs {', '.join(missing)}, which {sys.executable} lacks; "
            f"run: {INSTALL}"
        )
    version = importlib.metadata.version("crypten")
    if version != VERSION:
        raise ConfigError(
            f"the CrypTen engine works with crypten {VERSION}, {sys.executable} has {version}; "
            f"run: {INSTALL}"
        )


class Worker:
    """A worker process. A context manager: leaving it ends the process, whatever it is doing.

    It starts at once and loads its libraries (about two seconds) while the party does other things.
    Raises ConfigError where they are not installed. ``seconds`` is how long it may live.
    """

    def __init__(self, seconds: float) -> None:
        check_installed()
        own, other = socket.socketpair()
        self._pipe = Pipe(own, seconds)
        with other:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own module, no input
                    [sys.executable, "-P", "-m", _MODULE, str(other.fileno())],
                    pass_fds=(other.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            except OSError as error:
                self._pipe.close()
                raise EngineError(
                    f"cannot start a process for CrypTen: {error.strerror}; free some memory"
                ) from error

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.wait()

    def wait_ready(self) -> None:
        """Return when the libraries are loaded. Raises EngineError, DeadlineError."""
        record, _, length = self._pipe.header()
        if record is Record.FAILED:
            raise _failure(bytes(self._pipe.pull(length)))
        if record is not Record.READY:
            raise EngineError(f"the CrypTen worker began with {record.name}; reinstall radiopaque")

    def start(self, setup: Setup, arrays: Iterable[NDArray[Any]]) -> None:
        """Hand over the key, the plan, and the image or the weights."""
        self._pipe.write(Record.SETUP, 0, setup.encode())
        for number, array in enumerate(arrays):
            self._pipe.write(Record.ARRAY, number, array.reshape(-1).view("u1").data)

    def serve(
        self, link: Link | None = None, material: Callable[[int, int], memoryview] | None = None
    ) -> bytearray:
        """Exchange frames for the worker until it has finished; its answer, empty at the owner.

        ``material(number, size)`` gives the correction of a tuple. Raises EngineError, PlanError,
        ProtocolError, TransportError.
        """
        pipe = self._pipe
        while True:
            record, number, length = pipe.header()
            if record is Record.SEND and link is not None:
                for block, piece in payload_pieces(length):
                    payload = bytes(pipe.pull(piece.stop - piece.start))
                    link.send(number, Kind.SHARE, block, payload)
            elif record is Record.RECEIVE and link is not None:
                for block, piece in payload_pieces(length):
                    size = piece.stop - piece.start
                    pipe.push(link.receive(number, Kind.SHARE, block, size).data)
            elif record is Record.MATERIAL and material is not None:
                pipe.push(material(number, length))
            elif record is Record.RESULT and length <= MAX_ANSWER_BYTES:
                return pipe.pull(length)
            elif record is Record.FAILED and length <= MAX_ANSWER_BYTES:
                raise _failure(bytes(pipe.pull(length)))
            else:
                raise EngineError(f"the CrypTen worker asked for {record.name} out of place")


def _failure(data: bytes) -> EngineError | PlanError:
    """What a worker's last words mean: the name of an error, a line break, its text."""
    name, _, text = data.decode("utf-8", "replace").partition("\n")
    if name == PlanError.__name__:
        return PlanError(text)
    return EngineError(f"CrypTen failed in its worker process: {name}: {text}")
