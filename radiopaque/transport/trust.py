"""Whom a client trusts at an address: the peer in its role, whatever the certificates say now."""

from __future__ import annotations

import threading
import time
from typing import Final

from radiopaque.certificates import Identity, Role, Watch
from radiopaque.errors import AuthenticationError, ConnectionLostError, RadiopaqueError
from radiopaque.transport.tls import trusting_only

_LOOK_SECONDS: Final = 5.0
"""Longest wait for a connection, and for each message of the handshake."""
_REPLACED_SECONDS: Final = 10.0
"""How long calls may fail for a certificate that was replaced; they failed at the same time."""


class Trust:
    """What a client shows to one peer, and which certificates it takes from it; for all threads.

    gRPC for Python holds a server's certificate to one name and to nothing else. The server name of
    a role states the role. The name of a host does not: another party of that host, or a clinic
    whose certificate carries the name, would do for it. So where a host's name is asked for, the
    peer's certificate is looked at beforehand (:func:`radiopaque.transport.tls.trusting_only`), and
    it alone is trusted until it is replaced. With revocation lists it is looked at for every call.
    """

    def __init__(self, identity: Identity, role: Role, address: str, server_name: str) -> None:
        self._watch = Watch(identity)
        self._role = role
        self._address = address
        self._server_name = server_name
        self._lock = threading.Lock()
        self._known: tuple[Identity, Identity] | None = None
        """What was read from the files, and the same as it trusts the peer alone."""
        self._replaced = -_REPLACED_SECONDS

    def identity(self, seconds: float) -> Identity:
        """For a call, within so many seconds.

        Raises PeerUnavailableError, AuthenticationError and RoleError.
        """
        own, known = self._watch.identity(), self._known
        if own.revoked is None:
            if self._server_name == self._role.server_name:
                return own
            if known is not None and known[0] is own:
                return known[1]
        # nothing ends a look but its time, whatever becomes of the call
        limit = min(seconds, _LOOK_SECONDS)
        trusting = trusting_only(own, self._address, self._server_name, self._role, limit)
        self._known = own, trusting
        return trusting

    def explain(self, error: AuthenticationError) -> RadiopaqueError:
        """What to tell the caller after a handshake that failed, or a peer that refused.

        Where the peer has replaced its certificate since it was looked at, another try will do.
        """
        with self._lock:
            known, self._known = self._known, None
            if known is None:
                return error
            try:
                trusting = self.identity(_LOOK_SECONDS)
            except RadiopaqueError as found:
                return found
            if trusting.authorities != known[1].authorities:
                self._replaced = time.monotonic()
            if time.monotonic() - self._replaced >= _REPLACED_SECONDS:
                return error
        return ConnectionLostError(
            f"the {self._role.text} at {self._address} has replaced its certificate; the new one "
            "is good, try again"
        )
