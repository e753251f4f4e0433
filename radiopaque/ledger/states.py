"""One party's life of a session, as data: which states there are, and which steps between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from radiopaque.errors import SessionStateError


class State(StrEnum):
    """How far a session has come."""

    FRESH = "FRESH"
    BOUND = "BOUND"
    PREPARING = "PREPARING"
    READY = "READY"
    RESERVED = "RESERVED"
    DEALT = "DEALT"
    STARTED = "STARTED"
    OPENED = "OPENED"
    BURNT = "BURNT"


@dataclass(frozen=True, slots=True)
class Transitions:
    """One party's life of a session.

    ``steps`` says of each allowed step whether it erases the secret: those that do use the session,
    and messages leave after them. Every state may also go to BURNT, which erases. ``abandoned`` are
    states that no session can be in when the ledger is opened, unless the process died in the
    middle of it or the ledger is a copy: such a session is burnt. ``forgets``: what ended unused
    need not be known for good, since no peer asks for it and this party draws its keys anew.
    """

    party: str
    initial: State
    steps: Mapping[tuple[State, State], bool]
    abandoned: frozenset[State]
    forgets: bool = False

    @property
    def waiting(self) -> frozenset[State]:
        """States in which a session is not used yet."""
        return frozenset({self.initial, *(old for old, _ in self.steps)})

    def erases(self, old: State, new: State) -> bool:
        """Whether a step erases the secret. Raises SessionStateError when it is no step."""
        if new is State.BURNT:
            return True
        if (old, new) not in self.steps:
            raise SessionStateError(
                f"a session of the {self.party} does not go from {old} to {new}"
            )
        return self.steps[old, new]

    def uses(self, old: State, new: State) -> bool:
        """Whether messages under the session's masks leave after a step."""
        return self.steps.get((old, new), False)


_KEEPS, _ERASES = False, True

DATA_OWNER: Final = Transitions(
    "data owner",
    State.FRESH,
    MappingProxyType(
        {
            (State.FRESH, State.BOUND): _KEEPS,  # when the vendor has the session
            (State.BOUND, State.STARTED): _ERASES,  # before the masked image leaves
            (State.BOUND, State.OPENED): _ERASES,  # before key_D leaves, for the dealer audit
            (State.FRESH, State.OPENED): _ERASES,  # the same, of one that is drawn at once
        }
    ),
    frozenset({State.FRESH, State.STARTED, State.OPENED}),
)
MODEL_OWNER: Final = Transitions(
    "model owner",
    State.PREPARING,
    MappingProxyType(
        {
            (State.PREPARING, State.READY): _KEEPS,  # both offline messages in files
            (State.READY, State.STARTED): _ERASES,  # before the first online message leaves
            (State.READY, State.OPENED): _ERASES,  # before the clinic is told to reveal key_D
        }
    ),
    frozenset({State.PREPARING, State.STARTED, State.OPENED}),
    forgets=True,
)
CRYPTO_PROVIDER: Final = Transitions(
    "crypto provider",
    State.RESERVED,
    MappingProxyType({(State.RESERVED, State.DEALT): _ERASES}),  # before the first correction
    # A reservation waits for seconds. One that outlives the process may come from a copy.
    frozenset({State.RESERVED, State.DEALT}),
    forgets=True,
)
