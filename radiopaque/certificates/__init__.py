"""Certificates: who a party is, in which role; whom it trusts; whose certificates were revoked.

A role is stated twice in a certificate: as the URI ``urn:radiopaque:role:<role>``, which servers
read on every call, and for serving roles as the DNS name ``<role>.radiopaque``, which clients
verify in the TLS handshake. The name of its holder is the common name. All keys are on P-256:
:mod:`radiopaque.transport.tls` relies on it to keep TLS 1.2 out.

Certificates come from a hospital's own authority, asked with :func:`request`, or for trials from
one that :func:`init_directory` makes. The crypto provider must not run the authority that the
other two trust: it could then pose as either of them.
"""

from radiopaque.certificates.authority import (
    DEFAULT_HOSTS,
    Request,
    init_directory,
    issue,
    request,
    revoke,
)
from radiopaque.certificates.identity import (
    CertificateFiles,
    Identity,
    PeerIdentity,
    Role,
    check_validity,
    load_identity,
    peer_identity,
)
from radiopaque.certificates.watch import Watch

__all__ = [
    "DEFAULT_HOSTS",
    "CertificateFiles",
    "Identity",
    "PeerIdentity",
    "Request",
    "Role",
    "Watch",
    "check_validity",
    "init_directory",
    "issue",
    "load_identity",
    "peer_identity",
    "request",
    "revoke",
]
