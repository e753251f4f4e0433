"""Keys of a member: made once, kept in files that nobody else can read, never printed."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import os
import stat
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from training.errors import SettingsError
from training.flower.members import coordinator_toml, site_toml, split_address

IDENTITY_FILE = "identity.pem"
NODE_FILE = "node.pem"
TLS_FILE = "tls.pem"
CERTIFICATE_FILE = "certificate.pem"
_CERTIFICATE_DAYS = 3 * 365

PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey


def make_site_keys(folder: Path, name: str) -> Path:
    """Make both keys of a site; return the file with their public halves, to be sent around.

    Raises:
        SettingsError: the folder has keys already, or cannot be written.
    """
    identity, node = Ed25519PrivateKey.generate(), generate_private_key(SECP384R1())
    _write_private(folder / IDENTITY_FILE, identity)
    _write_private(folder / NODE_FILE, node)
    der = node.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    text = site_toml(
        name, identity.public_key().public_bytes_raw().hex(), base64.b64encode(der).decode()
    )
    return _write_public(folder / f"{name}.public.toml", text)


def make_coordinator_keys(folder: Path, address: str) -> Path:
    """Make the coordinator's TLS key and certificate; return the file to be sent around.

    The certificate vouches for itself: members pin it, they do not look for an authority.

    Raises:
        SettingsError: the address is malformed, or the folder has keys or cannot be written.
    """
    try:
        host, _ = split_address(address)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    key = generate_private_key(SECP384R1())
    certificate = _certificate(key, host).public_bytes(Encoding.PEM)
    _write_private(folder / TLS_FILE, key)
    _write_public(folder / CERTIFICATE_FILE, certificate.decode())
    text = coordinator_toml(address, certificate.decode())
    return _write_public(folder / "coordinator.public.toml", text)


def load_identity(folder: Path) -> Ed25519PrivateKey:
    """Read the key that signs a site's messages.

    Raises:
        SettingsError: it is missing, damaged, or readable by others.
    """
    key = _load(folder / IDENTITY_FILE)
    if not isinstance(key, Ed25519PrivateKey):
        raise _another_kind(folder / IDENTITY_FILE)
    return key


def load_node(folder: Path) -> EllipticCurvePrivateKey:
    """Read the key of Flower's node authentication.

    Raises:
        SettingsError: it is missing, damaged, or readable by others.
    """
    key = _load(folder / NODE_FILE)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise _another_kind(folder / NODE_FILE)
    return key


def tls_files(folder: Path, certificate: str) -> tuple[Path, Path]:
    """Return the coordinator's files of certificate and key.

    Raises:
        SettingsError: they are missing, damaged or readable by others, or are not those of the
            `certificate` (PEM) that the members pin.
    """
    key = _load(folder / TLS_FILE)
    path = folder / CERTIFICATE_FILE
    try:
        own = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} is not a certificate that can be read ({error})") from error
    pinned = x509.load_pem_x509_certificate(certificate.encode())
    if own != pinned or own.public_key() != key.public_key():
        raise SettingsError(
            f"{path} and {TLS_FILE} are not those of the certificate that the list of members "
            "pins; take the folder that the list was made from"
        )
    if own.not_valid_after_utc <= datetime.datetime.now(datetime.UTC):
        raise SettingsError(
            f"the certificate {path} has ended on {own.not_valid_after_utc:%Y-%m-%d}; make new "
            "keys in another folder, and a new list of members"
        )
    return path, folder / TLS_FILE


def _certificate(key: EllipticCurvePrivateKey, host: str) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "radiopaque coordinator")])
    try:
        name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        name = x509.DNSName(host)
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of hospitals differ; an hour is what is forgiven.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA384())
    )


def _write_private(path: Path, key: PrivateKey) -> None:
    content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            os.fsync(stream.fileno())
    except FileExistsError as error:
        raise SettingsError(
            f"{path} is there already, and a key is not replaced; choose another folder"
        ) from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be written ({error.strerror})") from error


def _write_public(path: Path, text: str) -> Path:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path} cannot be written ({error.strerror})") from error
    return path


def _load(path: Path) -> PrivateKeyTypes:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise SettingsError(
                f"{path} can be read by others (mode {mode:04o}); run: chmod 600 {path}. If "
                "anybody else may have read it, make new keys and a new list of members"
            )
        return load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError as error:
        raise SettingsError(
            f"there is no key {path}; make it with: radiopaque federation keys"
        ) from error
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"{path} is not a key that can be read; restore it") from error


def _another_kind(path: Path) -> SettingsError:
    return SettingsError(f"{path} holds a key of another kind; restore it")
