"""Real views against simulated ones: values, lengths, order, timing classes, for each party.

A simulator is given what the ideal functionality reveals to the party and nothing else
(:mod:`tests.protocol.simulator`). Were a view to hold more, no simulator could make it alike, and
these tests would tell the two apart. Each of them is run on a real view that does hold more, too.

False alarms: as in :mod:`tests.protocol.chisquare`, which counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from data_owner import Client
from radiopaque.engine import data_owner
from radiopaque.errors import MessageSizeError, RadiopaqueError
from radiopaque.gates.base import Answering, Evaluating, Site
from radiopaque.gates.ends import InputGate
from radiopaque.gates.linear import LinearGate
from radiopaque.graph import bands
from radiopaque.graph.bands import Band
from radiopaque.prg import SecretKey
from radiopaque.ring import RingArray, signed
from radiopaque.wire.plans import encode_plan
from tests.e2e.networks import lungs
from tests.faults.inside import Inside, Lie, redealing
from tests.protocol import chisquare, fields, sessions, simulator, vendors
from tests.protocol.banded import (
    across_bands,
    at_the_model_owner,
    conversation,
    due,
    named,
    whole,
)
from tests.protocol.fields import Field
from tests.protocol.network import ideal_functionality, images, small_plan, small_weights
from tests.protocol.sessions import Session, run_session
from tests.protocol.simulator import Request, Vendor

NOTICED = (AssertionError, pytest.fail.Exception)
PLAN = small_plan()
RUNS = 4
BANDED = pytest.mark.usefixtures("block_bytes")
Ended = tuple[Session, type[RadiopaqueError] | None]


@pytest.fixture(params=[1 << 19, 1 << 10], ids=["one band", "many bands"])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "BLOCK_BYTES", request.param)


def real(image: str = "x-ray", vendor: vendors.Vendor = sessions.honest) -> Ended:
    """A session, and why it ended early if it did."""
    kept: list[Session] = []

    def keeping(session: Session) -> sessions.Serve:
        kept.append(session)
        return vendor(session)

    try:
        run_session(PLAN, small_weights(), images()[image], keeping)
    except RadiopaqueError as error:
        return kept[0], type(error)
    return kept[0], None


def simulated(vendor: vendors.Vendor = sessions.honest) -> Ended:
    own = Vendor.with_fresh_keys(PLAN, small_weights())
    return simulator.for_model_owner(PLAN, own, vendor)


def check_values(
    reading: Callable[[Session], Iterator[Field]],
    views: dict[str, list[Session]],
) -> None:
    """Each field is uniform in both kinds of views, and has one distribution in both."""
    found = {
        kind: [list(across_bands(PLAN, reading(whole(view)))) for view in some]
        for kind, some in views.items()
    }
    assert chisquare.alarms(chisquare.examine(found)) == []


# --- the model owner ----------------------------------------------------------------------------


VENDORS: dict[str, vendors.Vendor] = {
    "honest": sessions.honest,
    "adaptive": vendors.sending(vendors.adaptive),
    "echoing": vendors.sending(vendors.echoed),
}


def check_model_owner(image: str, vendor: vendors.Vendor) -> None:
    views = {
        "real": [real(image, vendor)[0] for _ in range(RUNS)],
        "simulated": [simulated(vendor)[0] for _ in range(RUNS)],
    }
    for part in ("corrections", "offline", "to_model_owner", "to_data_owner"):
        shapes = {tuple(named(getattr(v, part))) for some in views.values() for v in some}
        assert len(shapes) == 1
    check_values(fields.model_owner_view, views)


@BANDED
@pytest.mark.parametrize("name", VENDORS)
def test_a_model_owners_view_is_made_from_the_plan(name: str) -> None:
    check_model_owner("x-ray", VENDORS[name])


@pytest.mark.parametrize("quantity", ["mask", "opening", "products"])
def test_a_view_with_something_of_the_image_is_told_apart(quantity: str) -> None:
    with sessions.left_out("data-owner", quantity), pytest.raises(NOTICED):
        check_model_owner("black", sessions.honest)


def check_endings(count: int) -> None:
    """Simulated sessions with a vendor that stops at will end in the same places, as often."""
    turns = conversation(PLAN)
    names = [turn.name for turn in turns]
    places = []
    for view_of in (lambda: real("black", vendors.stopping), lambda: simulated(vendors.stopping)):
        ends = []
        for _ in range(count):
            view, refused = view_of()
            assert refused is MessageSizeError
            last = view.to_model_owner[-1]
            assert vendors.stops_at(last)
            end = names.index((last.gate, last.kind, last.block)) + 1
            assert named(view.to_model_owner) == due(turns[:end], "model-owner")
            asked = [*due(turns[: end + 1], "data-owner")]
            asked[-1] = (*asked[-1][:3], asked[-1][3] + 1)
            assert named(view.to_data_owner) == asked
            ends.append(end)
        places.append(ends)
    found = [chisquare.Finding("end", float(ks_2samp(*places).pvalue))]
    assert chisquare.alarms(found) == []


@pytest.fixture
def many_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "BLOCK_BYTES", 1 << 10)


@pytest.mark.usefixtures("many_bands")
def test_a_vendor_that_stops_when_it_likes_learns_nothing_by_it() -> None:
    check_endings(128)


@pytest.mark.usefixtures("many_bands")
def test_an_end_that_depends_on_the_image_is_noticed() -> None:
    masks = sessions.left_out("data-owner", "mask")
    shares = sessions.left_out("data-owner", "products")
    with masks, shares, pytest.raises(NOTICED):
        check_endings(64)


# --- the data owner -----------------------------------------------------------------------------


def simulated_data_owner(image: NDArray[np.float64]) -> tuple[Session, RingArray]:
    """A simulated view, and the functionality's result."""
    model = Vendor.with_fresh_keys(PLAN, small_weights()).model
    ideal = ideal_functionality(model, data_owner.encode_images(PLAN, image))
    position = PLAN.output_step.gate.position
    view = simulator.for_data_owner(PLAN, image, lambda mask: ideal - mask >> np.uint32(position))
    return view, ideal


def check_data_owner(image: str) -> None:
    made = [simulated_data_owner(images()[image]) for _ in range(RUNS)]
    views = {
        "real": [real(image)[0] for _ in range(RUNS)],
        "simulated": [view for view, _ in made],
    }
    for part in ("offline", "to_model_owner", "to_data_owner"):
        shapes = {tuple(named(getattr(v, part))) for some in views.values() for v in some}
        assert len(shapes) == 1
    assert len({len(v.masked_weights) for some in views.values() for v in some}) == 1
    check_values(fields.data_owner_view, views)
    unit = 1 / float(PLAN.output_step.scale)
    half = 2 ** (PLAN.output_step.gate.position - 1) * unit
    for view, ideal in made:
        np.testing.assert_allclose(view.outputs, signed(ideal, 32) * unit, rtol=0, atol=half)


@BANDED
@pytest.mark.parametrize("image", ["black", "x-ray"])
def test_a_data_owners_view_is_made_from_its_result(image: str) -> None:
    check_data_owner(image)


@pytest.mark.parametrize(
    ("role", "quantity"),
    [("model-owner", "opening"), ("model-owner", "decision"), ("artefact", "weights")],
)
def test_a_view_with_something_of_the_weights_is_told_apart(role: str, quantity: str) -> None:
    with sessions.left_out(role, quantity), pytest.raises(NOTICED):
        check_data_owner("black")


# --- timing classes -----------------------------------------------------------------------------


def check_time_of_data_owner(vendor: vendors.Vendor) -> None:
    """What the data owner does between two messages follows from the plan."""
    for image in images():
        session, _ = real(image, vendor)
        expected = simulator.work_on_nothing(PLAN, session.to_data_owner)
        assert simulator.work_of_data_owner(session, images()[image]) == expected
        said = [(step[0] == "receive", *step[1:]) for step in simulator.frames_of(expected)]
        assert said == [
            (turn.receiver == "data-owner", *turn.name, turn.size) for turn in conversation(PLAN)
        ]


@BANDED
@pytest.mark.parametrize("name", VENDORS)
def test_when_the_data_owner_speaks_follows_from_the_plan(name: str) -> None:
    check_time_of_data_owner(VENDORS[name])


def test_work_that_depends_on_the_image_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = InputGate.answer

    def thorough(
        self: InputGate, context: Answering, site: Site, state: Any, band: Band, stage: int
    ) -> None:
        if context.image.any():
            context.device.contiguous(context.image)
        answer(self, context, site, state, band, stage)

    monkeypatch.setattr(InputGate, "answer", thorough)
    with pytest.raises(NOTICED):
        check_time_of_data_owner(sessions.honest)


def check_time_of_model_owner(runs: int = 1) -> None:
    """What the model owner does between two messages follows from the plan, not from weights."""
    expected = simulator.work_without_weights(PLAN)
    for image in [*images()] * runs:
        session, _ = real(image)
        assert simulator.work_of_model_owner(session, small_weights()) == expected
    said = [(step[0] == "receive", *step[1:]) for step in simulator.frames_of(expected)]
    assert said == [
        (turn.receiver == "model-owner", *turn.name, turn.size) for turn in at_the_model_owner(PLAN)
    ]


@BANDED
def test_when_the_model_owner_speaks_follows_from_the_plan() -> None:
    check_time_of_model_owner()


def test_work_that_depends_on_values_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = LinearGate.evaluate

    def sparse(
        self: LinearGate, context: Evaluating, site: Site, state: Any, values: Any, rows: Any = None
    ) -> Any:
        if site.number == 14 and int(values[0].flat[0]) & 1:
            context.device.contiguous(values[0])
        return evaluate(self, context, site, state, values, rows)

    monkeypatch.setattr(LinearGate, "evaluate", sparse)
    with pytest.raises(NOTICED):
        check_time_of_model_owner(30)


# --- the crypto provider ------------------------------------------------------------------------


def method(request: Request) -> str:
    return type(request).__name__.removesuffix("Request")


class Asked:
    """What a crypto provider hears over the network while a clinic prepares and infers.

    ``calls``: (method, which session) in order.
    """

    def __init__(self, folder: Path, dealing: Lie | None = None) -> None:
        self.requests: list[Request] = []
        network = lungs()
        with Inside(folder, network) as inside:
            lies: dict[str, Lie | None] = {"Register": None, "Reserve": None, "Deal": dealing}
            inside.lies.update({name: self._noting(lie) for name, lie in lies.items()})
            with Client.from_config(inside.clinic()) as client:
                client.prepare(2)
                before = len(self.requests)
                for image in (np.zeros(network.plan.input_step.shape), network.images(3)):
                    client.infer_tensor(image)
                assert len(self.requests) == before
                client.prepare(2)
        self.plan = encode_plan(network.plan)
        known: dict[bytes, int] = {}
        self.calls = [
            (method(request), known.setdefault(getattr(request, "session", b""), len(known)))
            for request in self.requests
        ]

    def _noting(self, lie: Lie | None) -> Lie:
        def note(honest: Any, request: Request, call: Any) -> Any:
            self.requests.append(request)
            return honest(request, call) if lie is None else lie(honest, request, call)

        return note


def form(requests: Sequence[Request]) -> list[tuple[str, int, dict[str, int]]]:
    """Method, length, and every field's value by its first occurrence: what is the same as what."""
    known: dict[bytes, int] = {}
    return [
        (
            method(request),
            request.ByteSize(),
            {one.name: known.setdefault(value, len(known)) for one, value in request.ListFields()},
        )
        for request in requests
    ]


def uniform_bytes(plan: bytes, requests: Sequence[Request]) -> NDArray[np.uint64]:
    """All that was drawn, each thing once."""
    drawn = {value for request in requests for _, value in request.ListFields()}
    drawn -= {plan, hashlib.sha256(plan).digest()}
    return np.frombuffer(b"".join(drawn), np.uint8).astype(np.uint64)


def check_crypto_provider(heard: Asked) -> None:
    made = simulator.for_crypto_provider(heard.plan, heard.calls)
    assert form(made) == form(heard.requests)
    for requests in (heard.requests, made):
        values = chisquare.uniform(uniform_bytes(heard.plan, requests), 8)
        found = [chisquare.Finding("drawn", value) for value in values]
        assert chisquare.alarms(found) == []


def test_a_crypto_providers_view_is_made_from_who_asks_when(tmp_path: Path) -> None:
    """Two images, right or wrong corrections: the requests are the same, and none is about them."""
    heard = Asked(tmp_path / "honest")
    check_crypto_provider(heard)
    spoiling = redealing(
        lambda frames: [replace(f, payload=bytes(f.payload)[::-1]) for f in frames]
    )
    other = Asked(tmp_path / "lying", spoiling)
    check_crypto_provider(other)
    assert other.calls == heard.calls
    assert form(other.requests) == form(heard.requests)


def test_keys_that_are_not_fresh_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SecretKey, "generate", lambda: SecretKey(bytes(32)))
    with pytest.raises(NOTICED):
        check_crypto_provider(Asked(tmp_path))
