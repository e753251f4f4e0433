"""Every call of a serving party in its audit log, admitted or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from radiopaque.audit.log import AuditLog, Event
from radiopaque.errors import StoreError
from radiopaque.telemetry import get_logger
from radiopaque.transport.observer import Observer

if TYPE_CHECKING:
    from radiopaque.transport.admission import Call

_log = get_logger(__name__)


class Auditor(Observer):
    """Writes a line when a call begins and one when it ends, or one when it is refused.

    A call whose first line cannot be written is not served: after a full disk, none is.
    """

    def __init__(self, log: AuditLog) -> None:
        self._log = log

    def begun(self, method: str, call: Call) -> None:
        self._log.write(f"{method} begun", peer=str(call.peer))

    def ended(self, method: str, call: Call, outcome: str) -> None:
        fields = Event(
            peer=str(call.peer),
            outcome=outcome,
            received_bytes=call.counters.received_bytes,
            sent_bytes=call.counters.sent_bytes,
        )
        for name in ("model", "version", "session"):
            if name in call.about:
                fields[name] = call.about[name]
        self._write(f"{method} ended", **fields)

    def refused(self, method: str, outcome: str, peer: str) -> None:
        self._write(f"{method} refused", peer=peer, outcome=outcome)

    def _write(self, event: str, **fields: Unpack[Event]) -> None:
        """The call is over whether or not this can be written; the next one is refused then."""
        try:
            self._log.write(event, **fields)
        except StoreError as error:
            _log.failure("a line is missing in the audit log", error, method=event)
