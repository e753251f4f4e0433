"""Places for what a party does at once, not all of them for one caller."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from radiopaque.certificates import PeerIdentity
from radiopaque.errors import ResourceError
from radiopaque.transport.admission import Call

_LOOK_SECONDS: Final = 0.1
"""How soon a call that waits for its turn finds out that its caller went away."""
_RETRY_SECONDS: Final = 1.0
"""Places come free a moment after a result."""


class Places:
    """So many places; where there are several, a caller has at most all but one of them.

    A caller that does not read, or does not answer, keeps its places until its deadline. There is
    no taking them back, so one is kept for others even while nobody else asks.
    """

    def __init__(self, total: int, what: str) -> None:
        """``what`` is done in them, in the plural, for messages."""
        self._total = total
        self._share = max(1, total - 1)
        self._what = what
        self._changed = threading.Condition()
        self._taken: Counter[PeerIdentity] = Counter()

    @contextmanager
    def place(self, call: Call, seconds: float = math.inf) -> Iterator[None]:
        """One of them, waited for.

        Raises ResourceError where there is none for so long, ConnectionLostError where the call
        ends before.
        """
        end = time.monotonic() + seconds
        with self._changed:
            while refusal := self._refusal(call.peer):
                call.cancellation.check()
                if time.monotonic() >= end:
                    raise ResourceError(refusal, _RETRY_SECONDS)
                self._changed.wait(_LOOK_SECONDS)
            self._taken[call.peer] += 1
        try:
            yield
        finally:
            with self._changed:
                self._taken[call.peer] -= 1
                if not self._taken[call.peer]:
                    del self._taken[call.peer]
                self._changed.notify_all()

    def _refusal(self, caller: PeerIdentity) -> str:
        """Why the caller has to wait; nothing where there is a place."""
        if self._taken.total() >= self._total:
            return (
                f"{self._total} {self._what} are under way, the limit here; try again in a second"
            )
        if self._taken[caller] >= self._share:
            return (
                f"{self._share} {self._what} of {caller} are under way, all but one of the places "
                "here; wait for one to end"
            )
        return ""
