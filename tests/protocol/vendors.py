"""Model owners that deviate, each frame depending on whatever the data owner has said before.

They ask one thing at a time, so that every frame may be chosen from all that was heard: of other
bands, and of other layers.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from radiopaque.errors import MessageOrderError, MessageSizeError, RadiopaqueError
from radiopaque.transport.channel import Channel
from radiopaque.wire.frames import Frame, Kind
from tests.protocol import sessions
from tests.protocol.banded import Turn, conversation
from tests.protocol.network import images, small_plan, small_weights
from tests.protocol.sessions import Session

Vendor = Callable[[Session], sessions.Serve]
Choice = Callable[[Turn, Sequence[Frame]], bytes]


def say(party: str, choice: Choice, session: Session, channel: Channel) -> None:
    """A party that sends in every place what ``choice`` makes of the place and of all it heard."""
    heard: list[Frame] = []
    for turn in conversation(session.plan):
        if turn.receiver == party:
            heard.append(channel.receive())
        else:
            channel.send(turn.frame(session.session, choice(turn, heard)))


def sending(choice: Choice) -> Vendor:
    """A model owner that says what ``choice`` makes of it."""
    return lambda session: partial(say, "model-owner", choice, session)


def repeated() -> Choice:
    """What it sent of a kind first, in every band of every gate."""
    first: dict[Kind, bytes] = {}

    def choice(turn: Turn, heard: Sequence[Frame]) -> bytes:
        said = first.setdefault(turn.kind, np.random.default_rng().bytes(turn.size))
        return said * (1 + turn.size // len(said))

    return choice


def recorded(shift: int) -> Choice:
    """What an honest vendor sent in another session: in its place, or that of a later band."""
    other = sessions.run_session(small_plan(), small_weights(), images()["noise"])
    said = {(f.gate, f.kind, f.block): bytes(f.payload) for f in other.to_data_owner}
    count = Counter((gate, kind) for gate, kind, _ in said)

    def choice(turn: Turn, heard: Sequence[Frame]) -> bytes:
        return said[turn.gate, turn.kind, (turn.block + shift) % count[turn.gate, turn.kind]]

    return choice


def adaptive(turn: Turn, heard: Sequence[Frame]) -> bytes:
    """A function of every bit that was heard, in every bit."""
    state = hashlib.shake_256()
    for frame in heard:
        state.update(frame.payload)
    return state.digest(turn.size)


def echoed(turn: Turn, heard: Sequence[Frame]) -> bytes:
    """The data owner's own last words, of whatever band and gate they were."""
    last = bytes(heard[-1].payload)
    return last * (1 + turn.size // len(last))


CHOICES: dict[str, Callable[[], Choice]] = {
    "zeros": lambda: lambda turn, heard: b"",
    "ones": lambda: lambda turn, heard: b"\xff" * turn.size,
    "repeats": repeated,
    "another session's values": lambda: recorded(0),
    "bands in another order": lambda: recorded(1),
    "openings chosen by all that was heard": lambda: adaptive,
    "the data owner's words back": lambda: echoed,
}
"""For the small plan."""


def stops_at(heard: Frame) -> bool:
    """What makes :func:`stopping` stop: one message in four."""
    return bytes(heard.payload)[0] % 4 == 1


def stopping(session: Session) -> sessions.Serve:
    """Asks until it hears what it waits for, then sends a byte too many."""

    def serve(channel: Channel) -> None:
        heard: list[Frame] = []
        for turn in conversation(session.plan):
            if turn.receiver == "model-owner":
                heard.append(channel.receive())
                continue
            spare = b"\0" if stops_at(heard[-1]) else b""
            payload = bytes(turn.frame(session.session, adaptive(turn, heard)).payload) + spare
            channel.send(Frame(session.session, turn.gate, turn.kind, turn.block, payload))

    return serve


# --- what no honest party can send ---------------------------------------------------------------


Wrong = Callable[[Sequence[Frame], int], Frame | None]


def length(change: int) -> Wrong:
    def wrong(frames: Sequence[Frame], place: int) -> Frame:
        payload = bytes(frames[place].payload)
        return replace(frames[place], payload=(payload + b"\0")[: len(payload) + change])

    return wrong


def from_place(step: int) -> Wrong:
    def wrong(frames: Sequence[Frame], place: int) -> Frame | None:
        return frames[place + step] if 0 <= place + step < len(frames) else None

    return wrong


def with_fields(**other: object) -> Wrong:
    return lambda frames, place: replace(frames[place], **other)  # type: ignore[arg-type]


def with_spare_bit(frames: Sequence[Frame], place: int) -> Frame:
    payload = bytearray(frames[place].payload)
    payload[-1] |= 0x80
    return replace(frames[place], payload=bytes(payload))


WRONG: dict[str, tuple[Wrong, type[RadiopaqueError]]] = {
    "the last frame again": (from_place(-1), MessageOrderError),
    "the next frame first": (from_place(1), MessageOrderError),
    "a frame of long ago": (from_place(-7), MessageOrderError),
    "another session's": (with_fields(session=bytes(16)), MessageOrderError),
    "another kind": (with_fields(kind=Kind.RERANDOMISED), MessageOrderError),
    "no such gate": (with_fields(gate=1 << 20), MessageOrderError),
    "no such block": (with_fields(block=1 << 20), MessageOrderError),
    "a byte too few": (length(-1), MessageSizeError),
    "a byte too many": (length(1), MessageSizeError),
    "nothing in it": (with_fields(payload=b""), MessageSizeError),
}


def forgiving(frame: Frame, own: bytes, gate: int, kind: Kind, block: int, size: int):  # type: ignore[no-untyped-def]
    """Stands in for the check of a frame that is due."""
    return np.frombuffer(bytes(frame.payload)[:size].ljust(size, b"\0"), np.uint8)
