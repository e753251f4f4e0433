"""Sessions whose material is loaded while they run: same messages, less memory, clean endings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_owner.material import MaterialStore
from radiopaque.engine import artefact as artefacts
from radiopaque.engine.data_owner import DataOwnerRun, SessionKey, prepare
from radiopaque.engine.material import region_sizes
from radiopaque.engine.model_owner import Material, ModelOwnerRun
from radiopaque.errors import ConnectionLostError, SessionStateError, StoreError
from radiopaque.gates import halves, sites
from radiopaque.gates.base import Preparing
from radiopaque.graph import plan as p
from radiopaque.graph.weights import Weights
from radiopaque.prg import SecretKey
from radiopaque.transport.memory import connect
from radiopaque.wire.frames import Frame, Kind
from tests.plans import PlanBuilder
from tests.protocol import sessions
from tests.protocol.network import images, small_plan, small_weights
from tests.protocol.sessions import Recorder, Replay, Session, run_session

EVERYTHING = 1 << 30
LAYER = (1, 4, 24, 24)


@pytest.fixture(autouse=True)
def no_loader_is_left() -> Iterator[None]:
    yield
    names = {thread.name for thread in threading.enumerate()}
    assert "radiopaque-load" not in names


def deep(layers: int) -> p.Plan:
    """Convolutions with comparisons behind them, all of one size."""
    build = PlanBuilder(32, LAYER, limit=1 << 8)
    for _ in range(layers):
        build.add(p.Convolution(4, (3, 3), pads=(1, 1, 1, 1)), build.last, limit=1 << 30)
        build.add(p.Relu(32, 13), build.last, limit=1 << 17)
    return build.finish()


@cache
def deep_session(layers: int) -> tuple[Session, NDArray[np.float64]]:
    plan = deep(layers)
    generator = np.random.default_rng(layers)
    weights = Weights(
        {
            gate: generator.integers(0, 1 << 12, shape).astype(np.uint32)
            for gate, shape in plan.weight_shapes()
        },
        {},
    )
    image = generator.integers(-200, 200, LAYER).astype(np.float64)
    return run_session(plan, weights, image), image


@cache
def small_session(ring_bits: int) -> tuple[Session, NDArray[np.float64]]:
    image = images()["noise"]
    return run_session(small_plan(ring_bits), small_weights(ring_bits), image), image


def own_key(session: Session) -> SessionKey:
    return SessionKey(session.artefact.id, session.session, SecretKey(session.key_d))


def serving(
    session: Session,
    window_bytes: int,
    key_o: SecretKey | None = None,
    material: Material | None = None,
) -> ModelOwnerRun:
    stored = material or sessions.material(
        session.plan, session.session, session.corrections, session.offline
    )
    key = key_o or SecretKey(session.key_o)
    model, artefact = session.model, session.artefact.id
    return ModelOwnerRun(model, artefact, session.session, key, stored, window_bytes)


def asking(session: Session, window_bytes: int, key: SessionKey | None = None) -> DataOwnerRun:
    return DataOwnerRun(session.plan, key or own_key(session), session.output_mask, window_bytes)


def peaks(session: Session, image: NDArray[np.float64], window_bytes: int) -> tuple[int, int]:
    """Run the session again; what either party held at most. All messages must be the same."""
    with (
        closing(serving(session, window_bytes)) as owner,
        closing(asking(session, window_bytes)) as clinic,
    ):
        channel = Recorder(connect(owner.run, 60.0))
        outputs = clinic.infer(image, channel)
        channel.close()
    assert np.array_equal(outputs, session.outputs)
    assert channel.sent == session.to_model_owner
    assert channel.received == session.to_data_owner
    return owner.peak_bytes, clinic.peak_bytes


@pytest.mark.parametrize("ring_bits", [32, 64])
@pytest.mark.parametrize("window_bytes", [1, 50_000, 200_000])
def test_a_tiny_window_changes_no_message(ring_bits: int, window_bytes: int) -> None:
    session, image = small_session(ring_bits)
    narrow, wide = peaks(session, image, window_bytes), peaks(session, image, EVERYTHING)
    assert all(few < most for few, most in zip(narrow, wide, strict=True))


def test_memory_is_bounded_by_the_window_and_not_by_the_depth() -> None:
    eighteen, fifty = deep_session(18), deep_session(50)
    # a comparison's state is the largest there is
    largest = peaks(*deep_session(1), 1)
    window_bytes = 5 * max(largest)
    # windows are filled by what was expected; what is not stored, as the offsets, comes on top
    bound = 1.05 * window_bytes
    for session, image in (eighteen, fifty):
        held = peaks(session, image, window_bytes)
        assert all(3 * max(largest) < one < bound for one in held)
    for few, many in zip(peaks(*eighteen, EVERYTHING), peaks(*fifty, EVERYTHING), strict=True):
        assert many > 2.5 * few > 2.5 * bound


def test_one_gate_at_a_time_where_none_fits() -> None:
    one, many = peaks(*deep_session(1), 1), peaks(*deep_session(18), 1)
    assert one == many


# --- damage and abandonment -----------------------------------------------------------------


def stored(session: Session, store: MaterialStore, key: SecretKey) -> None:
    for kind, frames in (
        (Kind.CORRECTION, session.corrections),
        (Kind.OFFLINE, session.offline),
    ):
        with store.writer(session.plan, session.session, kind, key) as writer:
            for frame in frames:
                writer.accept(frame)
            writer.finish()


def test_damage_beyond_the_window_ends_the_session_at_its_gate(tmp_path: Path) -> None:
    session, image = deep_session(18)
    store, key = MaterialStore(tmp_path), SecretKey.generate()
    stored(session, store, key)
    (path,) = tmp_path.glob("*.correction")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    plan = session.plan
    with pytest.raises(StoreError, match=r"damaged; the session is lost, prepare another"):
        serving(session, EVERYTHING, material=store.load(plan, session.session, key))
    key_o = SecretKey(session.key_o)
    owner = serving(session, 1, key_o, store.load(plan, session.session, key))
    with closing(asking(session, 1)) as clinic:
        channel = Recorder(connect(owner.run, 60.0))
        with pytest.raises(StoreError):
            clinic.infer(image, channel)
        channel.close()
    # half of the network was answered, as it would have been
    heard = channel.received
    assert heard == session.to_data_owner[: len(heard)]
    assert 0.3 < len(heard) / len(session.to_data_owner) < 0.7
    with pytest.raises(SessionStateError, match="erased"):
        key_o.reveal()


@pytest.mark.parametrize("kind", [Kind.CORRECTION, Kind.OFFLINE])
@pytest.mark.parametrize("window_bytes", [1, EVERYTHING])
def test_regions_that_are_not_there(kind: Kind, window_bytes: int) -> None:
    session, image = deep_session(1)
    material = sessions.material(
        session.plan, session.session, session.corrections, session.offline
    )
    left = {Kind.CORRECTION: list(material.corrections), Kind.OFFLINE: list(material.offline)}
    gate, _ = left[kind].pop()
    lacking = Material(left[Kind.CORRECTION], left[Kind.OFFLINE])

    def attempt() -> None:
        owner = serving(session, window_bytes, material=lacking)
        with closing(asking(session, EVERYTHING)) as clinic:
            clinic.infer(image, connect(owner.run, 60.0))

    with pytest.raises(StoreError, match=f"lacks the {kind.name} region of gate {gate}"):
        attempt()


@pytest.mark.parametrize("heard", [0, 1, 7])
def test_a_session_that_breaks_frees_all_at_once(heard: int) -> None:
    session, image = deep_session(18)
    key_o, own = SecretKey(session.key_o), own_key(session)
    owner, clinic = serving(session, 1, key_o), asking(session, 1, own)
    for key in (key_o, own.key_d):
        key.reveal()  # most gates are still to be loaded
    with pytest.raises(ConnectionLostError):
        owner.run(Replay(session.to_model_owner[:heard]))
    with pytest.raises(ConnectionLostError):
        clinic.infer(image, Replay(session.to_data_owner[:heard]))
    for key in (key_o, own.key_d):
        with pytest.raises(SessionStateError, match="erased"):
            key.reveal()


def test_a_session_that_is_never_run_can_be_closed() -> None:
    session, image = deep_session(18)
    key_o, own = SecretKey(session.key_o), own_key(session)
    owner, clinic = serving(session, 1, key_o), asking(session, 1, own)
    owner.close()
    clinic.close()
    for key in (key_o, own.key_d):
        with pytest.raises(SessionStateError, match="erased"):
            key.reveal()
    with pytest.raises(SessionStateError):
        clinic.infer(image, Replay([]))
    with pytest.raises(SessionStateError):
        owner.run(Replay([]))


class Twice(Replay):
    """A peer with which the same session is begun a second time as soon as it is used."""

    def __init__(self, again: Callable[[Recorder], object]) -> None:
        super().__init__([])
        self._again = again
        self.seen: list[Recorder] = []

    def send(self, frame: Frame) -> None:
        self._begin()

    def receive(self, more: bool = False) -> Frame:
        self._begin()
        return super().receive()

    def _begin(self) -> None:
        if not self.seen:
            self.seen.append(Recorder(Replay([])))
            with pytest.raises(SessionStateError, match="already run"):
                self._again(self.seen[0])


def test_a_session_under_way_is_not_run_again() -> None:
    """While its states are still there: another image would leave under the same mask."""
    session, image = deep_session(1)
    with (
        closing(serving(session, EVERYTHING)) as owner,
        closing(asking(session, EVERYTHING)) as clinic,
    ):
        other = Twice(lambda channel: clinic.infer(-image, channel))
        with pytest.raises(ConnectionLostError):
            clinic.infer(image, other)
        clinics = Twice(owner.run)
        with pytest.raises(ConnectionLostError):
            owner.run(clinics)
    for (again,) in (other.seen, clinics.seen):
        assert again.sent == again.received == []


# --- the offline message --------------------------------------------------------------------


def walked_masks(session: Session) -> list[NDArray[np.unsignedinteger]]:
    """The masks of all values, none left out and none freed."""
    weights = artefacts.MaskedWeights.parse(session.plan, session.masked_weights)
    context = Preparing(own_key(session).streams(), weights.maps)
    masks: list[NDArray[np.unsignedinteger]] = []
    for site in sites(session.plan):
        inputs = [masks[i] for i in site.step.inputs]
        masks.append(halves(site.step.gate).prepare(context, site, inputs).mask)
    return masks


def linear_plan() -> p.Plan:
    """No fresh mask but the image's, and a value that is read twice."""
    build = PlanBuilder(32, LAYER)
    first = build.add(p.Convolution(4, (1, 1)), 0)
    build.add(p.Reshape(), first)
    build.add(p.Combine((1, -1, 3)), first, first, build.last)
    return build.finish()


def remasked_plan() -> p.Plan:
    """The result's mask comes from a re-mask and, around it, from the image's."""
    build = PlanBuilder(32, LAYER)
    build.add(p.Convolution(4, (1, 1)), 0)
    build.add(p.Remask(), 1)
    build.add(p.Convolution(4, (1, 1)), 2)
    build.add(p.Combine((1, 1)), 3, 0)
    return build.finish()


@pytest.mark.parametrize("make", [small_plan, linear_plan, remasked_plan, lambda: deep(3)])
def test_the_mask_of_the_result_is_that_of_the_whole_walk(make: Callable[[], p.Plan]) -> None:
    plan = make()
    generator = np.random.default_rng(0)
    weights = Weights(
        {
            gate: generator.integers(0, 1 << 32, shape, np.uint32)
            for gate, shape in plan.weight_shapes()
        },
        {
            gate: generator.integers(0, 1 << 32, shape, np.uint32)
            for gate, shape in plan.constant_shapes()
        },
    )
    session = run_session(plan, weights, np.zeros(plan.input_step.shape))
    expected = walked_masks(session)[-1]
    assert np.array_equal(session.output_mask, expected)
    assert session.output_mask.shape == plan.output_step.shape


def test_the_offline_message_is_computed_as_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = deep_session(18)
    drawn: list[int] = []
    sessions.watched(monkeypatch, "data-owner", lambda gate, name: drawn.append(gate))
    weights = artefacts.MaskedWeights.parse(session.plan, session.masked_weights)
    message = prepare(session.plan, own_key(session), weights)
    last = len(session.plan.steps) - 2
    assert set(drawn) == {last}
    sent = []
    for frame, gate in zip(message.frames(), region_sizes(session.plan, Kind.OFFLINE), strict=True):
        assert frame.gate == gate == max(drawn[1:])
        sent.append(frame)
    assert sent == session.offline


def test_the_offline_message_needs_its_key() -> None:
    session, _ = deep_session(1)
    key = own_key(session)
    weights = artefacts.MaskedWeights.parse(session.plan, session.masked_weights)
    message = prepare(session.plan, key, weights)
    key.key_d.erase()
    with pytest.raises(SessionStateError, match="erased"):
        next(message.frames())


def test_an_offline_message_shows_no_secret() -> None:
    session, _ = deep_session(1)
    weights = artefacts.MaskedWeights.parse(session.plan, session.masked_weights)
    shown = repr(prepare(session.plan, own_key(session), weights))
    assert "session=" in shown
    assert not any(name in shown for name in ("key_d", "weights", "output_mask", "array"))
