"""Certificates that are replaced while a party runs."""

from __future__ import annotations

import threading

from cryptography import x509

from radiopaque.certificates.identity import CertificateFiles, Identity, Stamp, read_identity
from radiopaque.errors import ConfigError, RadiopaqueError
from radiopaque.telemetry import get_logger

_log = get_logger(__name__)


class Watch:
    """A party's identity as its files say now; for all threads.

    Files are looked at whenever the identity is asked for, which is before every handshake and
    call. Ones that cannot be used (a pair that is half replaced, another name) are not taken over:
    what was there before serves on, the operator is told once, and every further look tries again.
    What was replaced since ``identity`` was loaded, however long ago, is taken over at the first.
    """

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._lock = threading.Lock()
        self._told = identity.stamp

    def identity(self) -> Identity:
        """The newest one that can be used."""
        with self._lock:
            files = self._identity.files
            if files is not None:
                stamp = files.stamp()
                if stamp != self._identity.stamp:
                    self._reload(files, stamp)
            return self._identity

    def check(self, certificate: x509.Certificate, which: str) -> None:
        """Raises AuthenticationError for a peer's certificate that was revoked."""
        revoked = self.identity().revoked
        if revoked is not None:
            revoked.check(certificate, which)

    def _reload(self, files: CertificateFiles, stamp: Stamp) -> None:
        old = self._identity
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
            self._identity = new
            _log.info(
                "certificate files taken over",
                role=str(old.role),
                path=str(files.certificate),
            )
