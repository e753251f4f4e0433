"""Bad messages: a good session in which one frame is not the one that is due.

Each entry names a case of another file, the frame, what is changed about it, and the error with
which the receiver must end the session.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from radiopaque.errors import ConnectionLostError, RadiopaqueError
from radiopaque.transport.channel import Counters
from radiopaque.wire.frames import Frame, Kind

# the case that shows each kind: counts that leave padding bits wherever the kind is packed
SHOWN_BY = {
    "IMAGE": ("gate_relu", "relu_32_19_0"),
    "OPENING": ("gate_relu", "relu_32_19_0"),
    "SELECTION": ("gate_relu", "relu_32_19_0"),
    "DECISION": ("gate_relu", "relu_32_19_0"),
    "RERANDOMISED": ("gate_relu", "relu_32_19_0"),
    "TOP_BIT": ("gate_truncate", "truncate_32_20_1"),
    "RESULT": ("gate_output", "output_32_31_1"),
    "CORRECTION": ("gate_relu", "relu_32_19_0"),
    "OFFLINE": ("gate_relu", "relu_32_19_0"),
}
CHANGES = {
    "dropped_byte": "MessageSizeError",
    "added_byte": "MessageSizeError",
    "empty": "MessageSizeError",
    "sent_twice": "MessageOrderError",
    "other_session": "MessageOrderError",
    "next_gate": "MessageOrderError",
    "next_block": "MessageOrderError",
    "other_kind": "MessageOrderError",
}
_PADDED = ("SELECTION", "DECISION", "TOP_BIT", "RESULT", "OFFLINE")
_LAST = ("RERANDOMISED", "RESULT")


def messages() -> list[dict[str, Any]]:
    """Every kind with every change that it can have."""
    entries = []
    for kind, (file, name) in SHOWN_BY.items():
        changes = dict(CHANGES)
        if kind in _PADDED:
            changes["padding_bit"] = "MessageValueError"
        for change, error in changes.items():
            if change == "sent_twice" and kind in _LAST:
                continue  # nothing is due after it, so nobody reads the second one
            entries.append(
                {
                    "name": f"message_bad_{kind.lower()}_{change}",
                    "file": file,
                    "case": name,
                    "kind": kind,
                    "change": change,
                    "error": error,
                }
            )
    return entries


def changed(frames: list[Frame], kind: Kind, change: str) -> list[Frame]:
    """The frames with one change at the first frame of a kind."""
    position = next(i for i, frame in enumerate(frames) if frame.kind is kind)
    frame = frames[position]
    session, gate, block, payload = frame.session, frame.gate, frame.block, bytes(frame.payload)
    if change == "sent_twice":
        return [*frames[: position + 1], frame, *frames[position + 1 :]]
    if change == "dropped_byte":
        payload = payload[:-1]
    elif change == "added_byte":
        payload += b"\x00"
    elif change == "empty":
        payload = b""
    elif change == "padding_bit":
        payload = payload[:-1] + bytes([payload[-1] | 0x80])
    elif change == "other_session":
        session = bytes([session[0] ^ 1]) + session[1:]
    elif change == "next_gate":
        gate += 1
    elif change == "next_block":
        block += 1
    elif change == "other_kind":
        kind = Kind.DONE
    else:
        raise ValueError(change)
    return [*frames[:position], Frame(session, gate, kind, block, payload), *frames[position + 1 :]]


@dataclass
class Replay:
    """A channel whose peer has already said everything; what is sent is kept."""

    frames: list[Frame]
    counters: Counters = field(default_factory=Counters)
    sent: list[Frame] = field(default_factory=list)

    def send(self, frame: Frame) -> None:
        self.sent.append(
            Frame(frame.session, frame.gate, frame.kind, frame.block, bytes(frame.payload))
        )

    def receive(self, more: bool = False) -> Frame:
        if not self.frames:
            raise ConnectionLostError("the recording has ended")
        return self.frames.pop(0)

    def close(self, error: RadiopaqueError | None = None) -> None:
        self.frames.clear()
