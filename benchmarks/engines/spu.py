"""SPU, if somebody has put it into a virtual environment of its own: it needs numpy < 2."""

from __future__ import annotations

from pathlib import Path

from benchmarks.case import Case, Inputs, Tell
from benchmarks.errors import NotAvailableError
from benchmarks.record import Part


def measure(case: Case, inputs: Inputs, folder: Path, tell: Tell) -> Part:
    """See :class:`benchmarks.case.Engine`."""
    raise NotAvailableError("there is no wheel of spu for this Python")
