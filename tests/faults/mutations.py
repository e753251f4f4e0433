"""Every field of every message with what a change of it is refused, and ways to change them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from data_owner import Client
from radiopaque.errors import (
    AccessError,
    MessageOrderError,
    MessageValueError,
    PlanDigestError,
    ProtocolError,
    RadiopaqueError,
    RestoredLedgerError,
    UnknownModelError,
    UnknownSessionError,
)
from radiopaque.prg import new_id
from radiopaque.transport.channel import Channel
from radiopaque.wire.frames import Frame, Kind
from tests.e2e.parties import until
from tests.faults.hand import Hand
from tests.faults.inside import Inside
from tests.faults.test_messages import changed

Fault = type[RadiopaqueError] | None
"""What a changed field is refused with; None where it is its sender's own affair."""

RESERVE: dict[str, Fault] = {
    "session": UnknownSessionError,
    "plan_digest": AccessError,
    "artefact": AccessError,
    "key_d": None,
    "epoch": None,
}
HEADER: dict[str, Fault] = {
    "session": MessageOrderError,
    "plan_digest": PlanDigestError,
    "artefact": UnknownModelError,
    "binding": PlanDigestError,
}
DEAL: dict[str, Fault] = {
    "session": UnknownSessionError,
    "artefact": UnknownModelError,
    "key_o": None,
}
REGISTER: dict[str, Fault] = {
    "plan": PlanDigestError,
    "plan_digest": PlanDigestError,
    "artefact": None,
    "key_b": AccessError,
}
FETCH_PLAN: dict[str, Fault] = {"name": UnknownModelError, "version": UnknownModelError}
OFFER: dict[str, Fault] = {
    "plan": PlanDigestError,
    "plan_digest": PlanDigestError,
    "artefact": UnknownModelError,
    "weights_digest": PlanDigestError,
    "name": MessageValueError,
    "version": None,
}
CHUNK: dict[str, Fault] = {"offset": MessageOrderError, "data": PlanDigestError}
ENTRY: dict[str, Fault] = dict.fromkeys(("name", "version", "plan_digest", "artefact"))
PREPARED: dict[str, Fault] = dict.fromkeys(
    (
        "crypto_provider_to_model_owner_bytes",
        "model_owner_to_crypto_provider_bytes",
        "dealer_seconds",
    )
)
TABLES: dict[str, dict[str, Fault]] = {
    "ReserveRequest": RESERVE,
    "PrepareHeader": HEADER,
    "DealRequest": DEAL,
    "RegisterRequest": REGISTER,
    "FetchPlanRequest": FETCH_PLAN,
    "FetchMaskedWeightsRequest": {"artefact": UnknownModelError},
    "FetchPlanReply": OFFER,
    "Chunk": CHUNK,
    "ModelEntry": ENTRY,
    "PrepareReply": PREPARED,
    "ReserveReply": {"mark": RestoredLedgerError},
    # messages of these: their fields are those of other lines
    "PrepareRequest": {"header": MessageOrderError, "frame": MessageOrderError},
    "ListModelsReply": {"models": None},
    # every bit of it: test_every_bit_of_a_frame
    "Frame": dict.fromkeys(("session", "gate", "kind", "block", "payload"), ProtocolError),
}


REPLIES = {
    "FetchPlan": OFFER,
    "FetchMaskedWeights": CHUNK,
    "ListModels": ENTRY,
    "Prepare": PREPARED,
}


def other(value: Any) -> Any:
    """Another value of the same length and type."""
    if isinstance(value, bytes):
        return bytes([value[0] ^ 1]) + value[1:]
    return value + ("x" if isinstance(value, str) else 1)


def outcome(call: Callable[[], object]) -> RadiopaqueError | None:
    """How something ended that may go wrong, but in a typed way alone."""
    found = None
    try:
        call()
    except RadiopaqueError as error:
        found = error
    assert type(found) is not RadiopaqueError, found
    return found


def lengths(value: bytes) -> list[bytes]:
    return [b"", value[:-1], value + b"\0"]


class Meddled:
    """A channel on which the first frame of a kind is replaced, in either direction."""

    def __init__(self, channel: Channel, kind: Kind, change: Callable[[Meddled, Frame], Frame]):
        self._channel = channel
        self._kind: Kind | None = kind
        self._change = change
        self.counters = channel.counters
        self.sent: list[Frame] = []
        self.received: list[Frame] = []

    def send(self, frame: Frame) -> None:
        frame = changed(frame)
        if frame.kind is self._kind:
            self._kind = None
            frame = self._change(self, frame)
        self._channel.send(frame)
        self.sent.append(frame)

    def receive(self, more: bool = False) -> Frame:
        self.received.append(changed(self._channel.receive()))
        return self.received[-1]

    def close(self, error: RadiopaqueError | None = None) -> None:
        self._channel.close(error)


def bit_of_payload(place: float) -> Callable[[Meddled, Frame], Frame]:
    def change(_: Meddled, frame: Frame) -> Frame:
        data = bytearray(frame.payload)
        bit = int(place * 8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        return changed(frame, payload=bytes(data))

    return change


FROM_CLINIC = (Kind.IMAGE, Kind.SELECTION, Kind.RERANDOMISED)
FROM_OWNER = (Kind.READY, Kind.TOP_BIT, Kind.OPENING, Kind.DECISION, Kind.RESULT)


def ways(live: Hand) -> dict[str, Callable[[Meddled, Frame], Frame]]:
    """Right in itself, and wrong where it stands."""
    return {
        "spliced": lambda _, frame: changed(frame, session=live.session),
        "reflected": lambda channel, frame: (
            channel.received[-1] if channel.received else changed(frame, kind=Kind.READY)
        ),
        "replayed": lambda channel, frame: (
            channel.sent[-1] if channel.sent else changed(frame, kind=Kind.START)
        ),
        "of the next gate": lambda _, frame: changed(frame, gate=frame.gate + 1),
        "of another block": lambda _, frame: changed(frame, block=1),
        "cut": lambda _, frame: changed(frame, payload=bytes(frame.payload)[:-1]),
        "padded": lambda _, frame: changed(frame, payload=bytes(frame.payload) + b"\0"),
    }


def meddling(kind: Kind, change: Callable[[Meddled, Frame], Frame]) -> Callable[..., None]:
    return lambda honest, channel, call: honest(Meddled(channel, kind, change), call)


def answering(change: Callable[[Any], None]) -> Callable[..., Any]:
    """A method whose reply is changed in place."""

    def answer(honest: Any, request: Any, call: Any) -> Any:
        reply = honest(request, call)
        change(reply)
        return reply

    return answer


def replacing(field: str, change: Callable[[Any], Any] = other) -> Callable[[Any], None]:
    return lambda message: setattr(message, field, change(getattr(message, field)))


def at(start: int) -> Callable[[bytes], bytes]:
    """A mark with another epoch, another epoch of the peer, or another session."""
    return lambda mark: mark[:start] + other(mark[start:])


AUDITED: dict[str, Callable[[Frame], Frame]] = {
    "session": lambda frame: changed(frame, session=new_id()),
    "gate": lambda frame: changed(frame, gate=1),
    "kind": lambda frame: changed(frame, kind=Kind.IMAGE),
    "block": lambda frame: changed(frame, block=1),
    "payload": lambda frame: changed(frame, payload=bytes(frame.payload) + b"\0"),
}


def assert_burnt(inside: Inside, session: bytes) -> None:
    until(lambda: inside.owner.sessions()[session] == ("BURNT", False))


def assert_right(client: Client, hand: Hand) -> None:
    images = hand.network.images(4)
    value, bound = hand.network.plaintext(images)
    assert (np.abs(client.infer_tensor(images).outputs - value) <= bound).all()
