"""Prepared sessions on disk: one encrypted file for each of a session's two offline messages.

Payloads are appended in the order in which they arrive, each sealed with AES-256-GCM under a key
that only the ledger holds and both files share; the nonce is the message kind (4 bytes) and the
payload's position (8), so that none repeats, and the session id is authenticated. Erasing the key
from the ledger makes the files unreadable, whatever the disk keeps.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from radiopaque.engine.material import RegionReader, region_sizes
from radiopaque.engine.model_owner import Material
from radiopaque.engine.plans import AnyPlan
from radiopaque.errors import StoreError
from radiopaque.files import PRIVATE_FILE_MODE, make_private_directory
from radiopaque.gates.base import Raw
from radiopaque.prg import SecretKey
from radiopaque.transport.link import PAYLOAD_BYTES, payload_pieces
from radiopaque.wire.frames import Frame, Kind

_TAG_BYTES = 16


class MaterialStore:
    """The folder of prepared sessions of one model owner."""

    def __init__(self, directory: Path) -> None:
        make_private_directory(directory)
        self._directory = directory

    def _path(self, session: bytes, kind: Kind) -> Path:
        return self._directory / f"{session.hex()}.{kind.name.lower()}"

    def writer(self, plan: AnyPlan, session: bytes, kind: Kind, key: SecretKey) -> MaterialWriter:
        """Takes the frames of one offline message, in order, onto disk."""
        return MaterialWriter(self._path(session, kind), plan, session, kind, key)

    def load(self, plan: AnyPlan, session: bytes, key: SecretKey) -> Material:
        """Both messages of a session, each region decrypted when it is asked for.

        Raises StoreError where a file is not whole, and later where a region is damaged.
        """
        return Material(
            self._regions(plan, session, Kind.CORRECTION, key),
            self._regions(plan, session, Kind.OFFLINE, key),
        )

    def corrections(
        self, plan: AnyPlan, session: bytes, key: SecretKey
    ) -> Iterator[tuple[int, Raw]]:
        """(gate, region) of the crypto provider's message, each read when it is asked for."""
        return self._regions(plan, session, Kind.CORRECTION, key)

    def _regions(
        self, plan: AnyPlan, session: bytes, kind: Kind, key: SecretKey
    ) -> Iterator[tuple[int, Raw]]:
        path = self._path(session, kind)
        sizes = region_sizes(plan, kind)
        with _whole(path):
            if path.stat().st_size != _file_size(sizes):
                raise InvalidTag
        return _decrypted(path, sizes, kind, _associated(session), AESGCM(key.reveal()))

    def delete(self, session: bytes) -> None:
        """Remove a session's files; missing ones do not matter."""
        for kind in (Kind.CORRECTION, Kind.OFFLINE):
            with suppress(FileNotFoundError):
                self._path(session, kind).unlink()

    def sessions(self) -> set[bytes]:
        """Those that have files here."""
        found = set()
        for path in self._directory.iterdir():
            with suppress(ValueError):
                found.add(bytes.fromhex(path.stem))
        return found

    def needed(self, plan: AnyPlan) -> int:
        """Bytes on disk of one session."""
        return sum(_file_size(region_sizes(plan, kind)) for kind in (Kind.CORRECTION, Kind.OFFLINE))

    def size(self, but: Collection[bytes] = ()) -> int:
        """Bytes on disk of all prepared material, except for some sessions."""
        left_out = {session.hex() for session in but}
        total = 0
        for path in self._directory.iterdir():
            # sessions end, and take their files with them, while this looks
            with suppress(FileNotFoundError):
                total += path.stat().st_size if path.stem not in left_out else 0
        return total


@dataclass(frozen=True)
class SessionMaterial:
    """What is prepared for one session, with the key that opens it."""

    store: MaterialStore
    session: bytes
    key: SecretKey = field(repr=False)

    def load(self, plan: AnyPlan) -> Material:
        """Both messages. The key is erased; what decrypts them goes when they do."""
        material = self.store.load(plan, self.session, self.key)
        self.key.erase()
        return material

    def corrections(self, plan: AnyPlan) -> Iterator[tuple[int, Raw]]:
        """The corrections by gate, one after the other."""
        return self.store.corrections(plan, self.session, self.key)


class MaterialWriter:
    """One offline message on its way to disk. A context manager: failing removes the file.

    Entering it takes the disk space, before the first frame is asked for. Raises StoreError where
    there is none.
    """

    def __init__(
        self, path: Path, plan: AnyPlan, session: bytes, kind: Kind, key: SecretKey
    ) -> None:
        self._path = path
        self._reader = RegionReader(plan, session, kind)
        self._size = _file_size(region_sizes(plan, kind))
        self._kind = kind
        self._associated = _associated(session)
        self._cipher = AESGCM(key.reveal())
        self._position = 0
        self._sealed = memoryview(bytearray(PAYLOAD_BYTES + _TAG_BYTES))
        self._descriptor = -1

    def __enter__(self) -> MaterialWriter:
        self._descriptor = _allocated(self._path, self._size)
        return self

    def accept(self, frame: Frame) -> None:
        """Check that this frame is due and append it. Raises ProtocolError or StoreError."""
        payload = self._reader.accept(frame)
        sealed = self._sealed[: payload.size + _TAG_BYTES]
        nonce = _nonce(self._kind, self._position)
        self._cipher.encrypt_into(nonce, payload.data, self._associated, sealed)
        self._position += 1
        with _reported():
            while sealed:
                sealed = sealed[os.write(self._descriptor, sealed) :]

    def finish(self) -> None:
        """Check that the message is complete. Raises MessageOrderError."""
        self._reader.finish()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with _reported():
                os.close(self._descriptor)
        finally:
            if error is not None:
                self._path.unlink(missing_ok=True)


def _allocated(path: Path, size: int) -> int:
    """A descriptor of a new file that has all of its disk space."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE_MODE)
    except OSError as error:
        raise StoreError(f"cannot create {path}: {error.strerror}") from error
    try:
        with _reported():
            # the call refuses an empty file
            if size:
                os.posix_fallocate(descriptor, 0, size)
    except BaseException:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor


def _decrypted(
    path: Path, sizes: Mapping[int, int], kind: Kind, associated: bytes, cipher: AESGCM
) -> Iterator[tuple[int, Raw]]:
    """(gate, region) from a file that has the right size, each read when it is asked for."""
    sealed = memoryview(bytearray(PAYLOAD_BYTES + _TAG_BYTES))
    positions = itertools.count()

    def region(size: int) -> Raw:
        whole = np.empty(size, np.uint8)
        for _, piece in payload_pieces(size):
            taken = sealed[: piece.stop - piece.start + _TAG_BYTES]
            if file.readinto(taken) != len(taken):
                raise InvalidTag
            cipher.decrypt_into(_nonce(kind, next(positions)), taken, associated, whole[piece].data)
        return whole

    with _whole(path), path.open("rb", buffering=0) as file:
        for gate, size in sizes.items():
            # no name for it here: it would live on while nobody needs it any more
            yield gate, region(size)


def _file_size(sizes: Mapping[int, int]) -> int:
    """Bytes on disk of a message whose regions have these sizes."""
    payloads = sum(len(list(payload_pieces(size))) for size in sizes.values())
    return sum(sizes.values()) + _TAG_BYTES * payloads


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """A file that is missing or was changed as StoreError."""
    try:
        yield
    except (OSError, InvalidTag) as error:
        raise StoreError(
            f"prepared material {path.name} is missing or damaged; "
            "the session is lost, prepare another"
        ) from error


@contextmanager
def _reported() -> Iterator[None]:
    """A full or broken disk as StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write prepared material: {error.strerror}; free some space"
        ) from error


def _nonce(kind: Kind, position: int) -> bytes:
    return int(kind).to_bytes(4, "big") + position.to_bytes(8, "big")


def _associated(session: bytes) -> bytes:
    return b"radiopaque/1 material" + session
