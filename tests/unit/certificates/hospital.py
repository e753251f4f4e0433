"""A hospital's own authority, as another program runs it: RSA root, intermediate, lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM
DAY = timedelta(days=1)


@dataclass
class Authority:
    """A key and the certificate above it."""

    key: Any
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(PEM)

    def below(self, name: str) -> Authority:
        """An intermediate authority."""
        key = ec.generate_private_key(ec.SECP384R1())
        return Authority(key, _sign(self.key, self.certificate.subject, key, name))

    def sign(self, request: bytes) -> bytes:
        """The certificate for a request, with the extensions that it asks for."""
        asked = x509.load_pem_x509_csr(request)
        assert asked.is_signature_valid
        builder = (
            x509.CertificateBuilder()
            .subject_name(asked.subject)
            .issuer_name(self.certificate.subject)
            .public_key(asked.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - DAY)
            .not_valid_after(datetime.now(UTC) + DAY)
        )
        for extension in asked.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(PEM)

    def revoking(
        self,
        certificates: Sequence[bytes] = (),
        days: float = 1,
        age: int = 9,
        *,
        delta: bool = False,
    ) -> bytes:
        """The list with these certificates, ``age`` days old, which ends in ``days``."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(datetime.now(UTC) - age * DAY)
            .next_update(datetime.now(UTC) + days * DAY)
        )
        for pem in certificates:
            serial = x509.load_pem_x509_certificate(pem).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial)
            entry = entry.revocation_date(datetime.now(UTC) - DAY)
            builder = builder.add_revoked_certificate(entry.build())
        if delta:
            builder = builder.add_extension(x509.DeltaCRLIndicator(1), critical=True)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(PEM)


def root(name: str = "General Hospital Root") -> Authority:
    """An authority that nobody else has issued."""
    key = rsa.generate_private_key(65537, 2048)
    return Authority(key, _sign(key, _named(name), key, name))


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _sign(above: Any, issuer: x509.Name, key: Any, name: str) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - DAY)
        .not_valid_after(datetime.now(UTC) + 9 * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(above, hashes.SHA256())
    )
