"""What a server tells of its calls, to whoever measures or bills them: never their content."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from radiopaque.transport.admission import Call

OK = "ok"
ABANDONED = "abandoned"
"""The caller went away, or its deadline passed, while a reply was being sent."""


class Observer:
    """Told of every call of one server, by many threads; this one ignores it all.

    ``outcome`` is OK, ABANDONED, or the class name of the error that the caller was told.
    """

    def begun(self, method: str, call: Call) -> None:
        """A call was admitted. What this raises refuses it."""

    def ended(self, method: str, call: Call, outcome: str) -> None:
        """A call that was admitted is over; its counters are final."""

    def refused(self, method: str, outcome: str, peer: str) -> None:
        """A call was not admitted. ``peer`` is what its certificate says, or ``?``."""


class Observers(Observer):
    """Several of them, told in their order."""

    def __init__(self, observers: tuple[Observer, ...]) -> None:
        self._observers = observers

    def begun(self, method: str, call: Call) -> None:
        for observer in self._observers:
            observer.begun(method, call)

    def ended(self, method: str, call: Call, outcome: str) -> None:
        for observer in self._observers:
            observer.ended(method, call, outcome)

    def refused(self, method: str, outcome: str, peer: str) -> None:
        for observer in self._observers:
            observer.refused(method, outcome, peer)
