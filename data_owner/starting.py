"""The first exchange of a session's stream: START, READY, and the marks that they carry."""

from __future__ import annotations

from radiopaque.certificates import Role
from radiopaque.errors import (
    RadiopaqueError,
    RestoredLedgerError,
    SessionStateError,
    StoreError,
    UnknownSessionError,
)
from radiopaque.ledger import MARK_BYTES, Ledger, Mark, Seen
from radiopaque.transport.link import Link
from radiopaque.wire.frames import Kind

_VENDOR = str(Role.MODEL_OWNER)
"""Under which the vendor's marks are kept in the ledger."""


class RefusedError(Exception):
    """The vendor has lost a session, or used it, before anything of it left."""

    def __init__(self, reason: RadiopaqueError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def begin(link: Link, ledger: Ledger, session: bytes) -> Seen:
    """Have the vendor mark a session as used; returns what to keep when it is marked here, too.

    Raises RefusedError, and RestoredLedgerError where this ledger is a copy that was put back.
    """
    link.send(0, Kind.START, 0, ledger.mark(_VENDOR).encode())
    try:
        mark = Mark.decode(link.receive(0, Kind.READY, 0, MARK_BYTES).tobytes())
    except (RestoredLedgerError, SessionStateError, UnknownSessionError, StoreError) as error:
        raise RefusedError(error) from None
    ledger.check_used(mark)
    return Seen(_VENDOR, mark.epoch, session)
