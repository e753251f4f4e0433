"""Sessions under observation: all that each party receives, honest or with one thing broken."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from radiopaque.engine import artefact as artefacts
from radiopaque.engine import crypto_provider, data_owner, model_owner
from radiopaque.engine.material import RegionReader, assemble
from radiopaque.errors import ConnectionLostError, RadiopaqueError
from radiopaque.gates.base import Raw
from radiopaque.graph import plan as p
from radiopaque.graph.weights import Weights
from radiopaque.kernels.bits import packed_size
from radiopaque.prg import SecretKey, Streams, new_id
from radiopaque.transport.channel import Channel, Counters
from radiopaque.transport.memory import connect
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.plans import encode_plan

Pads = dict[tuple[int, str], NDArray[np.unsignedinteger]]
Serve = Callable[[Channel], None]


class Recorder:
    """A channel that keeps a copy of what is sent and received."""

    def __init__(self, inner: Channel) -> None:
        self.counters = inner.counters
        self.sent: list[Frame] = []
        self.received: list[Frame] = []
        self._inner = inner

    def send(self, frame: Frame) -> None:
        copy = Frame(frame.session, frame.gate, frame.kind, frame.block, bytes(frame.payload))
        self.sent.append(copy)
        self._inner.send(copy)

    def receive(self, more: bool = False) -> Frame:
        self.received.append(self._inner.receive())
        return self.received[-1]

    def close(self, error: RadiopaqueError | None = None) -> None:
        self._inner.close(error)


class Replay:
    """A peer that says what it was given, whatever it hears."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        self.counters = Counters()
        self._frames = iter(frames)

    def send(self, frame: Frame) -> None:
        pass

    def receive(self, more: bool = False) -> Frame:
        frame = next(self._frames, None)
        if frame is None:
            raise ConnectionLostError("the recording is over")
        return frame

    def close(self, error: RadiopaqueError | None = None) -> None:
        pass


@dataclass
class Session:
    """One session as an all-seeing observer has it; each party's view is a part."""

    plan: p.Plan
    model: model_owner.Model
    artefact: artefacts.ArtefactKey
    key_d: bytes = field(repr=False)
    key_o: bytes = field(repr=False)
    session: bytes
    masked_weights: bytes = field(repr=False)
    corrections: list[Frame]
    offline: list[Frame]
    to_model_owner: list[Frame]
    to_data_owner: list[Frame]
    output_mask: NDArray[np.unsignedinteger] = field(repr=False)
    outputs: NDArray[np.float64] = field(repr=False)

    def data_owner_streams(self) -> Streams:
        key = SecretKey(self.key_d)
        return Streams(key, self.artefact.id.plan_digest, self.session, "data-owner")

    def model_owner_streams(self) -> Streams:
        key = SecretKey(self.key_o)
        return Streams(key, self.artefact.id.plan_digest, self.session, "model-owner")


def run_session(
    plan: p.Plan,
    weights: Weights,
    image: NDArray[np.floating],
    deviation: Callable[[Session], Serve] | None = None,
    again: Session | None = None,
    asking: Callable[[Session, Channel], None] | None = None,
) -> Session:
    """A session with fresh keys, artefact included; ``deviation`` replaces the model owner.

    ``again`` reuses that session's keys and ids, which nothing outside tests may do; ``asking``
    replaces the data owner online.
    """
    key = artefacts.ArtefactKey.generate(p.plan_digest(encode_plan(plan)))
    key_d, key_o, session = SecretKey.generate(), SecretKey.generate(), new_id()
    if again is not None:
        key, session = again.artefact, again.session
        key_d, key_o = SecretKey(again.key_d), SecretKey(again.key_o)
    masked = artefacts.mask_weights(plan, weights, key)
    own = data_owner.SessionKey(key.id, session, key_d)
    message = data_owner.prepare(plan, own, artefacts.MaskedWeights.parse(plan, masked))
    result = Session(
        plan=plan,
        model=model_owner.Model(plan, weights),
        artefact=key,
        key_d=key_d.reveal(),
        key_o=key_o.reveal(),
        session=session,
        masked_weights=masked,
        corrections=deal(plan, key, session, key_d, key_o),
        offline=list(message.frames()),
        to_model_owner=[],
        to_data_owner=[],
        output_mask=message.output_mask,
        outputs=np.empty(0),
    )
    serve = (deviation or honest)(result)
    honest_clinic = data_owner.DataOwnerRun(plan, own, message.output_mask)
    channel = Recorder(connect(serve, 60.0))
    try:
        if asking is None:
            result.outputs = honest_clinic.infer(image, channel)
        else:
            asking(result, channel)
    finally:
        channel.close()
        result.to_model_owner, result.to_data_owner = channel.sent, channel.received
    return result


def honest(session: Session) -> Serve:
    """The model owner that follows the protocol."""
    return model_owner.ModelOwnerRun(
        session.model,
        session.artefact.id,
        session.session,
        SecretKey(session.key_o),
        material(session.plan, session.session, session.corrections, session.offline),
    ).run


def deal(
    plan: p.Plan, key: artefacts.ArtefactKey, session: bytes, key_d: SecretKey, key_o: SecretKey
) -> list[Frame]:
    """The crypto provider's corrections."""
    maps = artefacts.weight_mask_maps(plan, key)
    inputs = crypto_provider.DealInputs(plan, key.id, session, key_d, key_o, maps)
    return list(crypto_provider.deal(inputs))


def material(
    plan: p.Plan, session: bytes, corrections: Sequence[Frame], offline: Sequence[Frame]
) -> model_owner.Material:
    """Both offline messages as the model owner stores them."""

    def regions(kind: Kind, frames: Sequence[Frame]) -> dict[int, Raw]:
        reader = RegionReader(plan, session, kind)
        found = assemble(plan, kind, (reader.accept(frame) for frame in frames))
        reader.finish()
        return found

    return model_owner.Material(
        regions(Kind.CORRECTION, corrections).items(), regions(Kind.OFFLINE, offline).items()
    )


@dataclass(frozen=True)
class Due:
    """A message that the plan makes due: ``count`` fields of ``width`` bits, packed."""

    receiver: str
    gate: int
    kind: Kind
    count: int
    width: int

    def random_frame(self, session: bytes) -> Frame:
        """This message as a simulator makes it: uniform in its space."""
        size = packed_size(self.count, self.width)
        payload = bytearray(secrets.token_bytes(size))
        spare = 8 * size - self.count * self.width
        payload[-1] >>= spare
        return Frame(session, self.gate, self.kind, 0, bytes(payload))


def schedule(plan: p.Plan) -> Iterator[Due]:
    """Every message of a session in plan order, from the plan alone (values of one block each).

    Written against docs/protocol.md, not against the gates' code.
    """
    k = plan.ring_bits
    o, d = "model-owner", "data-owner"
    for number, step in enumerate(plan.steps):
        gate, size = step.gate, step.size
        if isinstance(gate, p.Input):
            yield Due(o, number, Kind.IMAGE, size, k)
        elif isinstance(gate, p.LINEAR_GATES):
            yield Due(o, number, Kind.CORRECTION, size, k)
        elif isinstance(gate, p.Remask):
            yield Due(o, number, Kind.OFFLINE, size, k)
        elif isinstance(gate, p.Truncate):
            yield Due(o, number, Kind.CORRECTION, size, 2 * k)
            yield Due(o, number, Kind.OFFLINE, size, gate.opened_bits)
            yield Due(d, number, Kind.TOP_BIT, size, 1)
            yield Due(o, number, Kind.RERANDOMISED, size, k)
        elif isinstance(gate, p.Relu):
            n = gate.opened_bits - 1 - gate.shift
            index = {18: 5, 24: 7, 30: 9}[n]
            yield Due(o, number, Kind.CORRECTION, size, 64 * (n // 6) + 2**index + 5 * k)
            yield Due(o, number, Kind.OFFLINE, size, gate.opened_bits)
            yield Due(d, number, Kind.OPENING, size, n + 1 + index)
            yield Due(o, number, Kind.SELECTION, size, index + 1)
            yield Due(d, number, Kind.DECISION, size, 1)
            yield Due(o, number, Kind.RERANDOMISED, size, k)
        elif isinstance(gate, p.Output):
            yield Due(d, number, Kind.RESULT, size, gate.bits)


def deviating(payload: Callable[[Due, bytes], bytes]) -> Callable[[Session], Serve]:
    """A model owner that sends ``payload(due, last payload heard)`` instead of what is due."""

    def make(session: Session) -> Serve:
        def serve(channel: Channel) -> None:
            heard = b""
            for due in schedule(session.plan):
                if due.kind in (Kind.CORRECTION, Kind.OFFLINE):
                    continue
                if due.receiver == "model-owner":
                    heard = bytes(channel.receive().payload)
                    continue
                size = packed_size(due.count, due.width)
                data = bytearray(payload(due, heard)[:size].ljust(size, b"\0"))
                data[-1] &= 0xFF >> (8 * size - due.count * due.width)
                channel.send(Frame(session.session, due.gate, due.kind, 0, bytes(data)))

        return serve

    return make


def substituted(
    monkeypatch: pytest.MonkeyPatch,
    role: str,
    words: Callable[..., NDArray[np.unsignedinteger] | None],
) -> None:
    """Let ``words(streams, original, gate, quantity, shape, dtype)`` stand in for a role's streams.

    Where it gives None the stream stays as it is.
    """
    original = Streams.words

    def patched(
        self: Streams,
        gate: int,
        quantity: str,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        out: NDArray[np.unsignedinteger] | None = None,
    ) -> NDArray[np.unsignedinteger]:
        found = None
        if self._role == role:
            found = words(self, original, gate, quantity, shape, dtype)
        if found is None:
            return original(self, gate, quantity, shape, dtype, out)
        return found if out is None else into(out, found)

    monkeypatch.setattr(Streams, "words", patched)


def into(
    out: NDArray[np.unsignedinteger], found: NDArray[np.unsignedinteger]
) -> NDArray[np.unsignedinteger]:
    """A stand-in for a stream where it is wanted."""
    out[...] = found.reshape(out.shape)
    return out


def watched(monkeypatch: pytest.MonkeyPatch, role: str, see: Callable[[int, str], None]) -> None:
    """Report the (gate, quantity) of every stream of a role that is drawn."""

    def look(self: Streams, original: object, gate: int, name: str, *_: object) -> None:
        see(gate, name)

    substituted(monkeypatch, role, look)


@contextmanager
def left_out(role: str, quantity: str) -> Iterator[None]:
    """A masking quantity is zero."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        substituted(
            monkeypatch,
            role,
            lambda self, original, gate, name, shape, dtype: (
                np.zeros(shape, np.dtype(dtype)) if name == quantity else None
            ),
        )
        yield


@contextmanager
def shared_by_gates(role: str, quantity: str) -> Iterator[None]:
    """All gates draw a masking quantity from one stream: the gate id is left out of its name."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        substituted(
            monkeypatch,
            role,
            lambda self, original, gate, name, shape, dtype: (
                original(self, 0, name, shape, dtype) if name == quantity else None
            ),
        )
        yield


@contextmanager
def shared_by_sessions(role: str, quantity: str) -> Iterator[None]:
    """All sessions (or artefacts) draw a masking quantity from the same streams."""
    fixed = Streams(SecretKey(bytes(32)), bytes(32), bytes(16), role)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as monkeypatch:
        substituted(
            monkeypatch,
            role,
            lambda self, original, gate, name, shape, dtype: (
                original(fixed, gate, name, shape, dtype) if name == quantity else None
            ),
        )
        yield


@contextmanager
def given_pads(pads: Pads) -> Iterator[None]:
    """The data owner's streams are these; asking for any other is an error."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        substituted(
            monkeypatch,
            "data-owner",
            lambda self, original, gate, name, shape, dtype: (
                pads[gate, name].astype(dtype).reshape(shape)
            ),
        )
        yield
