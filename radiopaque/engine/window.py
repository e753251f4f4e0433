"""What a session needs before its image, loaded gate by gate, at most a window ahead of the walk.

A party's online walk goes through the plan once, and each gate needs its stored material and
expanded streams (its *state*) from its first band to its last; a few neighbouring gates at a time.
States are loaded in plan order, as many as fit into the window before the image is there; a thread
loads the rest, each as soon as there is room, or is needed. So memory is bounded by the window and
the gates that are under way, not by the depth of the network, and a network that fits costs no
online time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import fields, is_dataclass
from types import TracebackType
from typing import Any, Final, NamedTuple

from radiopaque.errors import SessionStateError, without_traceback

WINDOW_BYTES: Final = 2 << 30
"""Default size: a VGG-16 at 224 by 224 pixels fits, or eight images of a ResNet-18 at once."""


class Pending(NamedTuple):
    """A gate whose state is to be loaded next."""

    gate: int
    expected_bytes: int
    """Of its state, as far as the plan says; counted is what was loaded in the end."""
    load: Callable[[], Any]


class Window:
    """States of one session on their way to the walk, which is made inside it as a context manager.

    It is entered once, whoever asks: a second walk would use masks twice. Leaving it ends loading.
    Making it fills it; where something is left, a thread goes on from there as the walk does.
    ``gates`` yields every gate of the plan in order, and is closed when all are loaded, one has
    failed, or the window is closed. Raises what loading has raised so far: StoreError for damaged
    material.
    """

    def __init__(self, gates: Generator[Pending], window_bytes: int) -> None:
        self.peak_bytes = 0
        """Most bytes of states that were loaded at once, those in use included."""
        self._gates = gates
        self._size = window_bytes
        self._loaded: dict[int, tuple[Any, int]] = {}
        self._held = 0
        self._wanted = -1
        self._entered = False
        self._closed = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._loader: threading.Thread | None = None
        self._next: Pending | None = None
        try:
            self._advance()
            while self._next is not None and self._fits(self._next):
                self._load(self._next)
            if self._next is not None:
                loader = threading.Thread(target=self._go_on, name="radiopaque-load", daemon=True)
                loader.start()
                self._loader = loader
        except BaseException:
            self.close()
            raise

    def take(self, gate: int) -> Any:
        """The state of a gate, None where it has none; the same until it is freed.

        Raises what loading it has raised, and SessionStateError when the window is closed.
        """
        found = self._loaded.get(gate)
        if found is None:
            found = self._wait(gate)
        return found[0]

    def free(self, gate: int) -> None:
        """The state of a gate that was taken is not needed any more."""
        with self._changed:
            # closing frees everything, perhaps in another thread
            _, size = self._loaded.pop(gate, (None, 0))
            self._held -= size
            self._changed.notify_all()

    def _wait(self, gate: int) -> tuple[Any, int]:
        with self._changed:
            self._wanted = gate
            self._changed.notify_all()
            self._changed.wait_for(lambda: gate in self._loaded or self._next is None)
            found = self._loaded.get(gate)
        if found is None:
            gone = SessionStateError(
                "the material of this session is not there any more; prepare another session"
            )
            raise without_traceback(self._failure or gone)
        return found

    def close(self) -> None:
        """Free what was not taken and end the thread, which finishes the gate that it is at."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._loader is not None:
            self._loader.join()
        self._end()
        with self._changed:
            self._loaded.clear()

    def __enter__(self) -> Window:
        with self._changed:
            if self._entered:
                raise SessionStateError("this session was already run; prepare another session")
            self._entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _go_on(self) -> None:
        """The thread: what did not fit at first."""
        try:
            while self._next is not None and self._has_room(self._next):
                self._load(self._next)
        except BaseException as error:
            self._failure = without_traceback(error)
        finally:
            self._end()

    def _has_room(self, pending: Pending) -> bool:
        """Wait until it fits; False once the window is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._fits(pending))
            return not self._closed

    def _fits(self, pending: Pending) -> bool:
        """Beside the others; a gate that is larger than the window alone; one waited for always."""
        needed = self._held == 0 or pending.gate <= self._wanted
        return needed or self._held + pending.expected_bytes <= self._size

    def _load(self, pending: Pending) -> None:
        # the state has no name here: it would live on while the next gate waits for room
        self._add(pending.gate, pending.load())
        self._advance()

    def _add(self, gate: int, state: Any) -> None:
        size = state_bytes(state)
        with self._changed:
            self._loaded[gate] = state, size
            self._held += size
            self.peak_bytes = max(self.peak_bytes, self._held)
            self._changed.notify_all()

    def _advance(self) -> None:
        following = next(self._gates, None)
        with self._changed:
            self._next = following
            self._changed.notify_all()

    def _end(self) -> None:
        """No gate is loaded any more."""
        self._gates.close()
        with self._changed:
            self._next = None
            self._changed.notify_all()


def state_bytes(state: Any) -> int:
    """Bytes of the arrays in a gate's state, on whichever device they lie."""
    if hasattr(state, "nbytes"):
        return int(state.nbytes)
    if is_dataclass(state):
        return sum(state_bytes(getattr(state, one.name)) for one in fields(state))
    return 0
