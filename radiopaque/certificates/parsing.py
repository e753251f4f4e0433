"""Certificates and revocation lists from bytes, with all that is wanted of them parsed at once.

The library parses lazily: damage shows where a field is first looked at, as an error of one of many
types. Here it is looked at on reading.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

MALFORMED: Final[tuple[type[Exception], ...]] = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for bytes that are not what they should be."""
NOT_ISSUED: Final[tuple[type[Exception], ...]] = (InvalidSignature, *MALFORMED)
"""What it raises where a certificate was not issued by another."""

_END_OF_LIST: Final = b"-----END X509 CRL-----"


def pem_certificates(data: bytes) -> list[x509.Certificate]:
    """At least one certificate, their names and periods parsed. Raises one of MALFORMED."""
    found = x509.load_pem_x509_certificates(data)
    for one in found:
        _ = one.subject, one.issuer, one.not_valid_before_utc, one.not_valid_after_utc
    return found


def revocation_lists(data: bytes) -> list[x509.CertificateRevocationList]:
    """PEM lists or one DER list, every entry parsed. Raises one of MALFORMED."""
    if _END_OF_LIST in data:
        parts = data.split(_END_OF_LIST)[:-1]
        found = [x509.load_pem_x509_crl(part.lstrip() + _END_OF_LIST + b"\n") for part in parts]
    else:
        found = [x509.load_der_x509_crl(data)]
    for one in found:
        _ = one.issuer, one.extensions, one.last_update_utc, one.next_update_utc
        for entry in one:
            _ = entry.serial_number, entry.revocation_date_utc
    return found
