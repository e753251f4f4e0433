"""Every party's transcript looks the same whatever the image.

Views are compared for a black image, a real X-ray and noise, with fresh keys and a fresh artefact
in every session: chi-square tests of every message (as bytes and as numbers of their own width) and
of what its receiver can compute from it, on the values, on differences between two runs and between
two gates, and between images.

False alarms: at most ``chisquare.MOST_TESTS`` tests, each with threshold 1e-7 / MOST_TESTS; with a
margin of ten for the chi-square approximation the rate for all of them together is at most 1e-6
(:mod:`tests.protocol.chisquare` has the computation, and counts).

For the model owner, whose view decides about the image, privacy is also shown without statistics:
every view, also that of one who deviates, is explained by every image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache

import numpy as np
import pytest

from radiopaque.engine import artefact as artefacts
from radiopaque.engine import data_owner
from radiopaque.gates import plan_cost
from radiopaque.gates.base import Site
from radiopaque.graph import plan as p
from radiopaque.kernels.bits import packed_size
from radiopaque.prg import SecretKey, Streams
from radiopaque.ring import RingArray, decode, signed
from radiopaque.wire.frames import Frame, Kind
from tests.protocol import chisquare, fields, sessions
from tests.protocol.explain import explain
from tests.protocol.fields import Field
from tests.protocol.network import ideal_functionality, images, small_plan, small_weights
from tests.protocol.sessions import Due, Replay, Session, run_session, schedule

RUNS = {32: 20, 64: 6}
View = Callable[[Session], Iterator[Field]]


VIEWS: dict[str, View] = {
    "model-owner": fields.model_owner_view,
    "data-owner": fields.data_owner_view,
    "crypto-provider": fields.crypto_provider_fields,
}


def run(
    image: str,
    deviation: Callable[[Session], sessions.Serve] | None = None,
    ring_bits: int = 32,
) -> Session:
    return run_session(small_plan(ring_bits), small_weights(ring_bits), images()[image], deviation)


@cache
def honest_runs(ring_bits: int = 32) -> dict[str, list[Session]]:
    return {
        image: [run(image, None, ring_bits) for _ in range(RUNS[ring_bits])] for image in images()
    }


def read(view: View, runs: dict[str, list[Session]]) -> dict[str, list[list[Field]]]:
    return {image: [list(view(session)) for session in found] for image, found in runs.items()}


# --- the same for every image -----------------------------------------------------------


@pytest.mark.parametrize(
    ("party", "ring_bits"),
    [*((party, 32) for party in VIEWS), ("model-owner", 64), ("data-owner", 64)],
)
def test_transcripts_are_uniform_and_the_same_for_every_image(party: str, ring_bits: int) -> None:
    found = chisquare.examine(read(VIEWS[party], honest_runs(ring_bits)))
    assert chisquare.alarms(found) == []


@pytest.mark.parametrize("ring_bits", [32, 64])
def test_the_result_is_the_ideal_functionality_with_the_coins_of_the_masks(ring_bits: int) -> None:
    for image, runs in honest_runs(ring_bits).items():
        session = runs[0]
        d, o = session.data_owner_streams(), session.model_owner_streams()

        def coins(site: Site, d: Streams = d, o: Streams = o) -> RingArray:
            gate, shape = site.step.gate, (site.step.size,)
            assert isinstance(gate, p.Truncate | p.Relu)
            r = d.words(site.number, "opening", shape, site.dtype)
            r += o.words(site.number, "opening", shape, site.dtype)
            return fields.mod(r, gate.shift)

        plan = session.plan
        encoded = data_owner.encode_images(plan, images()[image])
        ideal = ideal_functionality(session.model, encoded, coins)
        gate, mask, word = plan.output_step.gate, session.output_mask, ideal.dtype.type
        assert isinstance(gate, p.Output)
        told = np.right_shift(ideal - mask, word(gate.position))
        stored = (told << word(gate.position)) + word(1 << gate.position - 1) + mask
        expected = decode(signed(stored, gate.bits + gate.position), plan.output_step.scale)
        assert np.array_equal(session.outputs, expected)
        assert np.ptp(expected) > 0.1


@pytest.mark.parametrize("payload_bytes", [1 << 20, 1 << 10])
def test_lengths_and_order_depend_on_the_plan_alone(
    payload_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("radiopaque.graph.bands.BLOCK_BYTES", payload_bytes)
    monkeypatch.setattr("radiopaque.transport.link.PAYLOAD_BYTES", payload_bytes)
    runs = [run(image) for image in images() for _ in range(2)]

    def shapes(frames: Sequence[Frame]) -> list[tuple[int, Kind, int, int]]:
        return [(f.gate, f.kind, f.block, len(f.payload)) for f in frames]

    first = runs[0]
    for other in runs[1:]:
        assert shapes(other.corrections) == shapes(first.corrections)
        assert shapes(other.offline) == shapes(first.offline)
        assert shapes(other.to_model_owner) == shapes(first.to_model_owner)
        assert shapes(other.to_data_owner) == shapes(first.to_data_owner)
        assert len(other.masked_weights) == len(first.masked_weights)

    cost = plan_cost(first.plan)
    assert sum(len(f.payload) for f in first.corrections) == cost.correction_bytes
    assert sum(len(f.payload) for f in first.offline) == cost.offline_bytes
    assert sum(len(f.payload) for f in first.to_model_owner) == cost.to_model_owner_bytes
    assert sum(len(f.payload) for f in first.to_data_owner) == cost.to_data_owner_bytes
    assert len({(f.gate, f.kind) for f in first.to_data_owner}) == cost.round_trips
    if payload_bytes == 1 << 20:
        frames = [*first.corrections, *first.offline, *first.to_model_owner, *first.to_data_owner]
        expected = {(d.gate, d.kind): packed_size(d.count, d.width) for d in schedule(first.plan)}
        assert {(f.gate, f.kind): len(f.payload) for f in frames} == expected
    else:
        assert max(f.block for f in first.to_data_owner) > 0


# --- the tests notice what they are for -------------------------------------------------

MASKS = [
    ("model-owner", "data-owner", "mask"),
    ("model-owner", "data-owner", "opening"),
    ("model-owner", "data-owner", "selection"),
    ("model-owner", "data-owner", "decision"),
    ("model-owner", "data-owner", "level1"),
    ("model-owner", "data-owner", "level2"),
    ("model-owner", "data-owner", "products"),
    ("model-owner", "data-owner", "product"),
    ("data-owner", "model-owner", "opening"),
    ("data-owner", "model-owner", "selection"),
    ("data-owner", "model-owner", "decision"),
    ("data-owner", "artefact", "weights"),
]
BREAKAGES = [sessions.left_out, sessions.shared_by_gates, sessions.shared_by_sessions]


@pytest.mark.parametrize("breakage", BREAKAGES)
@pytest.mark.parametrize(("viewer", "role", "quantity"), MASKS)
def test_a_mask_left_out_or_used_twice_is_noticed(
    breakage: Callable[[str, str], AbstractContextManager[None]],
    viewer: str,
    role: str,
    quantity: str,
) -> None:
    with breakage(role, quantity):
        runs = {image: [run(image) for _ in range(2)] for image in ("black", "x-ray")}
    found = [finding for finding in chisquare.examine(read(VIEWS[viewer], runs)) if finding.alarm]
    assert found, f"nobody notices {breakage.__name__} of {quantity} of the {role}"
    if breakage is sessions.shared_by_gates:
        assert any("between gates" in finding.name for finding in found)
    if breakage is sessions.shared_by_sessions:
        assert any("between runs" in finding.name for finding in found)


def test_every_stream_is_among_the_masks() -> None:
    used: set[tuple[str, str]] = set()
    with pytest.MonkeyPatch.context() as monkeypatch:
        for role in ("data-owner", "model-owner", "artefact"):

            def note(gate: int, name: str, role: str = role) -> None:
                used.add((role, name))

            sessions.watched(monkeypatch, role, note)
        run("black")
    assert used == {(role, quantity) for _, role, quantity in MASKS}


# --- a model owner that deviates --------------------------------------------------------


def replayed() -> Callable[[Due, bytes], bytes]:
    other = fields.payloads(run("noise").to_data_owner)
    return lambda due, heard: bytes(other[due.gate, due.kind])


DEVIATIONS: dict[str, Callable[[], Callable[[Due, bytes], bytes]]] = {
    "zeros": lambda: lambda due, heard: b"",
    "ones": lambda: lambda due, heard: b"\xff" * packed_size(due.count, due.width),
    "values of another session": replayed,
    "what it heard last": lambda: (
        lambda due, heard: heard * (1 + packed_size(due.count, due.width) // max(1, len(heard)))
    ),
}


@pytest.mark.parametrize("name", DEVIATIONS)
def test_a_deviating_model_owner_sees_uniform_messages(name: str) -> None:
    deviation = sessions.deviating(DEVIATIONS[name]())
    runs = {image: [run(image, deviation) for _ in range(4)] for image in images()}
    assert chisquare.alarms(chisquare.examine(read(fields.model_owner_view, runs))) == []


@pytest.mark.parametrize(
    ("name", "ring_bits"), [(None, 32), (None, 64), *[(name, 32) for name in DEVIATIONS]]
)
def test_every_image_explains_every_view_of_the_model_owner(
    name: str | None, ring_bits: int
) -> None:
    deviation = sessions.deviating(DEVIATIONS[name]()) if name else None
    session = run("x-ray", deviation, ring_bits)
    plan = session.plan
    for image in images().values():
        pads = explain(session, data_owner.encode_images(plan, image))
        key_d, key_o = SecretKey(session.key_d), SecretKey(session.key_o)
        own = data_owner.SessionKey(session.artefact.id, session.session, key_d)
        masked = artefacts.MaskedWeights.parse(plan, session.masked_weights)
        with sessions.given_pads(pads):
            dealt = sessions.deal(plan, session.artefact, session.session, key_d, key_o)
            message = data_owner.prepare(plan, own, masked)
            offline = list(message.frames())
            channel = sessions.Recorder(Replay(session.to_data_owner))
            data_owner.DataOwnerRun(plan, own, message.output_mask).infer(image, channel)
        assert dealt == session.corrections
        assert offline == session.offline
        assert channel.sent == session.to_model_owner


def test_the_true_image_is_explained_by_the_true_streams() -> None:
    session = run("x-ray")
    plan = session.plan
    pads = explain(session, data_owner.encode_images(plan, images()["x-ray"]))
    streams = session.data_owner_streams()
    for (gate, quantity), pad in pads.items():
        step = plan.steps[gate]
        dtype = {"selection": np.uint16, "decision": np.uint8, "level1": np.uint64}.get(
            quantity, np.uint32
        )
        width = {"opening": getattr(step.gate, "opened_bits", 0), "decision": 1}.get(quantity, 32)
        if quantity == "level1":
            width = 64
        if quantity == "selection":
            assert isinstance(step.gate, p.Relu)
            width = fields.INDEX_BITS[step.gate.compared_bits]
        stream = streams.words(gate, quantity, (pad.size,), dtype)
        assert np.array_equal(fields.mod(stream, width), fields.mod(pad, width)), (gate, quantity)
