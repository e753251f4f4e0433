"""The journal of a submission: which images of a folder have their results.

One line of JSON an image, appended and on the disk before the next image is begun; a last line that
a loss of power has cut off is dropped. A line names the file and holds the SHA-256 of its bytes,
the model's artefact and the network's outputs; no field of the file's header is in it. Reports are
made from it, so one that was not written before a crash is written by the next run.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_owner.preparing import Prepared
from data_owner.sessions import Answer
from radiopaque.errors import StoreError
from radiopaque.files import PRIVATE_FILE_MODE, sync_directory

FILE = "journal.jsonl"
_CHUNK_BYTES = 1 << 20
_CLOSED = -1


@dataclass(frozen=True)
class Image:
    """An image file: its path, and SHA-256 of its bytes in hexadecimal."""

    path: Path
    digest: str

    @classmethod
    def of(cls, path: Path) -> Image:
        """Raises OSError."""
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while data := file.read(_CHUNK_BYTES):
                digest.update(data)
        return cls(path, digest.hexdigest())


@dataclass(frozen=True)
class Result:
    """What an inference gave for one image: row ``index`` of ``answer``, at ``created`` (ISO)."""

    answer: Answer
    index: int
    created: str


class Journal:
    """The journal in the file ``path``, in the hands of one process at a time.

    Raises StoreError where it cannot be read or written, or another process has it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, PRIVATE_FILE_MODE)
        except OSError as error:
            raise self._failure(error) from error
        try:
            self._done = self._read()
        except BaseException:
            os.close(self._file)
            raise

    def close(self) -> None:
        """Let another process have it. Closing again does nothing."""
        if self._file != _CLOSED:
            os.close(self._file)
        self._file = _CLOSED

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def find(self, image: Image, artefact: bytes) -> Result | None:
        """The result of the same bytes under the same file name from the same artefact."""
        return self._done.get(_key(image, artefact))

    def add(self, image: Image, artefact: bytes, result: Result) -> None:
        """Keep a result, durably. Raises StoreError, then and from then on, where that fails."""
        if self._file == _CLOSED:
            raise StoreError(
                f"the journal {self._path} cannot be written any more; submit again, and what is "
                "missing is done"
            )
        answer = result.answer
        made = answer.prepared
        line = {
            "image": str(image.path),
            "sha256": image.digest,
            "artefact": artefact.hex(),
            "created": result.created,
            "session": answer.session.hex(),
            "outputs": answer.outputs[result.index].tolist(),
            "online_seconds": answer.online_seconds,
            "prepare_seconds": answer.prepare_seconds,
            "round_trips": answer.round_trips,
            "online_bytes": answer.online_bytes,
            "offline_seconds": made.seconds if made else None,
            "offline_bytes": made.bytes if made else None,
        }
        try:
            # A file name that is not UTF-8 has lone surrogates, which JSON writes as escapes.
            data = (json.dumps(line, allow_nan=False) + "\n").encode("ascii")
            if os.write(self._file, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError as error:
            # a part of the line may be there: whoever opens the journal next cuts it off
            self.close()
            raise self._failure(error) from error
        self._done[_key(image, artefact)] = _result(line)

    def _read(self) -> dict[tuple[str, str, str], Result]:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            data = self._path.read_bytes()
            whole = data.rfind(b"\n") + 1
            os.ftruncate(self._file, whole)
            sync_directory(self._path.parent)
        except BlockingIOError:
            raise StoreError(
                f"another process submits with the journal {self._path}; wait for it, or give this "
                "one another output folder"
            ) from None
        except OSError as error:
            raise self._failure(error) from error
        done = {}
        for number, text in enumerate(data[:whole].splitlines(), 1):
            try:
                line = json.loads(text)
                key = line["sha256"], Path(line["image"]).name, line["artefact"]
                done[key] = _result(line)
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                raise StoreError(
                    f"line {number} of the journal {self._path} is damaged; move the file away, "
                    "and all images are submitted again"
                ) from error
        return done

    def _failure(self, error: OSError) -> StoreError:
        return StoreError(
            f"cannot use the journal {self._path}: {error.strerror}; check the folder, its rights "
            "and its free space"
        )


def _key(image: Image, artefact: bytes) -> tuple[str, str, str]:
    return image.digest, image.path.name, artefact.hex()


def _result(line: dict[str, Any]) -> Result:
    session = bytes.fromhex(line["session"])
    answer = Answer(
        session,
        np.asarray([line["outputs"]], np.float64),
        float(line["online_seconds"]),
        float(line["prepare_seconds"]),
        int(line["round_trips"]),
        dict(line["online_bytes"]),
    )
    if line["offline_bytes"] is not None:
        made = Prepared(session, float(line["offline_seconds"]), dict(line["offline_bytes"]))
        answer = replace(answer, prepared=made)
    return Result(answer, 0, str(line["created"]))
