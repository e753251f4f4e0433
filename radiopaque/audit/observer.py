"""Every call of a serving party in its audit log, admitted or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from radiopaque.audit.log import AuditLog, Event
from radiopaque.transport.observer import Observer

if TYPE_CHECKING:
    from radiopaque.transport.admission import Call


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
        self._log.note(f"{method} ended", **fields)

    def refused(self, method: str, outcome: str, peer: str) -> None:
        self._log.note(f"{method} refused", peer=peer, outcome=outcome)
