"""Revocation lists (RFC 5280, section 5): which certificates an authority has taken back.

A file holds one full list an authority. Lists are believed only with the signature of an authority
that this party trusts, and only until their ``nextUpdate``, unless the operator accepts old ones.
Where a certificate's standing cannot be established, it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from cryptography import x509

from radiopaque.certificates.parsing import MALFORMED, NOT_ISSUED, revocation_lists
from radiopaque.errors import AuthenticationError, ConfigError

_LONGEST_CHAIN: Final = 8


class RevocationLists:
    """The lists in one file, by the authority that signed each."""

    def __init__(
        self, data: bytes, authorities: Sequence[x509.Certificate], *, accept_stale: bool, path: str
    ) -> None:
        """From PEM lists or one DER list.

        Raises ConfigError for what is no full list of one of ``authorities``.
        """
        self._authorities = tuple(authorities)
        self._accept_stale = accept_stale
        self._path = path
        self._lists: dict[x509.Certificate, x509.CertificateRevocationList] = {}
        try:
            lists = revocation_lists(data)
        except MALFORMED as error:
            raise ConfigError(f"{path} holds no revocation list in PEM or DER form") from error
        for found in lists:
            authority = next((a for a in authorities if _signed(found, a)), None)
            if authority is None:
                raise ConfigError(
                    f"the revocation list of {found.issuer.rfc4514_string()!r} in {path} is signed "
                    "by none of the trusted authorities; add its authority to `ca`, or fetch the "
                    "list again"
                )
            if any(extension.critical for extension in found.extensions):
                raise ConfigError(
                    f"the revocation list of {found.issuer.rfc4514_string()!r} in {path} covers "
                    "only a part of what its authority issued; fetch the full list"
                )
            known = self._lists.get(authority)
            if known is None or known.last_update_utc < found.last_update_utc:
                self._lists[authority] = found

    def check(self, certificate: x509.Certificate, which: str) -> None:
        """Raises AuthenticationError, naming ``which`` certificate, unless it still stands.

        So do the authorities between it and the last that this party trusts. An authority that
        this party trusts and that nobody else here has issued needs no list.
        """
        for depth in range(_LONGEST_CHAIN):
            authority = next((a for a in self._authorities if _issued(certificate, a)), None)
            if authority is None:
                if depth:
                    return
                raise AuthenticationError(
                    f"certificate {which} was issued by "
                    f"{certificate.issuer.rfc4514_string()!r}, which is not in `ca`; "
                    "add that authority and its revocation list"
                )
            self._check_listed(certificate, authority, which)
            if authority.subject == authority.issuer:
                return
            certificate, which = authority, f"of {authority.subject.rfc4514_string()!r}"
        raise AuthenticationError(
            f"certificate {which} has over {_LONGEST_CHAIN} authorities above it; shorten `ca`"
        )

    def _check_listed(
        self, certificate: x509.Certificate, authority: x509.Certificate, which: str
    ) -> None:
        name = authority.subject.rfc4514_string()
        found = self._lists.get(authority)
        if found is None:
            raise AuthenticationError(
                f"certificate {which} cannot be checked: there is no revocation list of {name!r} "
                f"in {self._path}; add it"
            )
        until = found.next_update_utc
        if not self._accept_stale and (until is None or until < datetime.now(UTC)):
            ended = "states no end" if until is None else f"ended on {until:%Y-%m-%d %H:%M} UTC"
            raise AuthenticationError(
                f"certificate {which} cannot be checked: the revocation list of {name!r} in "
                f"{self._path} {ended}; fetch the new one"
            )
        entry = found.get_revoked_certificate_by_serial_number(certificate.serial_number)
        if entry is not None:
            raise AuthenticationError(
                f"certificate {which} was revoked by {name!r} on "
                f"{entry.revocation_date_utc:%Y-%m-%d}; its holder needs another"
            )


def _signed(found: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    if found.issuer != authority.subject:
        return False
    try:
        return found.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    except MALFORMED:
        return False


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    if certificate.issuer != authority.subject:
        return False
    try:
        certificate.verify_directly_issued_by(authority)
    except NOT_ISSUED:
        return False
    return True
