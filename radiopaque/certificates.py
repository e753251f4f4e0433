"""Certificates: who a party is, in which role, and a development authority that issues them.

A role is stated twice in a certificate: as the URI ``urn:radiopaque:role:<role>``, which servers
read on every call, and for serving roles as the DNS name ``<role>.radiopaque``, which clients
verify in the TLS handshake. All keys are on P-256: :mod:`radiopaque.transport.tls` relies on it to
keep TLS 1.2 out.

The crypto provider must not run the authority that the other two trust: it could then pose as
either of them.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from radiopaque.errors import AuthenticationError, ConfigError, RoleError, StoreError
from radiopaque.files import PRIVATE_DIRECTORY_MODE, PRIVATE_FILE_MODE, write_atomically

_ROLE_URI_PREFIX: Final = "urn:radiopaque:role:"
_CA_VALIDITY: Final = timedelta(days=3650)
_VALIDITY: Final = timedelta(days=397)
_CLOCK_SKEW: Final = timedelta(minutes=5)
_PUBLIC_FILE_MODE: Final = 0o644
_MAX_FILE_BYTES: Final = 1 << 20
_CA_NAME: Final = "ca"
DEFAULT_HOSTS: Final = ("localhost", "127.0.0.1")


class Role(StrEnum):
    """The three parties, as their certificates name them."""

    CRYPTO_PROVIDER = "crypto-provider"
    MODEL_OWNER = "model-owner"
    DATA_OWNER = "data-owner"

    @property
    def uri(self) -> str:
        return _ROLE_URI_PREFIX + self.value

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
class Identity:
    """A party's own certificate and key, checked by :func:`load_identity`, as PEM."""

    role: Role
    name: str
    not_after: datetime
    certificate: bytes = field(repr=False)
    private_key: bytes = field(repr=False)
    authorities: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    certificate: Path
    key: Path
    ca: Path


def peer_identity(certificate: x509.Certificate) -> PeerIdentity:
    """The role and name stated by a certificate that TLS has already verified.

    Raises AuthenticationError unless it states exactly one known role and one name.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    stated = [
        uri.removeprefix(_ROLE_URI_PREFIX) for uri in uris if uri.startswith(_ROLE_URI_PREFIX)
    ]
    known = set(Role)
    common_names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(stated) != 1 or stated[0] not in known or len(common_names) != 1:
        raise AuthenticationError(
            f"the certificate states {len(stated)} radiopaque role(s) {stated} and "
            f"{len(common_names)} name(s); it needs one of {sorted(known)} as the URI "
            f"{_ROLE_URI_PREFIX}<role> and one common name; issue another"
        )
    return PeerIdentity(Role(stated[0]), str(common_names[0].value))


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


def load_identity(certificate: Path, key: Path, ca: Path, role: Role) -> Identity:
    """Read a party's certificate, key and the authorities it trusts, and check that they serve.

    Raises ConfigError (missing or unreadable file, key readable by others, not a P-256 pair),
    AuthenticationError (expired or not yet valid, not issued by ``ca``) and RoleError.
    """
    certificate_pem, key_pem, ca_pem = (_read(path) for path in (certificate, key, ca))
    mode = key.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(
            f"private key {key} can be read by other users (mode {mode:03o}); run: chmod 600 {key}"
        )
    try:
        own = x509.load_pem_x509_certificates(certificate_pem)[0]
        authorities = x509.load_pem_x509_certificates(ca_pem)
    except ValueError as error:
        raise ConfigError(f"{certificate} or {ca} holds no certificate in PEM form") from error
    try:
        private_key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{key} holds no unencrypted private key in PEM form; create the pair again"
        ) from error
    public_key = own.public_key()
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(
        public_key.curve, ec.SECP256R1
    ):
        raise ConfigError(
            f"certificate {certificate} is not on the curve P-256, which keeps TLS 1.2 out; "
            "issue one with a P-256 key"
        )
    if private_key.public_key() != public_key:
        raise ConfigError(f"private key {key} does not belong to certificate {certificate}")
    check_validity(own, str(certificate))
    _check_issuer(own, authorities, certificate, ca)
    stated = peer_identity(own)
    if stated.role is not role:
        raise RoleError(
            f"certificate {certificate} is for the role {stated.role}, this party is the {role}; "
            "use the certificate of that role"
        )
    return Identity(role, stated.name, own.not_valid_after_utc, certificate_pem, key_pem, ca_pem)


def init_directory(
    directory: Path, hosts: Sequence[str] = DEFAULT_HOSTS, *, force: bool = False
) -> dict[Role, CertificateFiles]:
    """Make a development authority and one certificate for each role in ``directory``, at once.

    ``hosts`` are the DNS names and addresses of the two serving parties. Raises ConfigError when
    the folder already holds something, with ``force`` only when that is not from this function.
    """
    directory = directory.absolute()
    expected = {f"{name}.{kind}" for name in (_CA_NAME, *Role) for kind in ("crt", "key")}
    present = {entry.name for entry in directory.iterdir()} if directory.exists() else set()
    if present and not force:
        raise ConfigError(
            f"{directory} is not empty; choose another folder, or replace its certificates "
            "with --force"
        )
    if present - expected:
        raise ConfigError(
            f"{directory} also holds {sorted(present - expected)[0]!r}; "
            "choose a folder for certificates alone"
        )
    suffix = secrets.token_hex(8)
    staging = directory.with_name(f".{directory.name}.{suffix}")
    retired = directory.with_name(f".{directory.name}.{suffix}.old")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir(mode=PRIVATE_DIRECTORY_MODE)
        _create_authority(staging)
        for role in Role:
            issue(staging, role, str(role), hosts)
        if directory.exists():
            directory.rename(retired)
        staging.rename(directory)
        shutil.rmtree(retired, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"cannot create {directory}: {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return {role: _files(directory, str(role)) for role in Role}


def issue(
    ca_directory: Path,
    role: Role,
    name: str,
    hosts: Sequence[str] = DEFAULT_HOSTS,
    output: Path | None = None,
) -> CertificateFiles:
    """Issue a certificate for ``name`` in ``role`` with the authority in ``ca_directory``.

    Written to ``output`` (default: there) as ``<name>.crt`` and ``<name>.key``, with ``ca.crt``
    beside. ``hosts`` count for serving roles only: a data owner's certificate is good for no
    server. Raises ConfigError and StoreError.
    """
    if not name or len(name) > 64 or not all(c.isalnum() or c in "-_." for c in name):
        raise ConfigError(
            f"name {name!r} must have 1 to 64 letters, digits, hyphens, dots or underscores"
        )
    if name == _CA_NAME or name.startswith("."):
        raise ConfigError(f"name {name!r} is reserved; choose another")
    authority = _files(ca_directory, _CA_NAME)
    files = _files(output or ca_directory, name)
    for path in (files.certificate, files.key):
        if path.exists():
            raise ConfigError(f"{path} exists; choose another name or remove it first")
    try:
        ca_key = serialization.load_pem_private_key(_read(authority.key), password=None)
        ca_pem = _read(authority.certificate)
        ca_certificate = x509.load_pem_x509_certificate(ca_pem)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{ca_directory} holds no authority made by `certs init`") from error
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{authority.key} is not a key on an elliptic curve")
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if role.serves:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    certificate = (
        _builder(name, key, ca_certificate.subject, _VALIDITY)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(_alternative_names(role, hosts), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    if not files.ca.exists():
        write_atomically(files.ca, ca_pem, _PUBLIC_FILE_MODE)
    elif _read(files.ca) != ca_pem:
        raise ConfigError(f"{files.ca} belongs to another authority; choose another folder")
    _write_pair(files, key, certificate)
    return files


def _create_authority(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = "radiopaque development authority"
    certificate = (
        _builder(name, key, _subject(name), _CA_VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_pair(_files(directory, _CA_NAME), key, certificate)


def _builder(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Name, validity: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + validity)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(role: Role, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(role.uri)]
    if role.serves:
        names.append(x509.DNSName(role.server_name))
        names.extend(_host_name(host) for host in hosts)
    return x509.SubjectAlternativeName(names)


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise ConfigError(f"host {host!r} is neither an address nor an ASCII DNS name") from error


def _files(directory: Path, name: str) -> CertificateFiles:
    return CertificateFiles(
        directory / f"{name}.crt", directory / f"{name}.key", directory / f"{_CA_NAME}.crt"
    )


def _write_pair(
    files: CertificateFiles, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> None:
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_atomically(files.key, private, PRIVATE_FILE_MODE)
    write_atomically(
        files.certificate,
        certificate.public_bytes(serialization.Encoding.PEM),
        _PUBLIC_FILE_MODE,
    )


def _read(path: Path) -> bytes:
    try:
        if os.path.getsize(path) > _MAX_FILE_BYTES:
            raise ConfigError(f"{path} has over {_MAX_FILE_BYTES} bytes; that is no certificate")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; make certificates with `radiopaque certs init` "
            "or correct the path"
        ) from error


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
        except (InvalidSignature, ValueError, TypeError):
            continue
        check_validity(authority, str(ca_path))
        return
    if same_name:
        raise AuthenticationError(
            f"certificate {path} was not issued by the authority in {ca_path}, though by one of "
            "that name; copy the ca.crt that belongs to it"
        )
