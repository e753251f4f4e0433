"""A clinic that deviates as it likes hears nothing about the weights before its result.

docs/protocol.md, section 10.4: what the model owner says is uniform, whatever the data owner sends;
only the result depends on the weights, in a way that such a clinic steers. Layers are cut into many
bands, and every frame of a clinic here may depend on every frame that it has heard before.

False alarms: as in :mod:`tests.protocol.chisquare`, which counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from radiopaque.engine import data_owner
from radiopaque.graph import bands
from radiopaque.graph.weights import Weights
from radiopaque.kernels.bits import pack
from radiopaque.prg import SecretKey
from radiopaque.transport.channel import Channel
from radiopaque.wire.frames import Frame, Kind
from tests.protocol import chisquare, fields, sessions, simulator
from tests.protocol.banded import across_bands, conversation, due, named, whole
from tests.protocol.fields import Field
from tests.protocol.network import images, small_plan, small_weights
from tests.protocol.sessions import Session, run_session
from tests.protocol.vendors import Choice, adaptive, say

PLANS = {32: small_plan(32), 64: small_plan(64)}


@pytest.fixture(autouse=True)
def many_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 bands in the first layer."""
    monkeypatch.setattr(bands, "BLOCK_BYTES", 1 << 10)


def asking(choice: Choice) -> Callable[[Session, Channel], None]:
    """A data owner that says what ``choice`` makes of it."""
    return partial(say, "data-owner", choice)


def without_deltas(session: Session) -> sessions.Serve:
    """An honest vendor whose clinic has sent zeros for all deltas and re-masks."""
    session.offline = [replace(one, payload=bytes(len(one.payload))) for one in session.offline]
    return sessions.honest(session)


class Erring:
    """A channel with an error of the clinic's choice in everything that it sends."""

    def __init__(self, channel: Channel, session: Session) -> None:
        self.counters = channel.counters
        self.receive, self.close = channel.receive, channel.close
        self._channel = channel
        self._turns = {turn.name: turn for turn in conversation(session.plan)}

    def send(self, frame: Frame) -> None:
        turn = self._turns[frame.gate, frame.kind, frame.block]
        said = np.frombuffer(frame.payload, np.uint8)
        if frame.kind is Kind.SELECTION:
            decisions = np.full(turn.count, 1 << turn.width - 1, np.uint16)
            said = said ^ pack(decisions, turn.width)
        else:
            word = np.dtype(f"<u{turn.width // 8}")
            said = (said.view(word) + word.type(3)).view(np.uint8)
        self._channel.send(turn.frame(frame.session, bytes(said)))


def erring(session: Session, channel: Channel) -> None:
    """Shifts every value by three units, and flips every decision."""
    key = data_owner.SessionKey(session.artefact.id, session.session, SecretKey(session.key_d))
    run = data_owner.DataOwnerRun(session.plan, key, session.output_mask)
    run.infer(images()["black"], Erring(channel, session))


Clinic = Callable[[Session, Channel], None]
CLINICS: dict[str, Clinic] = {
    "zeros": asking(lambda turn, heard: b""),
    "ones": asking(lambda turn, heard: b"\xff" * turn.size),
    "all that it has heard": asking(adaptive),
    "the vendor's words back": asking(
        lambda turn, heard: bytes(heard[-1].payload) * (1 + turn.size) if heard else b""
    ),
    "errors": erring,
}


def weights(name: str, ring_bits: int) -> Weights:
    found = small_weights(ring_bits)
    if name == "none":
        kept = (found.linear, found.constants)
        return Weights(*({gate: np.zeros_like(one) for gate, one in some.items()} for some in kept))
    return found


def run(clinic: Clinic, name: str, ring_bits: int = 32) -> Session:
    plan, black = PLANS[ring_bits], images()["black"]
    deltas = sessions.honest if clinic is erring else without_deltas
    session = run_session(plan, weights(name, ring_bits), black, deltas, None, clinic)
    assert named(session.to_data_owner) == due(conversation(plan), "data-owner")
    return session


def heard(session: Session) -> list[Field]:
    """All that the clinic hears before its result, and what it can add to it."""
    plan, joined = session.plan, whole(session)
    before = [frame for frame in joined.to_data_owner if frame.kind is not Kind.RESULT]
    found = [one for one in fields.data_owner_fields(joined) if one.name != "masked result"]
    return list(across_bands(plan, [*found, *fields.byte_fields(plan, before)]))


def views(clinic: Clinic, ring_bits: int = 32) -> chisquare.Views:
    return {
        name: [heard(run(clinic, name, ring_bits)) for _ in range(2)] for name in ("some", "none")
    }


@pytest.mark.parametrize(
    ("name", "ring_bits"), [*((name, 32) for name in CLINICS), ("all that it has heard", 64)]
)
def test_what_a_clinic_hears_before_its_result_is_uniform(name: str, ring_bits: int) -> None:
    assert chisquare.alarms(chisquare.examine(views(CLINICS[name], ring_bits))) == []


@pytest.mark.parametrize("name", ["all that it has heard", "errors"])
def test_when_the_vendor_speaks_follows_from_the_plan(name: str) -> None:
    session = run(CLINICS[name], "some")
    worked = simulator.work_of_model_owner(session, weights("some", 32))
    assert worked == simulator.work_without_weights(PLANS[32])


@pytest.mark.parametrize(
    ("role", "quantity"),
    [
        ("model-owner", "opening"),
        ("model-owner", "selection"),
        ("model-owner", "decision"),
        ("artefact", "weights"),
    ],
)
def test_without_a_pad_it_would_not_be(role: str, quantity: str) -> None:
    with sessions.left_out(role, quantity):
        found = chisquare.examine(views(erring))
    assert any(finding.alarm for finding in found)
