"""Who a party is, in which role: what certificates say, and a party's own, checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from radiopaque.certificates.parsing import MALFORMED, NOT_ISSUED, pem_certificates
from radiopaque.certificates.revocation import RevocationLists
from radiopaque.errors import AuthenticationError, ConfigError, RoleError

_ROLE_URI_PREFIX: Final = "urn:radiopaque:role:"
_MAX_FILE_BYTES: Final = 1 << 20
_MAX_CRL_BYTES: Final = 1 << 26
_MAX_NAME: Final = 64
"""Characters of a common name, by RFC 5280."""

Stamp = tuple[tuple[int, int, int] | None, ...]
"""Of each file of a party, what changes when it is written or replaced; None: not there."""


class Role(StrEnum):
    """The three parties, as their certificates name them."""

    CRYPTO_PROVIDER = "crypto-provider"
    MODEL_OWNER = "model-owner"
    DATA_OWNER = "data-owner"

    @property
    def uri(self) -> str:
        return _ROLE_URI_PREFIX + self.value

    @property
    def text(self) -> str:
        """The role in a sentence."""
        return self.value.replace("-", " ")

    @property
    def server_name(self) -> str:
        """The DNS name that a client expects in the certificate of a server in this role."""
        return f"{self.value}.radiopaque"

    @property
    def serves(self) -> bool:
        return self is not Role.DATA_OWNER


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who a certificate says its holder is."""

    role: Role
    name: str

    def __str__(self) -> str:
        return f"{self.role} {self.name!r}"


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where a party's pair, the authorities that it trusts, and their revocation lists lie."""

    certificate: Path
    key: Path
    ca: Path
    crl: Path | None = None
    accept_stale_crl: bool = False

    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.certificate, self.key, self.ca, *([self.crl] if self.crl else []))

    def stamp(self) -> Stamp:
        """Of what they hold now."""
        return tuple(_stamp(path) for path in self.paths())


@dataclass(frozen=True, slots=True)
class Identity:
    """A party's own certificate and key, checked by :func:`load_identity`, as PEM.

    ``files`` are where they came from, and where newer ones may appear; ``stamp`` is theirs from
    before they were read.
    """

    role: Role
    name: str
    not_after: datetime
    certificate: bytes = field(repr=False)
    private_key: bytes = field(repr=False)
    authorities: bytes = field(repr=False)
    revoked: RevocationLists | None = field(default=None, repr=False)
    files: CertificateFiles | None = field(default=None, repr=False)
    stamp: Stamp = field(default=(), repr=False)


def peer_identity(certificate: x509.Certificate) -> PeerIdentity:
    """The role and name stated by a certificate that TLS has already verified.

    Raises AuthenticationError unless it is whole and states exactly one known role and one name.
    """
    try:
        uris = _uris(certificate)
        common_names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except MALFORMED as error:
        raise AuthenticationError(
            f"the certificate is malformed ({type(error).__name__}); issue another"
        ) from error
    stated = [
        uri.removeprefix(_ROLE_URI_PREFIX) for uri in uris if uri.startswith(_ROLE_URI_PREFIX)
    ]
    known = set(Role)
    if len(stated) != 1 or stated[0] not in known or len(common_names) != 1:
        raise AuthenticationError(
            f"the certificate states {len(stated)} role(s) of radiopaque and "
            f"{len(common_names)} common name(s); issue another with one of each, the role as a "
            f"URI among its alternative names: {_ROLE_URI_PREFIX} with one of "
            f"{', '.join(sorted(known))} behind it"
        )
    name = str(common_names[0].value)
    if len(name) > _MAX_NAME or not name.isprintable():
        raise AuthenticationError(
            f"the common name {name[:_MAX_NAME]!r} of the certificate holds control characters or "
            f"has over {_MAX_NAME}; issue another"
        )
    return PeerIdentity(Role(stated[0]), name)


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def check_validity(certificate: x509.Certificate, which: str) -> None:
    """Raises AuthenticationError, naming ``which`` certificate, outside its period of validity."""
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise AuthenticationError(
            f"certificate {which} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; "
            "issue a new one"
        )
    if now < certificate.not_valid_before_utc:
        raise AuthenticationError(
            f"certificate {which} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} "
            f"UTC; it is {now:%Y-%m-%d %H:%M} UTC here, check the clock"
        )


def load_identity(
    certificate: Path,
    key: Path,
    ca: Path,
    role: Role,
    crl: Path | None = None,
    *,
    accept_stale_crl: bool = False,
) -> Identity:
    """Read a party's certificate, key and the authorities it trusts, and check that they serve.

    ``crl`` holds the authorities' revocation lists, to which all certificates are then held;
    ``accept_stale_crl``: also after their end. Raises ConfigError (missing or unreadable file, key
    of another user or readable by others, not a P-256 pair), AuthenticationError (expired or not
    yet valid, not issued by ``ca``, revoked) and RoleError.
    """
    files = CertificateFiles(certificate, key, ca, crl, accept_stale_crl)
    identity = read_identity(files, role)
    if identity.revoked is not None:
        own = x509.load_pem_x509_certificates(identity.certificate)[0]
        identity.revoked.check(own, str(certificate))
    return identity


def read_identity(files: CertificateFiles, role: Role) -> Identity:
    """:func:`load_identity` without asking whether the own certificate was revoked.

    A running party must take over the list that says so.
    """
    certificate, key, ca = files.certificate, files.key, files.ca
    stamp = files.stamp()  # before they are read: what is replaced meanwhile is read again
    check_private(key)
    certificate_pem, key_pem, ca_pem = (read(path) for path in (certificate, key, ca))
    try:
        own = pem_certificates(certificate_pem)[0]
        authorities = pem_certificates(ca_pem)
        public_key = own.public_key()
    except MALFORMED as error:
        raise ConfigError(f"{certificate} or {ca} holds no certificate in PEM form") from error
    try:
        private_key = serialization.load_pem_private_key(key_pem, password=None)
    except MALFORMED as error:
        raise ConfigError(
            f"{key} holds no unencrypted private key in PEM form; create the pair again"
        ) from error
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(
        public_key.curve, ec.SECP256R1
    ):
        raise ConfigError(
            f"certificate {certificate} is not on the curve P-256, which keeps TLS 1.2 out; "
            "issue one with a P-256 key"
        )
    if private_key.public_key() != public_key:
        raise ConfigError(
            f"private key {key} does not belong to certificate {certificate}; name the key that "
            "this certificate was requested with"
        )
    check_validity(own, str(certificate))
    _check_issuer(own, authorities, certificate, ca)
    stated = peer_identity(own)
    if stated.role is not role:
        raise RoleError(
            f"certificate {certificate} is for the role {stated.role}, this party is the {role}; "
            "use the certificate of that role"
        )
    revoked = None
    if files.crl is not None:
        revoked = RevocationLists(
            read(files.crl, _MAX_CRL_BYTES),
            authorities,
            accept_stale=files.accept_stale_crl,
            path=str(files.crl),
        )
    return Identity(
        role,
        stated.name,
        own.not_valid_after_utc,
        certificate_pem,
        key_pem,
        b"".join(one.public_bytes(serialization.Encoding.PEM) for one in authorities),
        revoked,
        files,
        stamp,
    )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def check_private(key: Path) -> None:
    """Raises ConfigError unless a private key is a file that its owner alone, this user, reads."""
    try:
        status = key.stat()
    except OSError as error:
        raise _unreadable(key, error) from error
    mode = status.st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(
            f"private key {key} can be read by other users (mode {mode:03o}); run: chmod 600 {key}"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"private key {key} belongs to the user {status.st_uid}, who could replace it; run "
            f"this as the party's user, or let the key be its own: chown {os.geteuid()} {key}"
        )


def read(path: Path, limit: int = _MAX_FILE_BYTES) -> bytes:
    """A file of at most ``limit`` bytes. Raises ConfigError."""
    try:
        if os.path.getsize(path) > limit:
            raise ConfigError(f"{path} has over {limit} bytes; that is no certificate or list")
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ConfigError:
    if isinstance(error, PermissionError):
        remedy = "let its file and folder belong to the party's user, who runs this"
    else:
        remedy = "make certificates with `radiopaque certs init` or correct the path"
    return ConfigError(f"cannot read {path}: {error.strerror}; {remedy}")


def _check_issuer(
    certificate: x509.Certificate,
    authorities: Sequence[x509.Certificate],
    path: Path,
    ca_path: Path,
) -> None:
    """Early notice of a mix-up; a chain with intermediates is left to TLS."""
    same_name = [one for one in authorities if one.subject == certificate.issuer]
    for authority in same_name:
        try:
            certificate.verify_directly_issued_by(authority)
        except NOT_ISSUED:
            continue
        check_validity(authority, str(ca_path))
        return
    if same_name:
        raise AuthenticationError(
            f"certificate {path} was not issued by the authority in {ca_path}, though by one of "
            "that name; copy the ca.crt that belongs to it"
        )
