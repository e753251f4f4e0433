"""The dealer audit: sessions in stock are opened to the vendor, who checks what was dealt for them.

Nobody but the vendor can: it has the corrections and the key of the weight masks, which this party
must not see. So the sessions are destroyed here first, durably, and then key_D of each is sent, and
nothing else. Which ones is drawn here, from the operating system's generator, after the crypto
provider has dealt them: it cannot spoil only those that will not be looked at.

Source: docs/protocol.md, section 14. Leaks: key_D of sessions that no image ever meets.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from data_owner.starting import RefusedError, begin
from radiopaque.errors import ConfigError, DealerError, RadiopaqueError, SessionStateError
from radiopaque.ledger import Ledger, State
from radiopaque.prg import KEY_BYTES
from radiopaque.transport.channel import Channel
from radiopaque.transport.link import Link
from radiopaque.wire.frames import Kind

_PARTS: Final = 1 << 53
"""Of one: as fine as a share is stated."""


@dataclass(frozen=True)
class Audited:
    """What an audit that found nothing wrong looked at.

    Of ``stock`` sessions, ``opened`` were dealt right, and ``refused`` the vendor had lost; both
    kinds are gone.
    """

    stock: int
    opened: int
    refused: int

    def detection(self, corrupted: int) -> float:
        """With which probability the audit would have found one of so many wrong sessions."""
        return detection(self.stock - self.refused, corrupted, self.opened)


def detection(stock: int, corrupted: int, opened: int) -> float:
    """The probability that ``opened`` of ``stock`` sessions, drawn at random, hit a corrupted one.

    1 - C(stock - corrupted, opened) / C(stock, opened). Raises ValueError where a number is
    negative or more than ``stock``.
    """
    if not (0 <= corrupted <= stock and 0 <= opened <= stock):
        raise ValueError(f"{corrupted} and {opened} of {stock} sessions cannot be")
    return 1 - math.comb(stock - corrupted, opened) / math.comb(stock, opened)


def chosen(stock: Sequence[bytes], share: float) -> list[bytes]:
    """``share`` of the sessions, rounded up, every choice as likely as any other.

    Raises ConfigError for a share that is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"the share to open must be above 0 and at most 1, it is {share}")
    count = min(len(stock), math.ceil(share * len(stock)))
    return secrets.SystemRandom().sample(stock, count)


def drawn(share: float) -> bool:
    """True with the probability ``share``, whatever was drawn before."""
    return secrets.randbelow(_PARTS) < share * _PARTS


def audit(
    stock: Sequence[bytes],
    picked: Sequence[bytes],
    open_one: Callable[[bytes], None],
    burn: Callable[[bytes], None],
) -> Audited:
    """Open the ``picked`` of the ``stock``, all of them, also where one is wrong.

    Raises DealerError where some are wrong, when the rest of the stock is burnt, too;
    SessionStateError where there is no stock; and what else ends the audit.
    """
    if not stock:
        raise SessionStateError(
            "there is no prepared session of this model to audit; prepare some first "
            "(radiopaque data-owner prepare)"
        )
    left = set(stock)
    opened = refused = 0
    wrong: list[DealerError] = []
    for session in picked:
        try:
            open_one(session)
            opened += 1
        except RefusedError:
            # nothing of it has left
            burn(session)
            refused += 1
        except DealerError as error:
            wrong.append(error)
        except RadiopaqueError:
            if not wrong:
                raise
            break
        left.remove(session)
    if wrong:
        for session in left:
            burn(session)
        raise DealerError(
            f"{len(wrong)} of {opened + len(wrong)} opened sessions are wrong, and the {len(left)} "
            f"left in stock were burnt: {wrong[0]}"
        )
    return Audited(len(stock), opened, refused)


def open_session(channel: Channel, ledger: Ledger, session: bytes, state: State) -> None:
    """Reveal key_D of a session in a ``state`` of waiting, and wait for the vendor's verdict.

    1. Both ledgers have it as used, durably, this one last. 2. The key leaves, which is in no
    ledger any more. 3. The vendor answers.

    Raises RefusedError and RestoredLedgerError before the key leaves, DealerError where it was
    dealt wrongly, MessageValueError where the vendor finds that the key is not the session's, and
    TransportError. The caller burns the session.
    """
    link = Link(channel, session)
    seen = begin(link, ledger, session)
    entry = ledger.advance(session, state, State.OPENED, seen=seen)
    link.send(0, Kind.KEY, 0, (entry.secret or b"")[:KEY_BYTES])
    link.receive(0, Kind.VERDICT, 0, 0)
