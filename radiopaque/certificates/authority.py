"""Asking an authority for certificates, and a development authority that issues them."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from radiopaque.certificates.identity import CertificateFiles, Role, read
from radiopaque.errors import ConfigError, StoreError
from radiopaque.files import (
    PRIVATE_DIRECTORY_MODE,
    PRIVATE_FILE_MODE,
    InUseError,
    open_locked,
    write_atomically,
)

_CA_VALIDITY: Final = timedelta(days=3650)
_VALIDITY: Final = timedelta(days=397)
_CLOCK_SKEW: Final = timedelta(minutes=5)
_PUBLIC_FILE_MODE: Final = 0o644
_CA_NAME: Final = "ca"
DEFAULT_HOSTS: Final = ("localhost", "127.0.0.1")
_LABEL: Final = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
# a name that ends in digits alone is an address that is mistyped
_HOST: Final = re.compile(rf"(?=.{{1,253}}\Z)(?:\*\.)?(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}")


@dataclass(frozen=True, slots=True)
class Request:
    """A new private key and the request for its certificate."""

    request: Path
    key: Path


def init_directory(
    directory: Path, hosts: Sequence[str] = DEFAULT_HOSTS, *, force: bool = False
) -> dict[Role, CertificateFiles]:
    """Make a development authority and one certificate for each role in ``directory``, at once.

    ``hosts`` are the DNS names and addresses of the two serving parties. Raises ConfigError when
    the folder already holds something, with ``force`` only when that is not from this function.
    """
    directory = directory.absolute()
    expected = {f"{name}.{kind}" for name in (_CA_NAME, *Role) for kind in ("crt", "key")}
    expected.add(f"{_CA_NAME}.crl")
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
    _check_name(name)
    files = _files(output or ca_directory, name)
    for path in (files.certificate, files.key):
        if path.exists():
            raise ConfigError(f"{path} exists; choose another name or remove it first")
    ca_key, ca_certificate, ca_pem = _authority(ca_directory)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(name, key, ca_certificate.subject, _VALIDITY)
    for extension, critical in _extensions(role, hosts):
        builder = builder.add_extension(extension, critical)
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    certificate = builder.add_extension(above, critical=False).sign(ca_key, hashes.SHA256())
    if not files.ca.exists():
        write_atomically(files.ca, ca_pem, _PUBLIC_FILE_MODE)
    elif read(files.ca) != ca_pem:
        raise ConfigError(f"{files.ca} belongs to another authority; choose another folder")
    _write_pair(files, key, certificate)
    return files


def request(directory: Path, role: Role, name: str, hosts: Sequence[str] = ()) -> Request:
    """Make a key and ask for its certificate: ``<name>.key`` and ``<name>.csr`` in ``directory``.

    The request (PKCS #10) names the holder, role and hosts as :func:`issue` writes them; the key
    stays here. Raises ConfigError and StoreError.
    """
    _check_name(name)
    made = Request(directory / f"{name}.csr", directory / f"{name}.key")
    for path in (made.request, made.key):
        if path.exists():
            raise ConfigError(f"{path} exists; choose another name or remove it first")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(name))
    for extension, critical in _extensions(role, hosts):
        builder = builder.add_extension(extension, critical)
    signed = builder.sign(key, hashes.SHA256())
    _write_key(made.key, key)
    write_atomically(
        made.request, signed.public_bytes(serialization.Encoding.PEM), _PUBLIC_FILE_MODE
    )
    return made


def revoke(ca_directory: Path, certificate: Path, days: int = 30) -> Path:
    """Take back a certificate of the development authority; returns its list, ``ca.crl``.

    The list holds all that were revoked before, too, and is good for ``days``. Raises ConfigError,
    also where another process is at work with the authority.
    """
    ca_key, ca_certificate, _ = _authority(ca_directory)
    with _alone(ca_directory):
        return _with_revoked(ca_directory, ca_key, ca_certificate, certificate, days)


@contextmanager
def _alone(ca_directory: Path) -> Iterator[None]:
    """Two lists that are made from the same one would each lack what the other adds."""
    try:
        descriptor = open_locked(_files(ca_directory, _CA_NAME).key)
    except InUseError:
        raise ConfigError(
            f"another process is at work with the authority in {ca_directory}; try again"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot lock the authority's key: {error.strerror}") from error
    try:
        yield
    finally:
        os.close(descriptor)


def _with_revoked(
    ca_directory: Path,
    ca_key: ec.EllipticCurvePrivateKey,
    ca_certificate: x509.Certificate,
    certificate: Path,
    days: int,
) -> Path:
    path = ca_directory / f"{_CA_NAME}.crl"
    now = datetime.now(UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca_certificate.subject)
        .last_update(now - _CLOCK_SKEW)
        .next_update(now + timedelta(days=days))
    )
    try:
        revoked = x509.load_pem_x509_certificate(read(certificate))
        revoked.verify_directly_issued_by(ca_certificate)
        earlier = list(x509.load_pem_x509_crl(read(path))) if path.exists() else []
    except (ValueError, TypeError, InvalidSignature) as error:
        raise ConfigError(
            f"{certificate} is no certificate of the authority in {ca_directory}"
        ) from error
    for entry in earlier:
        if entry.serial_number != revoked.serial_number:
            builder = builder.add_revoked_certificate(entry)
    builder = builder.add_revoked_certificate(
        x509.RevokedCertificateBuilder()
        .serial_number(revoked.serial_number)
        .revocation_date(now)
        .build()
    )
    signed = builder.sign(ca_key, hashes.SHA256())
    write_atomically(path, signed.public_bytes(serialization.Encoding.PEM), _PUBLIC_FILE_MODE)
    return path


def _check_name(name: str) -> None:
    if not name or len(name) > 64 or not all(c.isalnum() or c in "-_." for c in name):
        raise ConfigError(
            f"name {name!r} must have 1 to 64 letters, digits, hyphens, dots or underscores"
        )
    if name == _CA_NAME or name.startswith("."):
        raise ConfigError(f"name {name!r} is reserved; choose another")


def _authority(directory: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate, bytes]:
    """Key and certificate of the authority in a folder, and the certificate's PEM."""
    files = _files(directory, _CA_NAME)
    try:
        key = serialization.load_pem_private_key(read(files.key), password=None)
        pem = read(files.certificate)
        certificate = x509.load_pem_x509_certificate(pem)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{directory} holds no authority made by `certs init`") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{files.key} is not a key on an elliptic curve")
    return key, certificate, pem


def _extensions(role: Role, hosts: Sequence[str]) -> list[tuple[x509.ExtensionType, bool]]:
    """(extension, critical) of a party's certificate, requested or issued."""
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if role.serves:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(authority=False), True),
        (x509.ExtendedKeyUsage(usages), False),
        (_alternative_names(role, hosts), False),
    ]


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
    checked = [_host_name(host) for host in hosts]
    if role.serves:
        names += [x509.DNSName(role.server_name), *checked]
    return x509.SubjectAlternativeName(names)


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        raise ConfigError(
            f"host {host!r} is neither an address nor an ASCII DNS name; give one like "
            "vendor.example, without a scheme or a port"
        )
    return x509.DNSName(host)


def _files(directory: Path, name: str) -> CertificateFiles:
    return CertificateFiles(
        directory / f"{name}.crt", directory / f"{name}.key", directory / f"{_CA_NAME}.crt"
    )


def _write_pair(
    files: CertificateFiles, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> None:
    _write_key(files.key, key)
    write_atomically(
        files.certificate,
        certificate.public_bytes(serialization.Encoding.PEM),
        _PUBLIC_FILE_MODE,
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_atomically(path, private, PRIVATE_FILE_MODE)
