"""What a ledger need not keep for good, so that nobody fills a disk by asking.

To forget a session never lets it serve again: its keys are gone with its entry, and a server draws
its own half of the keys anew for each session, whatever its id. What is lost is the knowledge that
it was used, by which a peer's mark is recognised: a ledger that forgot that would take itself for a
copy that was put back, and burn what waits. Marks themselves are never forgotten.
"""

from __future__ import annotations

from typing import Final

from radiopaque.errors import ResourceError
from radiopaque.ledger.databases import Transaction

TOLD: Final = 2
"""In ``used``, where 1 says that a session was used here: only a peer says so."""
_UNUSED_SECONDS: Final = 3600.0
_AT_ONCE: Final = 1000
_MOST_TOLD: Final = 1000
_MOST_EPOCHS: Final = 1000


def forget_unused(connection: Transaction, now: float) -> None:
    """Those that ended unused, an hour after their entry, some of them at a time."""
    connection.execute(
        "DELETE FROM session WHERE id IN (SELECT id FROM session "
        "WHERE state = 'BURNT' AND used = 0 AND created < ? LIMIT ?)",
        (now - _UNUSED_SECONDS, _AT_ONCE),
    )


def forget_told(connection: Transaction, peer: str) -> None:
    """All but the newest that are entered as used on a peer's word: its others count anew."""
    connection.execute(
        "DELETE FROM session WHERE state = 'BURNT' AND used = 2 AND peer = ? AND created < "
        "(SELECT min(created) FROM (SELECT created FROM session WHERE state = 'BURNT' "
        "AND used = 2 AND peer = ? ORDER BY created DESC LIMIT ?) AS newest)",
        (peer, peer, _MOST_TOLD),
    )


def check_room(connection: Transaction, peer: str) -> None:
    """Whether one more mark may be kept of a peer, which draws its ledgers' epochs itself.

    Raises ResourceError.
    """
    kept = connection.execute("SELECT count(*) FROM mark WHERE peer = ?", (peer,)).fetchone()[0]
    if kept >= _MOST_EPOCHS:
        raise ResourceError(
            f"{kept} ledgers have used this certificate's name here, the limit; go on with one of "
            "them, or get a certificate of another name"
        )
