"""A dealer that lies tells nobody anything: docs/protocol.md, section 10.3.

What no honest dealer can send is refused while there is no image yet. Wrong corrections change
results, and no message's length, place or distribution. Layers are cut into many bands.

False alarms: as in :mod:`tests.protocol.chisquare`, which counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from radiopaque.engine.material import RegionReader
from radiopaque.errors import MessageOrderError, RadiopaqueError
from radiopaque.graph import bands
from radiopaque.wire.frames import Kind
from tests.protocol import chisquare, fields, sessions
from tests.protocol.banded import across_bands, named, whole
from tests.protocol.fields import Field
from tests.protocol.network import images, small_plan, small_weights
from tests.protocol.sessions import Session, run_session
from tests.protocol.vendors import WRONG, Vendor, Wrong, forgiving

NOTICED = (AssertionError, pytest.fail.Exception)
PLAN = small_plan()


@pytest.fixture(autouse=True)
def many_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 bands in the first layer."""
    monkeypatch.setattr(bands, "BLOCK_BYTES", 1 << 10)


def run(
    vendor: Vendor | None = None, image: str = "x-ray", again: Session | None = None
) -> Session:
    return run_session(PLAN, small_weights(), images()[image], vendor, again)


# --- what no honest dealer can send -------------------------------------------------------------


def after(session: Session, count: int) -> RegionReader:
    """The model owner, having taken so many frames."""
    reader = RegionReader(PLAN, session.session, Kind.CORRECTION)
    for frame in session.corrections[:count]:
        reader.accept(frame)
    return reader


def check_refused(session: Session, wrong: Wrong, expected: type[RadiopaqueError]) -> None:
    for place in range(len(session.corrections)):
        with pytest.raises(MessageOrderError):
            after(session, place).finish()
        frame = wrong(session.corrections, place)
        if frame is not None:
            with pytest.raises(expected):
                after(session, place).accept(frame)
    complete = after(session, len(session.corrections))
    complete.finish()
    with pytest.raises(MessageOrderError):
        complete.accept(session.corrections[-1])


@pytest.mark.parametrize("name", WRONG)
def test_what_no_honest_dealer_sends_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = run()
    check_refused(session, *WRONG[name])
    monkeypatch.setattr("radiopaque.engine.material.accept", forgiving)
    with pytest.raises(NOTICED):
        check_refused(session, *WRONG[name])


# --- wrong corrections --------------------------------------------------------------------------


def lying(change: Callable[[Session], list[bytes]]) -> Vendor:
    """An honest vendor whose dealer sent these payloads instead of the corrections."""

    def make(session: Session) -> sessions.Serve:
        changed = zip(session.corrections, change(session), strict=True)
        session.corrections = [replace(frame, payload=payload) for frame, payload in changed]
        return sessions.honest(session)

    return make


def each(change: Callable[[bytes], bytes]) -> Callable[[Session], list[bytes]]:
    return lambda session: [change(bytes(frame.payload)) for frame in session.corrections]


LIES: dict[str, Callable[[Session], list[bytes]]] = {
    "zeros": each(lambda payload: bytes(len(payload))),
    "ones": each(lambda payload: b"\xff" * len(payload)),
    "one bit in each": each(lambda payload: payload[:2] + bytes([payload[2] ^ 16]) + payload[3:]),
    "in another order": each(lambda payload: payload[::-1]),
    "another session's": lambda session: [bytes(frame.payload) for frame in run().corrections],
}


def said_by_the_data_owner(session: Session) -> list[Field]:
    joined = whole(session)
    return [
        *fields.byte_fields(PLAN, joined.offline),
        *fields.byte_fields(PLAN, joined.to_model_owner),
    ]


def heard_by_the_data_owner(session: Session) -> list[Field]:
    joined = whole(session)
    found = [*fields.data_owner_fields(joined)]
    found += fields.byte_fields(PLAN, joined.to_data_owner)
    return list(across_bands(PLAN, found))


SIDES = {
    "said by the data owner": said_by_the_data_owner,
    "heard by the data owner": heard_by_the_data_owner,
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", LIES)
def test_wrong_corrections_tell_nobody_anything(name: str, side: str) -> None:
    views = {
        image: [SIDES[side](run(lying(LIES[name]), image)) for _ in range(2)]
        for image in ("black", "noise")
    }
    assert chisquare.alarms(chisquare.examine(views)) == []


@pytest.mark.parametrize(
    ("side", "role", "quantity"),
    [
        ("said by the data owner", "data-owner", "mask"),
        ("heard by the data owner", "model-owner", "opening"),
        ("heard by the data owner", "model-owner", "decision"),
    ],
)
def test_without_a_pad_they_would(side: str, role: str, quantity: str) -> None:
    liar = lying(LIES["one bit in each"])
    with sessions.left_out(role, quantity):
        views = {
            image: [SIDES[side](run(liar, image)) for _ in range(2)] for image in ("black", "x-ray")
        }
    assert any(finding.alarm for finding in chisquare.examine(views))


@pytest.mark.parametrize("name", LIES)
def test_wrong_corrections_change_results_alone(name: str) -> None:
    honest = run()
    other = run(lying(LIES[name]), again=honest)
    assert other.corrections != honest.corrections
    assert not np.array_equal(other.outputs, honest.outputs)
    assert other.offline == honest.offline
    assert named(other.to_model_owner) == named(honest.to_model_owner)
    assert named(other.to_data_owner) == named(honest.to_data_owner)
