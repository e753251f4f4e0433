"""Certificates that are replaced while a party runs."""

from __future__ import annotations

import threading
from pathlib import Path

from cryptography import x509

from radiopaque.certificates.identity import Identity, read_identity
from radiopaque.errors import ConfigError, RadiopaqueError
from radiopaque.telemetry import get_logger

_Stamp = tuple[tuple[int, int, int] | None, ...]
_log = get_logger(__name__)


class Watch:
    """A party's identity as its files say now; for all threads.

    Files are looked at whenever the identity is asked for, which is before every handshake and
    call. Ones that cannot be used (a pair that is half replaced, another name) are not taken over:
    what was there before serves on, the operator is told once, and every further look tries again.
    """

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._lock = threading.Lock()
        self._loaded = self._told = _stamp(identity)

    def identity(self) -> Identity:
        """The newest one that can be used."""
        with self._lock:
            stamp = _stamp(self._identity)
            if stamp != self._loaded:
                self._reload(stamp)
            return self._identity

    def check(self, certificate: x509.Certificate, which: str) -> None:
        """Raises AuthenticationError for a peer's certificate that was revoked."""
        revoked = self.identity().revoked
        if revoked is not None:
            revoked.check(certificate, which)

    def _reload(self, stamp: _Stamp) -> None:
        old, files = self._identity, self._identity.files
        if files is None:
            return
        try:
            new = read_identity(files, old.role)
            if new.name != old.name:
                raise ConfigError(
                    f"certificate {files.certificate} is now for {new.name!r} instead of "
                    f"{old.name!r}; stop the party to change its name"
                )
        except RadiopaqueError as error:
            if stamp != self._told:
                self._told = stamp
                _log.failure("changed certificate files are not used", error, role=str(old.role))
        else:
            self._identity, self._loaded = new, stamp
            _log.info(
                "certificate files taken over",
                role=str(old.role),
                path=str(files.certificate),
            )


def _stamp(identity: Identity) -> _Stamp:
    """What changes when a file is written or replaced."""
    files = identity.files
    return () if files is None else tuple(_of(path) for path in files.paths())


def _of(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
