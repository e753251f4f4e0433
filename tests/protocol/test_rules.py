"""The rules of messages, each with a breach that its check notices.

Rules 2, 3, 7 and 9 of docs/protocol.md, section 9. What the parties' ledgers add (once means
once, also after a crash) is tested with the parties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from radiopaque.engine import artefact as artefacts
from radiopaque.engine import data_owner, model_owner
from radiopaque.engine.material import RegionReader
from radiopaque.errors import (
    ConnectionLostError,
    MessageOrderError,
    MessageSizeError,
    RadiopaqueError,
    SessionStateError,
)
from radiopaque.gates.base import Answering, Site
from radiopaque.gates.ends import OutputGate
from radiopaque.graph.bands import Band
from radiopaque.graph.weights import Weights
from radiopaque.prg import SecretKey
from radiopaque.ring import RingArray
from radiopaque.transport import link
from radiopaque.transport.channel import Channel
from radiopaque.wire.frames import Frame, Kind
from tests.protocol import fields, sessions
from tests.protocol.network import images, small_plan, small_weights
from tests.protocol.sessions import Recorder, Replay, Session, run_session

ROOT = Path(__file__).parents[2]
NOTICED = (AssertionError, pytest.fail.Exception)
PLAN = small_plan()
IMAGE = images()["noise"]


def run(
    again: Session | None = None,
    deviation: Callable[[Session], sessions.Serve] | None = None,
) -> Session:
    return run_session(PLAN, small_weights(), IMAGE, deviation, again)


# --- offline messages: bound to one F, sent once ------------------------------------------------


def check_binding(bind: Callable[[artefacts.ArtefactId, bytes], bytes]) -> None:
    plan, artefact, weights = bytes(32), bytes(16), bytes(32)
    bindings = {
        bind(artefacts.ArtefactId(plan, artefact), weights),
        bind(artefacts.ArtefactId(b"\1" + plan[1:], artefact), weights),
        bind(artefacts.ArtefactId(plan, artefact[1:] + b"\1"), weights),
        bind(artefacts.ArtefactId(plan, artefact), weights[1:] + b"\1"),
    }
    assert len(bindings) == 4
    assert {len(binding) for binding in bindings} == {32}


def test_a_session_is_bound_to_plan_artefact_and_masked_weights() -> None:
    check_binding(artefacts.binding_digest)
    for forgetful in (
        lambda artefact, digest: artefacts.binding_digest(artefact, bytes(32)),
        lambda artefact, digest: artefacts.binding_digest(
            replace(artefact, artefact=bytes(16)), digest
        ),
        lambda artefact, digest: artefacts.binding_digest(
            replace(artefact, plan_digest=bytes(32)), digest
        ),
    ):
        with pytest.raises(NOTICED):
            check_binding(forgetful)


def test_two_offline_messages_of_one_session_would_unmask_the_image() -> None:
    session = run()
    other = np.frombuffer(session.masked_weights, np.uint32).copy()
    other[:54] += np.uint32(1)  # the stem: F_2 - F_1 is one everywhere
    messages = []
    for data in (session.masked_weights, other.tobytes()):
        key = data_owner.SessionKey(session.artefact.id, session.session, SecretKey(session.key_d))
        weights = artefacts.MaskedWeights.parse(PLAN, data)
        message = data_owner.prepare(PLAN, key, weights)
        repeated = data_owner.prepare(PLAN, key, weights)
        assert list(message.frames()) == list(repeated.frames())
        messages.append((weights, dict(message.regions())[2]))
    (first, one), (second, two) = messages
    assert first.digest != second.digest
    bindings = {artefacts.binding_digest(session.artefact.id, w.digest) for w in (first, second)}
    assert len(bindings) == 2
    size = PLAN.steps[2].size
    leak = fields.mod(fields.numbers(two, size, 24) - fields.numbers(one, size, 24), 24)
    mask = session.data_owner_streams().words(0, "mask", PLAN.steps[0].shape, np.uint32)
    ones = dict(small_weights().linear) | {1: np.ones((6, 1, 3, 3), np.uint32)}
    sums = model_owner.Model(PLAN, Weights(ones, small_weights().constants)).maps[1](mask)
    assert np.array_equal(leak, fields.mod(sums, 24))


@pytest.mark.parametrize("kind", [Kind.CORRECTION, Kind.OFFLINE])
def test_an_offline_message_is_taken_once_and_in_order(kind: Kind) -> None:
    session = run()
    frames = session.corrections if kind is Kind.CORRECTION else session.offline
    twice = RegionReader(PLAN, session.session, kind)
    twice.accept(frames[0])
    with pytest.raises(MessageOrderError):
        twice.accept(frames[0])
    again = RegionReader(PLAN, session.session, kind)
    for frame in frames:
        again.accept(frame)
    with pytest.raises(MessageOrderError):
        again.accept(frames[0])
    swapped = RegionReader(PLAN, session.session, kind)
    with pytest.raises(MessageOrderError):
        swapped.accept(frames[1])
    foreign = RegionReader(PLAN, bytes(16), kind)
    with pytest.raises(MessageOrderError):
        foreign.accept(frames[0])


# --- corrections stay with the model owner ------------------------------------------------------


def test_a_product_correction_would_give_the_weights_to_the_data_owner() -> None:
    session = run()
    gate = 19  # one weight a channel
    size, shape = PLAN.steps[gate].size, PLAN.steps[gate].shape
    seen = fields.payloads(session.corrections)
    d = session.data_owner_streams()
    mask = d.words(18, "mask", shape, np.uint32)
    share = d.words(gate, "product", shape, np.uint32)
    correction = fields.numbers(seen[gate, Kind.CORRECTION], size, 32).astype(np.uint32)
    product = correction.reshape(shape) + share
    odd = mask[0, :, :, :] & 1 == 1
    for channel in range(shape[1]):
        row, column = np.argwhere(odd[channel])[0]
        inverse = pow(int(mask[0, channel, row, column]), -1, 1 << 32)
        b = int(product[0, channel, row, column]) * inverse % (1 << 32)
        weights = dict(artefacts.weight_masks(PLAN, session.artefact))[gate]
        assert b == int(weights[0, channel, 0, 0])

    received = {frame.kind for frame in session.to_data_owner}
    assert received == {Kind.TOP_BIT, Kind.OPENING, Kind.DECISION, Kind.RESULT}
    first = session.to_data_owner[0]
    leak = next(f for f in session.corrections if f.gate == first.gate)
    sent = answers(session, [leak])
    assert {frame.kind for frame in sent} == {Kind.IMAGE}


# --- one answer per gate ------------------------------------------------------------------------


def answers(
    session: Session, heard: Sequence[Frame], error: type[Exception] = MessageOrderError
) -> list[Frame]:
    """What the data owner sends to a peer that says this, until it refuses to go on."""
    key = data_owner.SessionKey(session.artefact.id, session.session, SecretKey(session.key_d))
    asking = data_owner.DataOwnerRun(PLAN, key, session.output_mask)
    channel = Recorder(Replay(heard))
    with pytest.raises(RadiopaqueError) as refusal:
        asking.infer(IMAGE, channel)
    assert isinstance(refusal.value, error)
    before = len(channel.sent)
    with pytest.raises(SessionStateError):
        asking.infer(IMAGE, channel)
    assert len(channel.sent) == before
    return channel.sent


def check_one_answer_a_gate(session: Session) -> None:
    frames = session.to_data_owner
    for position, frame in enumerate(frames):
        if frame.kind is not Kind.OPENING:
            continue
        other = bytes(255 - byte for byte in bytes(frame.payload))
        again = [*frames[: position + 1], replace(frame, payload=other)]
        for heard in (again, [*again[:-1], frame], [*again, *frames[position + 1 :]]):
            sent = answers(session, heard)
            count = sum((f.gate, f.kind) == (frame.gate, Kind.SELECTION) for f in sent)
            assert count == 1
            assert not any((f.gate, f.kind) == (frame.gate, Kind.RERANDOMISED) for f in sent)


def test_each_gate_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    session = run()
    check_one_answer_a_gate(session)

    def forgiving(frame: Frame, own: bytes, gate: int, kind: Kind, block: int, size: int):  # type: ignore[no-untyped-def]
        return np.frombuffer(bytes(frame.payload)[:size].ljust(size, b"\0"), np.uint8)

    monkeypatch.setattr(link, "accept", forgiving)
    with pytest.raises(NOTICED):
        check_one_answer_a_gate(session)


def test_the_model_owner_too_answers_each_gate_once() -> None:
    session = run()
    frames = session.to_model_owner
    position, frame = next((i, f) for i, f in enumerate(frames) if f.kind is Kind.SELECTION)
    channel = Recorder(Replay([*frames[: position + 1], frame, *frames[position + 1 :]]))
    serving = sessions.honest(session)
    with pytest.raises(MessageOrderError):
        serving(channel)
    assert sum((f.gate, f.kind) == (frame.gate, Kind.DECISION) for f in channel.sent) == 1
    before = len(channel.sent)
    with pytest.raises(SessionStateError):
        serving(channel)
    assert len(channel.sent) == before


def test_messages_out_of_place_are_refused_before_they_are_answered() -> None:
    session = run()
    frames = session.to_data_owner
    for position, frame in enumerate(frames):
        moved = {
            "another gate's": replace(frame, gate=frame.gate + 1),
            "another block": replace(frame, block=1),
            "another session's": replace(frame, session=bytes(16)),
            "another kind": replace(frame, kind=Kind.CORRECTION),
        }
        due = sum(f.gate < frame.gate for f in session.to_model_owner) + (
            frame.kind is Kind.DECISION
        )
        for wrong in moved.values():
            assert len(answers(session, [*frames[:position], wrong])) == due
        for payload in (bytes(frame.payload)[:-1], bytes(frame.payload) + b"\0"):
            wrong = replace(frame, payload=payload)
            assert len(answers(session, [*frames[:position], wrong], MessageSizeError)) == due


# --- nothing that depends on the result goes back -----------------------------------------------


def check_the_result_stays_with_the_data_owner(session: Session) -> None:
    """An absurd result changes nothing of what the model owner hears."""
    for value in (b"\0", b"\xff"):

        def absurd(held: Session, value: bytes = value) -> sessions.Serve:
            def serve(channel: Channel) -> None:
                sessions.honest(held)(Altered(channel, value))
                with suppress(ConnectionLostError):
                    channel.receive()

            return serve

        other = run(session, absurd)
        assert not np.array_equal(other.outputs, session.outputs)
        assert other.to_model_owner == session.to_model_owner


class Altered(Recorder):
    """Sends a result of one byte's repetition."""

    def __init__(self, inner: Channel, value: bytes) -> None:
        super().__init__(inner)
        self._value = value

    def send(self, frame: Frame) -> None:
        if frame.kind is Kind.RESULT:
            frame = replace(frame, payload=self._value * len(frame.payload))
        super().send(frame)


def test_nothing_that_depends_on_the_result_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    session = run()
    check_the_result_stays_with_the_data_owner(session)
    answer = OutputGate.answer

    def complaining(
        self: OutputGate,
        context: Answering,
        site: Site,
        state: RingArray,
        band: Band,
        stage: int,
    ) -> None:
        answer(self, context, site, state, band, stage)
        if context.result is not None and np.ptp(context.result) > 1 << 29:
            context.link.send(site.number, Kind.DONE)

    monkeypatch.setattr(OutputGate, "answer", complaining)
    with pytest.raises(NOTICED):
        check_the_result_stays_with_the_data_owner(session)
