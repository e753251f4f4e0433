"""What two parties tell each other of their ledgers before masks of a session are used.

Each ledger has an *epoch*, 16 random bytes drawn when it is made. Each party keeps of each peer the
newest session that it knows the peer's ledger to have used: the peer's high-water *mark*. At the
start of a session both say their epoch and the mark that they keep of the other. A party that is
told of a session which its own ledger does not have as used runs on an older copy of its ledger (a
backup, a snapshot, a replica that lagged behind): it burns what waits there, and refuses.

A session id is drawn at random, so a copy that lives on never happens to have the mark, however
much is entered into it; a counter would be overtaken. A party tells only what its peer was told
before, so a mark reveals nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from radiopaque.wire import messages
from radiopaque.wire.frames import SESSION_BYTES

EPOCH_BYTES: Final = 16
NOTHING: Final = bytes(SESSION_BYTES)
"""Stands for no session, and no epoch."""
MARK_BYTES: Final = 2 * EPOCH_BYTES + SESSION_BYTES


@dataclass(frozen=True, slots=True)
class Mark:
    """What one party says: its own ``epoch``; ``seen`` of the peer's ledger of ``peer_epoch``.

    On the wire: these three, 16 bytes each, in this order.
    """

    epoch: bytes
    peer_epoch: bytes = NOTHING
    seen: bytes = NOTHING

    def encode(self) -> bytes:
        return self.epoch + self.peer_epoch + self.seen

    @classmethod
    def decode(cls, data: bytes) -> Mark:
        """Raises MessageSizeError."""
        messages.exact_bytes(data, MARK_BYTES, "the mark of a ledger")
        return cls(data[:EPOCH_BYTES], data[EPOCH_BYTES : 2 * EPOCH_BYTES], data[2 * EPOCH_BYTES :])
