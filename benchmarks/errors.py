"""What goes wrong in a benchmark on purpose."""

from __future__ import annotations

from radiopaque.errors import RadiopaqueError


class BenchmarkError(RadiopaqueError):
    """A wish that cannot be fulfilled, or a peer that failed; the message says what to do."""

    exit_code = 2


class NotAvailableError(BenchmarkError):
    """An engine or device that is not here; the run goes on without it and says why."""
