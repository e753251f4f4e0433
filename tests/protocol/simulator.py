"""Simulators: each makes a party's view from what the ideal functionality reveals to that party.

docs/protocol.md, section 10, as programs. A view is what a party hears, at which point, and what
its peer does before that.

* The model owner's is made from the public plan, against any model owner: that one runs as a black
  box, from its beginning to its end, once (:func:`for_model_owner`).
* The data owner's is made from the plan, its own image and key, and the bits that the functionality
  tells it (:func:`for_data_owner`).
* The crypto provider's is made from the public plan and from who asks for what when
  (:func:`for_crypto_provider`).

No simulator is given a secret of another party. Where the others' time is to be simulated, their
own programs are run on nothing: a black image, weights of zero.

**Timing classes.** Two messages are of one class when they leave after the same messages have come
in, and after the same operations on arrays of the same shapes with the same public numbers
(:class:`Watched`). That operations take a time that follows from these alone is a property of
kernels, which no test of seconds can show; docs/protocol.md, section 10.6, says what is known.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radiopaque.engine import artefact as artefacts
from radiopaque.engine import data_owner, model_owner
from radiopaque.errors import (
    ConnectionLostError,
    MessageOrderError,
    MessageSizeError,
    MessageValueError,
    RadiopaqueError,
)
from radiopaque.graph import plan as p
from radiopaque.graph.weights import Weights
from radiopaque.kernels.bits import pack
from radiopaque.kernels.cpu import CPU
from radiopaque.prg import ID_BYTES, KEY_BYTES, SecretKey, new_id
from radiopaque.ring import RingArray, ring_dtype
from radiopaque.transport.channel import Channel, Counters
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.plans import encode_plan
from radiopaque.wire.v1 import services_pb2 as pb
from tests.protocol import sessions
from tests.protocol.banded import Turn, conversation
from tests.protocol.sessions import Recorder, Replay, Session, schedule

Told = Callable[[RingArray], RingArray]
"""The functionality's answer to a data owner whose output mask is this: ring words whose low
``bits`` bits are told."""


# --- the model owner ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Vendor:
    """What a model owner brings: its model, and the keys that it made."""

    model: model_owner.Model
    artefact: artefacts.ArtefactKey
    key_o: bytes = field(repr=False)

    @classmethod
    def with_fresh_keys(cls, plan: p.Plan, weights: Weights) -> Vendor:
        key = artefacts.ArtefactKey.generate(p.plan_digest(encode_plan(plan)))
        return cls(model_owner.Model(plan, weights), key, secrets.token_bytes(KEY_BYTES))


class NoDataOwner:
    """The channel to a data owner that does not exist: it says something uniform when it is due.

    It ends the session where the real one does: at the first frame that is not the one due, or has
    another length, or bits behind its last field.
    """

    def __init__(self, plan: p.Plan, session: bytes) -> None:
        self.counters = Counters()
        self.said: list[Frame] = []
        self.heard: list[Frame] = []
        self.refusal: type[RadiopaqueError] | None = None
        self._session = session
        self._turns = deque(conversation(plan))
        self._waiting: deque[Frame] = deque()
        self._speak()

    def send(self, frame: Frame) -> None:
        if self.refusal is not None or not self._turns:
            raise ConnectionLostError("the peer has ended the stream")
        payload = bytes(frame.payload)
        self.heard.append(Frame(frame.session, frame.gate, frame.kind, frame.block, payload))
        self.refusal = refusal(self.heard[-1], self._session, self._turns.popleft())
        if self.refusal is None:
            self._speak()

    def receive(self, more: bool = False) -> Frame:
        if not self._waiting:
            raise ConnectionLostError("the peer has ended the stream")
        return self._waiting.popleft()

    def close(self, error: RadiopaqueError | None = None) -> None:
        pass

    def _speak(self) -> None:
        while self._turns and self._turns[0].receiver == "model-owner":
            self.said.append(self._turns.popleft().uniform(self._session))
            self._waiting.append(self.said[-1])


def refusal(frame: Frame, session: bytes, due: Turn) -> type[RadiopaqueError] | None:
    """Why a frame ends the session in which ``due`` is due."""
    if (frame.session, frame.gate, frame.kind, frame.block) != (session, *due.name):
        return MessageOrderError
    if len(frame.payload) != due.size:
        return MessageSizeError
    if frame.payload[-1] >> 8 - due.spare_bits:
        return MessageValueError
    return None


def for_model_owner(
    plan: p.Plan, own: Vendor, serving: Callable[[Session], sessions.Serve] = sessions.honest
) -> tuple[Session, type[RadiopaqueError] | None]:
    """The view of a model owner that does ``serving``, and why the session ended early if it did.

    ``plan`` is all that is used of what it hears: ``own`` is what it has itself.
    """
    session = new_id()
    uniform = [due.random_frame(session) for due in schedule(plan) if due.receiver == "model-owner"]
    view = Session(
        plan=plan,
        model=own.model,
        artefact=own.artefact,
        key_d=b"",
        key_o=own.key_o,
        session=session,
        masked_weights=b"",
        corrections=[frame for frame in uniform if frame.kind is Kind.CORRECTION],
        offline=[frame for frame in uniform if frame.kind is Kind.OFFLINE],
        to_model_owner=[],
        to_data_owner=[],
        output_mask=np.empty(0, ring_dtype(plan.ring_bits)),
        outputs=np.empty(0),
    )
    nobody = NoDataOwner(plan, session)
    with suppress(ConnectionLostError):
        serving(view)(nobody)
    view.to_model_owner, view.to_data_owner = nobody.said, nobody.heard
    return view, nobody.refusal


# --- the data owner -----------------------------------------------------------------------------


def for_data_owner(plan: p.Plan, image: NDArray[np.floating], told: Told) -> Session:
    """The data owner's view with this image, whose key and session id are its own fresh ones."""
    artefact = artefacts.ArtefactKey.generate(p.plan_digest(encode_plan(plan)))
    key_d, session = secrets.token_bytes(KEY_BYTES), new_id()
    masked = secrets.token_bytes(artefacts.masked_weights_size(plan))
    own = data_owner.SessionKey(artefact.id, session, SecretKey(key_d))
    message = data_owner.prepare(plan, own, artefacts.MaskedWeights.parse(plan, masked))
    offline = list(message.frames())
    result = told(message.output_mask).reshape(-1)
    heard = []
    for turn in conversation(plan):
        if turn.kind is Kind.RESULT:
            here, result = result[: turn.count], result[turn.count :]
            heard.append(turn.frame(session, bytes(pack(here, turn.width))))
        elif turn.receiver == "data-owner":
            heard.append(turn.uniform(session))
    channel = Recorder(Replay(heard))
    asking = data_owner.DataOwnerRun(plan, own, message.output_mask)
    outputs = asking.infer(image, channel)
    return Session(
        plan=plan,
        model=None,  # type: ignore[arg-type]
        artefact=artefact,
        key_d=key_d,
        key_o=b"",
        session=session,
        masked_weights=masked,
        corrections=[],
        offline=offline,
        to_model_owner=channel.sent,
        to_data_owner=channel.received,
        output_mask=message.output_mask,
        outputs=outputs,
    )


# --- the crypto provider ------------------------------------------------------------------------


Request = pb.RegisterRequest | pb.ReserveRequest | pb.DealRequest


def for_crypto_provider(plan: bytes, asked: Sequence[tuple[str, int]]) -> list[Request]:
    """All requests of one artefact and one clinic: (method, which session) in the order of time.

    Who asks when is what a crypto provider learns; everything else is uniform, or the public plan.
    """
    digest = hashlib.sha256(plan).digest()
    artefact, key_b = secrets.token_bytes(ID_BYTES), secrets.token_bytes(KEY_BYTES)
    epoch = secrets.token_bytes(ID_BYTES)
    session = {number: secrets.token_bytes(ID_BYTES) for _, number in asked}
    made: list[Request] = []
    for method, number in asked:
        key = secrets.token_bytes(KEY_BYTES)
        if method == "Register":
            request: Request = pb.RegisterRequest(
                plan=plan, plan_digest=digest, artefact=artefact, key_b=key_b
            )
        elif method == "Reserve":
            request = pb.ReserveRequest(
                session=session[number],
                plan_digest=digest,
                artefact=artefact,
                key_d=key,
                epoch=epoch,
            )
        else:
            request = pb.DealRequest(session=session[number], artefact=artefact, key_o=key)
        made.append(request)
    return made


# --- timing classes -----------------------------------------------------------------------------


Work = list[tuple[Any, ...]]
"""What a party does and says, in order: frames by name and length, operations by their shapes."""


class Watched:
    """The processor, which writes down what it is asked for: shapes and public numbers."""

    name = CPU.name

    def __init__(self, work: Work) -> None:
        self._work = work

    def __getattr__(self, operation: str) -> Any:
        function = getattr(CPU, operation)

        def asked(*arguments: Any, **more: Any) -> Any:
            self._work.append((operation, *map(_form, arguments), *map(_form, more.values())))
            found = function(*arguments, **more)
            return self._watched_map(found) if operation == "linear_map" else found

        return asked

    def _watched_map(self, linear: Callable[..., Any]) -> Callable[..., Any]:
        def asked(value: RingArray, rows: Any = None) -> Any:
            self._work.append(("linear", _form(value), rows))
            return linear(value, rows)

        return asked


def _form(argument: object) -> object:
    """What may influence how long an operation takes, none of it a secret's value."""
    if isinstance(argument, np.ndarray):
        return argument.shape, argument.dtype.str
    if isinstance(argument, bool | int | str):
        return argument
    if isinstance(argument, tuple | list):
        return tuple(map(_form, argument))
    return type(argument).__name__


class Listed:
    """A channel that enters what passes into the list of what is done."""

    def __init__(self, inner: Channel, work: Work) -> None:
        self.counters = inner.counters
        self._inner = inner
        self._work = work

    def send(self, frame: Frame) -> None:
        size = len(bytes(frame.payload))
        self._work.append(("send", frame.gate, frame.kind, frame.block, size))
        self._inner.send(frame)

    def receive(self, more: bool = False) -> Frame:
        frame = self._inner.receive(more)
        self._work.append(("receive", frame.gate, frame.kind, frame.block, len(frame.payload)))
        return frame

    def close(self, error: RadiopaqueError | None = None) -> None:
        self._inner.close(error)


def work_of_data_owner(session: Session, image: NDArray[np.floating]) -> Work:
    """What the data owner does when it hears this session's frames."""
    work: Work = []
    own = data_owner.SessionKey(session.artefact.id, session.session, SecretKey(session.key_d))
    device: Any = Watched(work)
    asking = data_owner.DataOwnerRun(session.plan, own, session.output_mask, device=device)
    with suppress(RadiopaqueError):
        asking.infer(image, Listed(Replay(session.to_data_owner), work))
    return work


def work_on_nothing(plan: p.Plan, heard: Sequence[Frame]) -> Work:
    """The same, simulated for a model owner that said ``heard``: a black image, a fresh key."""
    key = artefacts.ArtefactKey.generate(p.plan_digest(encode_plan(plan)))
    session = heard[0].session
    black = np.zeros(plan.input_step.shape)
    blank = Session(
        plan=plan,
        model=None,  # type: ignore[arg-type]
        artefact=key,
        key_d=secrets.token_bytes(KEY_BYTES),
        key_o=b"",
        session=session,
        masked_weights=b"",
        corrections=[],
        offline=[],
        to_model_owner=[],
        to_data_owner=list(heard),
        output_mask=np.zeros(plan.steps[-1].shape, ring_dtype(plan.ring_bits)),
        outputs=np.empty(0),
    )
    return work_of_data_owner(blank, black)


def work_of_model_owner(session: Session, weights: Weights) -> Work:
    """What the honest model owner with these weights does when it hears this session's frames."""
    work: Work = []
    device: Any = Watched(work)
    model = model_owner.Model(session.plan, weights, device)
    work.clear()  # the model is packed once, before any session
    run = model_owner.ModelOwnerRun(
        model,
        session.artefact.id,
        session.session,
        SecretKey(session.key_o),
        sessions.material(session.plan, session.session, session.corrections, session.offline),
    )
    run.run(Listed(Replay(session.to_model_owner), work))
    return work


def work_without_weights(plan: p.Plan) -> Work:
    """The same, simulated for a data owner: weights of zero, and uniform frames."""
    dtype = ring_dtype(plan.ring_bits)
    zeros = Weights(
        {gate: np.zeros(shape, dtype) for gate, shape in plan.weight_shapes()},
        {gate: np.zeros(shape, dtype) for gate, shape in plan.constant_shapes()},
    )
    view, _ = for_model_owner(plan, Vendor.with_fresh_keys(plan, zeros))
    return work_of_model_owner(view, zeros)


def frames_of(work: Work) -> Work:
    """The frames alone: each with how many others went before it."""
    return [step for step in work if step[0] in ("send", "receive")]
