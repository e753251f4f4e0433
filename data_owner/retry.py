"""When a submission that was broken off is tried again, and how long to wait before."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from radiopaque.errors import (
    RadiopaqueError,
    ResourceError,
    RestoredLedgerError,
    SessionStateError,
    TransportError,
    UnknownSessionError,
)

CURABLE: Final[tuple[type[RadiopaqueError], ...]] = (
    TransportError,
    ResourceError,
    RestoredLedgerError,
    SessionStateError,
    UnknownSessionError,
)
"""What another attempt with fresh material, a while later, may cure. None depends on a result."""


@dataclass(frozen=True)
class Backoff:
    """Waits that double from ``first_seconds`` up to ``longest_seconds``, between ``attempts``.

    Each is drawn between half of that and all of it, so that clinics that lost the same server do
    not come back in step.
    """

    attempts: int = 5
    first_seconds: float = 0.5
    longest_seconds: float = 30.0

    def wait(self, error: RadiopaqueError, drawn: float) -> float | None:
        """Seconds to wait after ``error``: what was drawn, after what the peer asks for.

        None where the peer asks for more than ``longest_seconds``: every attempt would be in vain.
        """
        asked = error.retry_seconds if isinstance(error, ResourceError) else None
        if asked is None:
            return drawn
        return asked + drawn if asked <= self.longest_seconds else None

    def waits(self) -> Iterator[float]:
        """Seconds to wait before each further attempt, ``attempts - 1`` of them."""
        system = secrets.SystemRandom()
        most = self.first_seconds
        for _ in range(self.attempts - 1):
            most = min(most, self.longest_seconds)
            yield system.uniform(most / 2, most)
            most *= 2
