"""Every call of a serving party in its audit log, admitted or not."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from radiopaque.audit.log import AuditLog, Event
from radiopaque.transport.observer import Observer

if TYPE_CHECKING:
    from radiopaque.transport.admission import Call

_OWN_LINES: Final = 10
_PERIOD_SECONDS: Final = 60.0


@dataclass(slots=True)
class _Refusals:
    """Of one caller in a period that ends at ``until``: how many, and those without a line."""

    until: float
    count: int = 0
    further: Counter[tuple[str, str]] = field(default_factory=Counter)


class Auditor(Observer):
    """Writes a line when a call begins and one when it ends, or one when it is refused.

    A call whose first line cannot be written is not served: after a full disk, none is. So that
    nobody fills it who is not admitted, ten refusals of a caller in a minute have lines of their
    own; further ones are counted, and share a line by method and outcome. It is written with the
    first call, of anybody, after that minute, or by :meth:`close`.
    """

    def __init__(self, log: AuditLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        self._refusals: dict[str, _Refusals] = {}

    def close(self) -> None:
        """Write what was counted and not written yet."""
        with self._lock:
            self._settle(math.inf)

    def begun(self, method: str, call: Call) -> None:
        with self._lock:
            self._settle(self._clock())
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
        with self._lock:
            now = self._clock()
            self._settle(now)
            mine = self._refusals.setdefault(peer, _Refusals(now + _PERIOD_SECONDS))
            mine.count += 1
            if mine.count > _OWN_LINES:
                mine.further[method, outcome] += 1
                return
        self._log.note(f"{method} refused", peer=peer, outcome=outcome)

    def _settle(self, now: float) -> None:
        for peer in [peer for peer, one in self._refusals.items() if one.until <= now]:
            for (method, outcome), count in self._refusals.pop(peer).further.items():
                self._log.note(f"{method} refused", peer=peer, outcome=outcome, count=count)
