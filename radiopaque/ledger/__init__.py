"""A party's ledger: which sessions exist, how far each has come, which keys still wait for use."""

from radiopaque.ledger.ledger import Entry, Ledger, Seen, open_ledger
from radiopaque.ledger.marks import MARK_BYTES, NOTHING, Mark
from radiopaque.ledger.states import (
    CRYPTO_PROVIDER,
    DATA_OWNER,
    MODEL_OWNER,
    State,
    Transitions,
)

__all__ = [
    "CRYPTO_PROVIDER",
    "DATA_OWNER",
    "MARK_BYTES",
    "MODEL_OWNER",
    "NOTHING",
    "Entry",
    "Ledger",
    "Mark",
    "Seen",
    "State",
    "Transitions",
    "open_ledger",
]
