"""The window: order, its bound, damage and abandonment in the middle."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from radiopaque.engine.window import Pending, Window, state_bytes
from radiopaque.errors import SessionStateError, StoreError


class State(np.ndarray):  # type: ignore[type-arg]
    """An array that can be referred to weakly."""


class Gates:
    """Gates with states of these sizes; ``spoiled`` cannot be loaded."""

    def __init__(self, sizes: Sequence[int], spoiled: int | None = None) -> None:
        self.sizes = sizes
        self.spoiled = spoiled
        self.loaded: list[weakref.ref[State]] = []
        self.ended = False
        self.before: Callable[[int], None] = lambda gate: None

    def pending(self) -> Generator[Pending]:
        try:
            for gate, size in enumerate(self.sizes):
                yield Pending(gate, size, lambda gate=gate: self.load(gate))  # type: ignore[misc]
        finally:
            self.ended = True

    def load(self, gate: int) -> State | None:
        self.before(gate)
        if gate == self.spoiled:
            raise StoreError("this gate is damaged")
        if not self.sizes[gate]:
            return None
        state = np.full(self.sizes[gate], gate, np.uint8).view(State)
        self.loaded.append(weakref.ref(state))
        return state

    def alive(self) -> int:
        """Bytes of states that somebody still holds."""
        return sum(state.nbytes for state in (one() for one in self.loaded) if state is not None)


def no_thread_is_left() -> bool:
    return "radiopaque-load" not in {thread.name for thread in threading.enumerate()}


def walk(window: Window, gates: Gates) -> None:
    """Take every state, more than once, look at it and free it."""
    for gate, size in enumerate(gates.sizes):
        state = window.take(gate)
        assert state is window.take(gate)
        assert (state is None) == (size == 0)
        assert size == 0 or (state.size == size and (state == gate).all())
        del state
        window.free(gate)


@pytest.mark.parametrize("size", [1, 99, 100, 250, 10_000])
def test_every_state_arrives_in_order_and_the_window_holds(size: int) -> None:
    gates = Gates([100, 0, 30, 70, 0, 0, 100, 5, 100])
    with Window(gates.pending(), size) as window:
        assert gates.alive() <= max(size, 100)
        walk(window, gates)
    assert 100 <= window.peak_bytes <= max(size, 100)
    assert gates.alive() == 0
    assert gates.ended
    assert no_thread_is_left()


def test_what_fits_is_loaded_before_the_walk_and_takes_no_thread() -> None:
    gates = Gates([100] * 10)
    window = Window(gates.pending(), 1000)
    assert len(gates.loaded) == 10
    assert window.peak_bytes == 1000
    assert gates.ended
    assert no_thread_is_left()
    walk(window, gates)


def test_the_window_is_filled_before_the_walk_and_no_further() -> None:
    gates = Gates([100] * 10)
    with Window(gates.pending(), 399) as window:
        assert len(gates.loaded) == 3
        # as the walk goes on, so does the loader, but never beyond the window
        gates.before = lambda gate: window_holds(gates, 299)
        walk(window, gates)
    assert len(gates.loaded) == 10
    assert window.peak_bytes == 300


def window_holds(gates: Gates, most: int) -> None:
    if gates.alive() > most:
        raise ValueError(f"{gates.alive()} bytes are held before a gate is loaded")


def test_a_gate_larger_than_the_window_is_loaded_alone() -> None:
    gates = Gates([100, 60, 1000, 60, 100])
    gates.before = lambda gate: window_holds(gates, 0) if gate in (2, 3) else None
    with Window(gates.pending(), 250) as window:
        assert len(gates.loaded) == 2
        walk(window, gates)
    assert window.peak_bytes == 1000


@dataclass(frozen=True)
class Tables:
    first: NDArray[np.uint64]
    second: NDArray[np.uint16]


@dataclass(frozen=True)
class Nested:
    tables: Tables
    mask: NDArray[np.uint32]
    name: str = "no array"


def test_what_counts_are_the_arrays_of_a_state() -> None:
    tables = Tables(np.zeros((3, 5), np.uint64), np.zeros(7, np.uint16))
    assert state_bytes(None) == 0
    assert state_bytes(np.zeros(4, np.uint32)) == 16
    assert state_bytes(torch.zeros(4, dtype=torch.int32)) == 16
    assert state_bytes(Nested(tables, np.zeros(2, np.uint32))) == 120 + 14 + 8


def test_what_a_state_took_counts_and_not_what_was_expected() -> None:
    def pending() -> Generator[Pending]:
        for gate in range(5):
            yield Pending(gate, 1, lambda: np.zeros(100, np.uint8))

    with Window(pending(), 250) as window:
        assert window.peak_bytes == 300
        for gate in range(5):
            window.take(gate)
            window.free(gate)
    assert window.peak_bytes == 300


@pytest.mark.parametrize("spoiled", [0, 4, 9])
def test_damage_inside_the_window_is_told_before_the_walk(spoiled: int) -> None:
    gates = Gates([100] * 10, spoiled)
    with pytest.raises(StoreError, match="damaged"):
        Window(gates.pending(), 1000)
    assert gates.alive() == 0
    assert gates.ended
    assert no_thread_is_left()


def test_damage_beyond_the_window_is_told_at_its_gate() -> None:
    gates = Gates([100] * 10, spoiled=6)
    with Window(gates.pending(), 250) as window:
        for gate in range(6):
            assert (window.take(gate) == gate).all()
        for _ in range(2):
            with pytest.raises(StoreError, match="damaged"):
                window.take(6)
    assert gates.ended
    assert no_thread_is_left()


def test_a_plan_that_cannot_be_walked_is_told_too() -> None:
    def pending() -> Generator[Pending]:
        yield Pending(0, 1, lambda: None)
        raise TypeError("what gate is this?")

    with pytest.raises(TypeError, match="what gate"):
        Window(pending(), 100)
    assert no_thread_is_left()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_abandoning_frees_all_at_once(taken: int) -> None:
    gates = Gates([100] * 10)
    window = Window(gates.pending(), 250)
    for gate in range(taken):
        window.take(gate)
    window.close()
    assert gates.alive() == 0
    assert gates.ended
    assert no_thread_is_left()
    with pytest.raises(SessionStateError, match="prepare another session"):
        window.take(taken)
    window.close()


def test_abandoning_while_a_gate_is_being_loaded() -> None:
    gates = Gates([100] * 10)
    loading, go_on = threading.Event(), threading.Event()

    def pause(gate: int) -> None:
        if gate == 2:
            loading.set()
            go_on.wait(10)

    gates.before = pause
    window = Window(gates.pending(), 200)
    window.take(0)
    window.free(0)
    assert loading.wait(10)
    closing = threading.Thread(target=window.close)
    closing.start()
    go_on.set()
    closing.join(10)
    assert not closing.is_alive()
    assert len(gates.loaded) == 3
    assert gates.alive() == 0
    assert no_thread_is_left()


def test_several_gates_are_under_way_at_once() -> None:
    """A walk that is ahead waits for no room, and what it left behind stays."""
    gates = Gates([100] * 6)
    with Window(gates.pending(), 100) as window:
        window.take(0)
        assert (window.take(2) == 2).all()
        assert window.peak_bytes == 300
        for gate in (1, 0, 2):
            assert (window.take(gate) == gate).all()
            window.free(gate)
        gates.before = lambda gate: window_holds(gates, 0)
        for gate in (3, 4, 5):
            assert (window.take(gate) == gate).all()
            window.free(gate)
    assert window.peak_bytes == 300


def test_freeing_after_the_window_was_closed() -> None:
    window = Window(Gates([10]).pending(), 100)
    window.take(0)
    window.close()
    window.free(0)
