"""Checks of who answers where: the party's own port, and the parties that it calls."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Generator, Iterator
from datetime import timedelta
from typing import Final

from cryptography import x509

import radiopaque
from radiopaque import versions
from radiopaque.certificates import Identity, Role
from radiopaque.config import DataOwnerConfig, TlsConfig
from radiopaque.errors import VersionError
from radiopaque.operations.doctor.findings import Finding, fail, fine, warn
from radiopaque.operations.doctor.machine import ends
from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import Peer, PeerHealth
from radiopaque.transport.tls import accepts_tls12
from radiopaque.wire.v1 import services_pb2 as pb

_SECONDS: Final = 10.0
_SKEW_SECONDS: Final = 2.0
_MOST_SKEW_SECONDS: Final = 60.0
_RENEW: Final = timedelta(days=30)
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - read, not bound


def own_port(tls: TlsConfig, role: Role, listen: str) -> Iterator[Finding]:
    """The party's own server, as a caller on this machine finds it."""
    host, _, port = listen.rpartition(":")
    address = f"{_ANYWHERE.get(host, host)}:{port}"
    check = "own port"
    health = yield from _ask(check, tls, role, role, address, None)
    running = health.version.release
    if running != radiopaque.__version__:
        yield warn(
            f"{check}: release",
            f"release {running} is running, {radiopaque.__version__} is installed",
            "restart the party",
        )
    yield _oldest_tls(check, tls.load(role), address)


def peer(
    tls: TlsConfig, own: Role, role: Role, address: str, server_name: str | None
) -> Iterator[Finding]:
    """Another party: reachable, healthy, of the same protocol, its clock, its certificate, TLS."""
    check = role.replace("-", " ")
    health = yield from _ask(check, tls, own, role, address, server_name)
    yield from _version(check, health, own, role)
    yield from _clock(check, health)
    name = server_name or role.server_name
    yield _oldest_tls(check, tls.load(own), address)
    yield _certificate_end(check, tls, address, name)


def offer(settings: DataOwnerConfig) -> Iterator[Finding]:
    """Whether the vendor admits this clinic and offers the model that it is configured for.

    Raises what the call raises, AccessError for a clinic that is not on the vendor's list.
    """
    named = settings.model_owner
    identity = settings.tls.load(Role.DATA_OWNER)
    with Peer(Role.MODEL_OWNER, named.address, identity, named.server_name) as asked:
        reply = asked.call(
            "ListModels", pb.ListModelsRequest(), pb.ListModelsReply, Counters(), _SECONDS
        )
    offered = [(model.name, model.version) for model in reply.models]
    wanted = f"{settings.model} {settings.version or ''}".strip()
    versions_of = [version for name, version in offered if name == settings.model]
    if settings.version in versions_of or (versions_of and settings.version is None):
        yield fine("model", f"{wanted} is offered to this clinic")
        return
    there = ", ".join(f"{name} {version}" for name, version in offered) or "nothing"
    yield fail(
        "model",
        f"there is no model {wanted!r}; the model owner offers: {there}",
        "correct `model` and `version` in the configuration, or ask the vendor",
    )


def _ask(
    check: str, tls: TlsConfig, own: Role, role: Role, address: str, server_name: str | None
) -> Generator[Finding, None, PeerHealth]:
    """Yields a finding and returns the answer. Raises what the call raises."""
    with Peer(role, address, tls.load(own), server_name) as asked:
        health = asked.check_health(_SECONDS)
    if health.serving:
        took = health.round_trip_seconds * 1e3
        yield fine(check, f"serves at {address}, with mutual TLS ({took:.0f} ms)")
    else:
        yield warn(check, f"{address} is stopping", "wait for its restart, then look again")
    return health


def _version(check: str, health: PeerHealth, own: Role, role: Role) -> Iterator[Finding]:
    stated = health.version
    try:
        versions.check(stated, role, own)
    except VersionError as error:
        text, _, remedy = str(error).partition("; ")
        yield fail(f"{check}: version", text, remedy)
        return
    yield fine(
        f"{check}: version",
        f"protocol {stated.protocol} like this side (release {stated.release}, "
        f"here {radiopaque.__version__})",
    )


def _clock(check: str, health: PeerHealth) -> Iterator[Finding]:
    skew = health.clock_seconds
    if skew is None:
        return
    # what the round trip leaves open counts for the peer
    surely = max(0.0, abs(skew) - health.round_trip_seconds / 2)
    text = f"its clock is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}"
    remedy = "let both machines follow a time server: certificates hold from and to a moment"
    if surely > _MOST_SKEW_SECONDS:
        yield fail(f"{check}: clock", text, remedy)
    elif surely > _SKEW_SECONDS:
        yield warn(f"{check}: clock", text, remedy)
    else:
        yield fine(f"{check}: clock", "agrees with this one")


def _context(tls: TlsConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(tls.certificate, tls.key)
    context.load_verify_locations(tls.ca)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS)


def _oldest_tls(check: str, identity: Identity, address: str) -> Finding:
    """Whether TLS 1.2, the newest version that is ruled out, is refused."""
    try:
        accepted = accepts_tls12(address, identity, _SECONDS)
    except OSError as error:
        return fail(f"{check}: TLS", f"cannot be asked for TLS 1.2: {_why(error)}", _where(error))
    if not accepted:
        return fine(f"{check}: TLS", "refuses what is older than TLS 1.3")
    return fail(
        f"{check}: TLS",
        "accepts TLS 1.2",
        "let nothing in between end TLS, and nothing import gRPC before radiopaque",
    )


def _certificate_end(check: str, tls: TlsConfig, address: str, name: str) -> Finding:
    context = _context(tls)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        with _connect(address) as plain, context.wrap_socket(plain, server_hostname=name) as secure:
            der = secure.getpeercert(binary_form=True) or b""
    except OSError as error:
        return fail(f"{check}: certificate", f"no handshake: {_why(error)}", _where(error))
    end = x509.load_der_x509_certificate(der).not_valid_after_utc
    return ends(f"{check}: certificate end", end, _RENEW, "tell its operator")


def _why(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or type(error).__name__


def _where(error: OSError) -> str:
    """Where to look for the cause."""
    if isinstance(error, socket.gaierror):
        return "give this machine's name service its name, or an address in the configuration"
    return "look into its log"
