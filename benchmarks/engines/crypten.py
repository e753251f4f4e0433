"""CrypTen over our three parties."""

from __future__ import annotations

from pathlib import Path

from benchmarks.case import Case, Inputs, Tell
from benchmarks.errors import NotAvailableError
from benchmarks.record import Part


def measure(case: Case, inputs: Inputs, folder: Path, tell: Tell) -> Part:
    """See :class:`benchmarks.case.Engine`."""
    raise NotAvailableError("the CrypTen engine over these parties is not there yet")
