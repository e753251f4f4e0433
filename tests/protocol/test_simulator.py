"""Real views against simulated ones: values, lengths, order, timing classes, for each party.

A simulator is given what the ideal functionality reveals to the party and nothing else
(:mod:`tests.protocol.simulator`). Were a view to hold more, no simulator could make it alike, and
these tests would tell the two apart. Each of them is run on a real view that does hold more, too.

False alarms: as in :mod:`tests.protocol.chisquare`, which counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from data_owner import Client
from radiopaque.engine import data_owner
from radiopaque.errors import DealerError, MessageSizeError, RadiopaqueError
from radiopaque.gates.base import Answering, Evaluating, Site
from radiopaque.gates.ends import InputGate
from radiopaque.gates.linear import LinearGate
from radiopaque.graph import bands
from radiopaque.graph import plan as p
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
PLANS = {32: small_plan(32), 64: small_plan(64)}
RUNS = 4
Ended = tuple[Session, type[RadiopaqueError] | None]


@pytest.fixture
def many_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "BLOCK_BYTES", 1 << 10)


@pytest.fixture(params=["32 bits, one band", "32 bits, many bands", "64 bits, many bands"])
def ring_bits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of the plan; the small plan is of many bands where blocks are short."""
    if "many" in request.param:
        monkeypatch.setattr(bands, "BLOCK_BYTES", 1 << 10)
    return int(request.param[:2])


def real(
    image: str = "x-ray", vendor: vendors.Vendor = sessions.honest, ring_bits: int = 32
) -> Ended:
    """A session, and why it ended early if it did."""
    kept: list[Session] = []

    def keeping(session: Session) -> sessions.Serve:
        kept.append(session)
        return vendor(session)

    try:
        run_session(PLANS[ring_bits], small_weights(ring_bits), images()[image], keeping)
    except RadiopaqueError as error:
        return kept[0], type(error)
    return kept[0], None


def simulated(vendor: vendors.Vendor = sessions.honest, ring_bits: int = 32) -> Ended:
    own = Vendor.with_fresh_keys(PLANS[ring_bits], small_weights(ring_bits))
    return simulator.for_model_owner(PLANS[ring_bits], own, vendor)


def check_values(
    reading: Callable[[Session], Iterator[Field]],
    views: dict[str, list[Session]],
) -> None:
    """Each field is uniform in both kinds of views, and has one distribution in both."""
    found = {
        kind: [list(across_bands(view.plan, reading(whole(view)))) for view in some]
        for kind, some in views.items()
    }
    assert chisquare.alarms(chisquare.examine(found)) == []


# --- the model owner ----------------------------------------------------------------------------


VENDORS: dict[str, vendors.Vendor] = {
    "honest": sessions.honest,
    "adaptive": vendors.sending(vendors.adaptive),
    "echoing": vendors.sending(vendors.echoed),
}


def check_model_owner(image: str, vendor: vendors.Vendor, ring_bits: int = 32) -> None:
    views = {
        "real": [real(image, vendor, ring_bits)[0] for _ in range(RUNS)],
        "simulated": [simulated(vendor, ring_bits)[0] for _ in range(RUNS)],
    }
    for part in ("corrections", "offline", "to_model_owner", "to_data_owner"):
        shapes = {tuple(named(getattr(v, part))) for some in views.values() for v in some}
        assert len(shapes) == 1
    check_values(fields.model_owner_view, views)


@pytest.mark.parametrize("name", VENDORS)
def test_a_model_owners_view_is_made_from_the_plan(name: str, ring_bits: int) -> None:
    check_model_owner("x-ray", VENDORS[name], ring_bits)


@pytest.mark.parametrize(
    ("quantity", "bits"), [("mask", 32), ("opening", 32), ("products", 32), ("opening", 64)]
)
def test_a_view_with_something_of_the_image_is_told_apart(quantity: str, bits: int) -> None:
    with sessions.left_out("data-owner", quantity), pytest.raises(NOTICED):
        check_model_owner("black", sessions.honest, bits)


def check_endings(count: int) -> None:
    """Simulated sessions with a vendor that stops at will end in the same places, as often."""
    turns = conversation(PLANS[32])
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


def output_gate(plan: p.Plan) -> p.Output:
    gate = plan.output_step.gate
    assert isinstance(gate, p.Output)
    return gate


def simulated_data_owner(image: NDArray[np.float64], ring_bits: int) -> tuple[Session, RingArray]:
    """A simulated view, and the functionality's result."""
    plan = PLANS[ring_bits]
    model = Vendor.with_fresh_keys(plan, small_weights(ring_bits)).model
    ideal = ideal_functionality(model, data_owner.encode_images(plan, image))
    position = ideal.dtype.type(output_gate(plan).position)
    return simulator.for_data_owner(plan, image, lambda mask: ideal - mask >> position), ideal


def check_data_owner(image: str, ring_bits: int = 32) -> None:
    made = [simulated_data_owner(images()[image], ring_bits) for _ in range(RUNS)]
    views = {
        "real": [real(image, ring_bits=ring_bits)[0] for _ in range(RUNS)],
        "simulated": [view for view, _ in made],
    }
    for part in ("offline", "to_model_owner", "to_data_owner"):
        shapes = {tuple(named(getattr(v, part))) for some in views.values() for v in some}
        assert len(shapes) == 1
    assert len({len(v.masked_weights) for some in views.values() for v in some}) == 1
    check_values(fields.data_owner_view, views)
    output = PLANS[ring_bits].output_step
    unit = 1 / float(output.scale)
    half = 2 ** (output_gate(PLANS[ring_bits]).position - 1) * unit
    for view, ideal in made:
        right = signed(ideal, ring_bits) * unit
        np.testing.assert_allclose(view.outputs, right, rtol=0, atol=half)


@pytest.mark.parametrize("image", ["black", "x-ray"])
def test_a_data_owners_view_is_made_from_its_result(image: str, ring_bits: int) -> None:
    check_data_owner(image, ring_bits)


@pytest.mark.parametrize(
    ("role", "quantity", "bits"),
    [
        ("model-owner", "opening", 32),
        ("model-owner", "selection", 32),
        ("model-owner", "decision", 32),
        ("artefact", "weights", 32),
        ("model-owner", "opening", 64),
    ],
)
def test_a_view_with_something_of_the_weights_is_told_apart(
    role: str, quantity: str, bits: int
) -> None:
    with sessions.left_out(role, quantity), pytest.raises(NOTICED):
        check_data_owner("black", bits)


# --- timing classes -----------------------------------------------------------------------------


def check_time_of_data_owner(vendor: vendors.Vendor, ring_bits: int = 32) -> None:
    """What the data owner does between two messages follows from the plan."""
    plan = PLANS[ring_bits]
    for image in images():
        session, _ = real(image, vendor, ring_bits)
        expected = simulator.work_on_nothing(plan, session.to_data_owner)
        assert simulator.work_of_data_owner(session, images()[image]) == expected
        said = [(step[0] == "receive", *step[1:]) for step in simulator.frames_of(expected)]
        assert said == [
            (turn.receiver == "data-owner", *turn.name, turn.size) for turn in conversation(plan)
        ]


@pytest.mark.parametrize("name", VENDORS)
def test_when_the_data_owner_speaks_follows_from_the_plan(name: str, ring_bits: int) -> None:
    check_time_of_data_owner(VENDORS[name], ring_bits)


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


def check_time_of_model_owner(ring_bits: int = 32, runs: int = 1) -> None:
    """What the model owner does between two messages follows from the plan, not from weights."""
    plan, weights = PLANS[ring_bits], small_weights(ring_bits)
    expected = simulator.work_without_weights(plan)
    for image in [*images()] * runs:
        session, _ = real(image, ring_bits=ring_bits)
        assert simulator.work_of_model_owner(session, weights) == expected
    said = [(step[0] == "receive", *step[1:]) for step in simulator.frames_of(expected)]
    assert said == [
        (turn.receiver == "model-owner", *turn.name, turn.size) for turn in at_the_model_owner(plan)
    ]


def test_when_the_model_owner_speaks_follows_from_the_plan(ring_bits: int) -> None:
    check_time_of_model_owner(ring_bits)


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
        check_time_of_model_owner(runs=30)


# --- the crypto provider ------------------------------------------------------------------------


def method(request: Request) -> str:
    return type(request).__name__.removesuffix("Request")


class Asked:
    """What a crypto provider hears over the network while a clinic prepares, infers and audits it.

    ``calls``: (method, which session) in order.
    """

    def __init__(self, folder: Path, dealing: Lie | None = None) -> None:
        self.requests: list[Request] = []
        network = lungs()
        with Inside(folder, network) as inside:
            lies: dict[str, Lie | None] = {"Register": None, "Reserve": None, "Deal": dealing}
            inside.lies.update({name: self._noting(lie) for name, lie in lies.items()})
            with Client.from_config(inside.clinic()) as client:
                client.prepare(3)
                before = len(self.requests)
                for image in (np.zeros(network.plan.input_step.shape), network.images(3)):
                    client.infer_tensor(image)
                with suppress(DealerError):
                    client.audit(1.0)
                assert client.stock() == 0
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


def drawn_bytes(plan: bytes, requests: Sequence[Request]) -> NDArray[np.uint64]:
    """All that was drawn, each thing once, of which no eight bytes come twice."""
    drawn = {value for request in requests for _, value in request.ListFields()}
    drawn -= {plan, hashlib.sha256(plan).digest()}
    pieces = [value[start : start + 8] for value in drawn for start in range(0, len(value), 8)]
    assert len(set(pieces)) == len(pieces)
    return np.frombuffer(b"".join(drawn), np.uint8).astype(np.uint64)


def check_crypto_provider(heard: Asked) -> None:
    made = simulator.for_crypto_provider(heard.plan, heard.calls)
    assert form(made) == form(heard.requests)
    for requests in (heard.requests, made):
        values = chisquare.uniform(drawn_bytes(heard.plan, requests), 8)
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
