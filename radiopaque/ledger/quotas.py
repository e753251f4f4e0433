"""How much each peer has used of what it may use in a sliding period.

Counted where the ledger is, so that a quota holds over restarts, and over all replicas that share a
ledger. Times are the clocks' of the replicas: as far as these are apart, so is the period's end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

from radiopaque.errors import ResourceError
from radiopaque.ledger.databases import Transaction


@dataclass(frozen=True, slots=True)
class Charge:
    """What a session costs: ``images``, at ``now``, of ``quota`` in any ``seconds``.

    ``images`` is at most ``quota``.
    """

    images: int
    quota: int
    seconds: float
    now: float


def count(connection: Transaction, row_lock: str, peer: str, charge: Charge) -> None:
    """Add a charge to what a peer has used.

    Raises ResourceError where it goes beyond the quota, with the time until it fits.
    """
    # one at a time, in all replicas: nothing is to be added between the sum and the new row
    connection.execute(f"SELECT name FROM party{row_lock}").fetchone()  # noqa: S608 - constant text
    connection.execute("DELETE FROM spent WHERE at <= ?", (charge.now - charge.seconds,))
    rows = connection.execute(
        "SELECT at, amount FROM spent WHERE peer = ? ORDER BY at", (peer,)
    ).fetchall()
    excess = sum(row[1] for row in rows) + charge.images - charge.quota
    if excess > 0:
        freed = accumulate(row[1] for row in rows)
        at = next(row[0] for row, so_far in zip(rows, freed, strict=True) if so_far >= excess)
        wait = float(at + charge.seconds - charge.now)
        raise ResourceError(
            f"the quota of this clinic, {charge.quota} images in {duration(charge.seconds)}, is "
            f"used up; try again in {math.ceil(wait)} s",
            retry_seconds=wait,
        )
    connection.execute("INSERT INTO spent VALUES (?, ?, ?)", (peer, charge.now, charge.images))


def duration(seconds: float) -> str:
    """In hours, for people."""
    hours = seconds / 3600
    return f"{hours:g} hour{'s' if hours != 1 else ''}"
