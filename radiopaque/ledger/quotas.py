"""How much each peer has used of what it may use in a sliding period.

Counted where the ledger is, so that a quota holds over restarts, and over all replicas that share a
ledger. Times are the clocks' of the replicas: as far as these are apart, so is the period's end.
"""

from __future__ import annotations

from itertools import accumulate

from radiopaque.ledger.databases import Transaction


def charge(
    connection: Transaction,
    row_lock: str,
    peer: str,
    amount: int,
    quota: int,
    seconds: float,
    now: float,
) -> float | None:
    """Count ``amount`` at ``now`` if no more than ``quota`` comes together in ``seconds``.

    Returns None where it was counted, else the seconds until it fits. ``amount`` is at most
    ``quota``.
    """
    # one at a time, in all replicas: nothing is to be added between the sum and the new row
    connection.execute(f"SELECT name FROM party{row_lock}").fetchone()  # noqa: S608 - constant text
    connection.execute("DELETE FROM spent WHERE at <= ?", (now - seconds,))
    rows = connection.execute(
        "SELECT at, amount FROM spent WHERE peer = ? ORDER BY at", (peer,)
    ).fetchall()
    excess = sum(row[1] for row in rows) + amount - quota
    if excess > 0:
        freed = accumulate(row[1] for row in rows)
        at = next(row[0] for row, so_far in zip(rows, freed, strict=True) if so_far >= excess)
        return float(at + seconds - now)
    connection.execute("INSERT INTO spent VALUES (?, ?, ?)", (peer, now, amount))
    return None
