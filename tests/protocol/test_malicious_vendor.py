"""A vendor that deviates as it likes learns nothing about the image.

docs/protocol.md, section 10.1, with layers cut into many bands: every frame of a vendor here may
depend on every frame that it has heard before, of other bands and of other layers.

* Whatever it sends, the data owner answers each band of each gate once and in the order of the
  plan, and what it says is uniform: by statistics, and exactly, since every image explains every
  view.
* A frame that no honest vendor can send ends the session there, at the same place and with the same
  error for every image.

False alarms: as in :mod:`tests.protocol.chisquare`, which counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from radiopaque.engine import artefact as artefacts
from radiopaque.engine import data_owner
from radiopaque.errors import MessageValueError, RadiopaqueError, SessionStateError
from radiopaque.gates import sites
from radiopaque.graph import bands
from radiopaque.graph import plan as p
from radiopaque.graph.weights import Weights
from radiopaque.kernels import bits
from radiopaque.kernels.cpu import CpuDevice
from radiopaque.prg import SecretKey
from radiopaque.ring import ring_dtype
from radiopaque.transport import link
from radiopaque.wire.frames import Frame
from tests.plans import PlanBuilder
from tests.protocol import chisquare, fields, sessions
from tests.protocol.banded import across_bands, conversation, due, named, whole
from tests.protocol.explain import explain
from tests.protocol.fields import Field
from tests.protocol.network import images, small_plan, small_weights
from tests.protocol.sessions import Recorder, Replay, Session, run_session
from tests.protocol.test_costs import CASES
from tests.protocol.vendors import (
    CHOICES,
    WRONG,
    Choice,
    Vendor,
    Wrong,
    adaptive,
    echoed,
    forgiving,
    sending,
    with_spare_bit,
)
from tests.vectors.forms import plan_from_json

NOTICED = (AssertionError, pytest.fail.Exception)
PLANS = {32: small_plan(32), 64: small_plan(64)}
PLAN = PLANS[32]
Images = Sequence[NDArray[np.float64]]


@pytest.fixture(autouse=True)
def many_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 bands in the first layer."""
    monkeypatch.setattr(bands, "BLOCK_BYTES", 1 << 10)


def run(vendor: Vendor | None = None, image: str = "x-ray", ring_bits: int = 32) -> Session:
    return run_session(PLANS[ring_bits], small_weights(ring_bits), images()[image], vendor)


@cache
def branches() -> tuple[p.Plan, Weights]:
    """Layers side by side, so that their bands take turns; rows of 15 elements, so that bits are
    left over behind the last field.
    """
    build, generator = PlanBuilder(32, (1, 2, 8, 5), limit=1 << 10), np.random.default_rng(7)
    conv = p.Convolution(3, (3, 3), pads=(1, 1, 1, 1))
    build.add(conv, 0, shape=(1, 3, 8, 5), limit=1 << 17)
    left = build.add(p.Relu(19, 0), build.last)
    build.add(conv, 0, shape=(1, 3, 8, 5), limit=1 << 17)
    right = build.add(p.Truncate(24, 5), build.last, limit=1 << 12)
    build.add(p.Combine((1, 8)), left, right)
    build.add(p.Relu(27, 8), build.last)
    build.add(conv, build.last, shape=(1, 3, 8, 5), limit=1 << 15)
    build.add(p.Remask(), build.last)
    plan = build.finish(17)
    weights = {
        gate: generator.integers(-3, 4, shape).astype(np.uint32)
        for gate, shape in plan.weight_shapes()
    }
    return plan, Weights(weights, {})


def side_by_side(
    monkeypatch: pytest.MonkeyPatch, vendor: Vendor | None = None
) -> tuple[Session, Images]:
    """A session of :func:`branches` in bands of one row, and images that it might be about."""
    monkeypatch.setattr(bands, "BLOCK_BYTES", 100)
    plan, weights = branches()
    generator = np.random.default_rng()
    drawn = [generator.integers(-9, 9, plan.input_step.shape).astype(float) for _ in range(3)]
    return run_session(plan, weights, drawn[0], vendor), drawn


def own_key(session: Session) -> data_owner.SessionKey:
    return data_owner.SessionKey(session.artefact.id, session.session, SecretKey(session.key_d))


# --- whatever it sends: exactly -----------------------------------------------------------------


def said_about(session: Session, image: NDArray[np.float64]) -> list[Frame]:
    """What the data owner says to this vendor about an image."""
    masked = artefacts.MaskedWeights.parse(session.plan, session.masked_weights)
    message = data_owner.prepare(session.plan, own_key(session), masked)
    offline = list(message.frames())
    channel = Recorder(Replay(session.to_data_owner))
    data_owner.DataOwnerRun(session.plan, own_key(session), message.output_mask).infer(
        image, channel
    )
    return [*offline, *channel.sent]


def check_explained(session: Session, others: Iterable[NDArray[np.float64]]) -> None:
    """Each answer once and in order, and each of these images would have made them all.

    With streams that are as likely as the true ones.
    """
    plan, key_d, key_o = session.plan, SecretKey(session.key_d), SecretKey(session.key_o)
    assert named(session.to_model_owner) == due(conversation(plan), "model-owner")
    for image in others:
        pads = explain(whole(session), data_owner.encode_images(plan, image))
        with sessions.given_pads(pads):
            dealt = sessions.deal(plan, session.artefact, session.session, key_d, key_o)
            said = said_about(session, image)
        assert dealt == session.corrections
        assert said == [*session.offline, *session.to_model_owner]


@pytest.mark.parametrize("name", CHOICES)
def test_every_image_explains_every_view_of_a_vendor(name: str) -> None:
    assert max(turn.block for turn in conversation(PLAN)) > 20
    check_explained(run(sending(CHOICES[name]())), images().values())


@pytest.mark.parametrize("choice", [adaptive, echoed])
def test_every_image_explains_every_view_in_the_64_bit_ring(choice: Choice) -> None:
    check_explained(run(sending(choice), ring_bits=64), images().values())


@pytest.mark.parametrize("octet", [b"\0", b"\1", b"\xff"])
def test_every_image_explains_the_view_of_a_vendor_that_chose_f(
    octet: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = artefacts.masked_weights_size(PLAN)
    monkeypatch.setattr(artefacts, "mask_weights", lambda *_: octet * size)
    session = run(sending(adaptive))
    assert session.masked_weights == octet * size
    check_explained(session, images().values())


@pytest.mark.parametrize("choice", [None, adaptive, echoed])
def test_layers_side_by_side_are_explained(
    choice: Choice | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, drawn = side_by_side(monkeypatch, sending(choice) if choice else None)
    gates = [frame.gate for frame in session.to_data_owner]
    assert gates != sorted(gates)
    check_explained(session, drawn)


@pytest.mark.parametrize("name", CASES)
def test_every_image_explains_the_view_under_every_plan_of_the_vectors(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of gate, each window, both rings: a vendor chooses its plan, too."""
    monkeypatch.setattr(bands, "BLOCK_BYTES", 100)
    plan, generator = plan_from_json(CASES[name]["inputs"]["plan"]), np.random.default_rng()
    word = ring_dtype(plan.ring_bits)
    weights, constants = (
        {gate: generator.integers(-9, 9, shape).astype(word) for gate, shape in shapes}
        for shapes in (plan.weight_shapes(), plan.constant_shapes())
    )
    step = plan.input_step
    most = min(step.limit, 1 << 20)
    drawn = [generator.integers(-most, most + 1, step.shape) / float(step.scale) for _ in range(3)]
    vendor = sending(adaptive)
    check_explained(run_session(plan, Weights(weights, constants), drawn[0], vendor), drawn)


def test_an_answer_that_is_not_padded_is_not_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = CpuDevice.finish_truncation

    def bare(self, decision, products, mask, first, out):  # type: ignore[no-untyped-def]
        finish(self, decision, products, np.zeros_like(mask), first, out)

    monkeypatch.setattr(CpuDevice, "finish_truncation", bare)
    session = run(sending(adaptive))
    with pytest.raises(NOTICED):
        check_explained(session, images().values())


# --- whatever it sends: by statistics -----------------------------------------------------------


def view(session: Session) -> list[Field]:
    return list(across_bands(session.plan, fields.model_owner_view(whole(session))))


def alarms(vendor: Vendor, ring_bits: int = 32) -> list[str]:
    views = {
        image: [view(run(vendor, image, ring_bits)) for _ in range(2)]
        for image in ("black", "noise")
    }
    return [finding.name for finding in chisquare.alarms(chisquare.examine(views))]


@pytest.mark.parametrize("name", CHOICES)
def test_what_a_vendor_hears_is_uniform(name: str) -> None:
    assert alarms(sending(CHOICES[name]())) == []


@pytest.mark.parametrize("choice", [adaptive, echoed])
def test_what_a_vendor_hears_in_the_64_bit_ring_is_uniform(choice: Choice) -> None:
    assert alarms(sending(choice), ring_bits=64) == []


@contextmanager
def shared_by_bands(role: str, quantity: str) -> Iterator[None]:
    """Every band of a gate has the first one's words."""
    cut = {site.number: site.bands for site in sites(PLAN)}

    def repeated(self, original, gate, name, shape, dtype):  # type: ignore[no-untyped-def]
        if name != quantity:
            return None
        words = original(self, gate, name, shape, dtype).copy()
        first = words[..., : cut[gate][0].stop].copy()
        for band in cut[gate]:
            words[..., band.start : band.stop] = first[..., : band.size]
        return words

    with pytest.MonkeyPatch.context() as monkeypatch:
        sessions.substituted(monkeypatch, role, repeated)
        yield


@pytest.mark.parametrize("breakage", [sessions.left_out, shared_by_bands])
@pytest.mark.parametrize(
    "quantity", ["mask", "opening", "selection", "decision", "level1", "level2", "products"]
)
def test_a_pad_left_out_or_used_for_two_bands_is_noticed(
    breakage: Callable[[str, str], AbstractContextManager[None]], quantity: str
) -> None:
    with breakage("data-owner", quantity):
        views = {image: [view(run(image=image))] for image in ("black", "x-ray")}
    found = [finding.name for finding in chisquare.examine(views) if finding.alarm]
    if breakage is shared_by_bands:
        found = [name for name in found if "next band" in name]
    assert found


# --- what no honest vendor can send -------------------------------------------------------------


def check_refused(
    session: Session, others: Images, wrong: Wrong, expected: type[RadiopaqueError]
) -> None:
    """One wrong frame in each place, and after it all that would have come."""
    turns = conversation(session.plan)
    asked = [turn for turn in turns if turn.receiver == "data-owner"]
    heard = session.to_data_owner
    made = 0
    for place, turn in enumerate(asked):
        frame = wrong(heard, place)
        if frame is None or (expected is MessageValueError and not turn.spare_bits):
            continue
        made += 1
        before = due(turns[: turns.index(turn)], "model-owner")
        for image in others:
            run = data_owner.DataOwnerRun(session.plan, own_key(session), session.output_mask)
            channel = Recorder(Replay([*heard[:place], frame, *heard[place:]]))
            with pytest.raises(RadiopaqueError) as refusal:
                run.infer(image, channel)
            assert type(refusal.value) is expected
            assert named(channel.sent) == before
            assert len(channel.received) == place + 1
            with pytest.raises(SessionStateError):
                run.infer(image, channel)
            assert named(channel.sent) == before
    assert made > 20


@pytest.mark.parametrize("name", WRONG)
def test_what_no_honest_vendor_sends_ends_the_session(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, drawn = side_by_side(monkeypatch)
    check_refused(session, drawn[:2], *WRONG[name])
    monkeypatch.setattr(link, "accept", forgiving)
    with pytest.raises(NOTICED):
        check_refused(session, drawn[:1], *WRONG[name])


def test_bits_behind_the_last_field_end_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    session, drawn = side_by_side(monkeypatch)
    check_refused(session, drawn[:2], with_spare_bit, MessageValueError)
    monkeypatch.setattr(bits, "check_packed", lambda data, *_: np.frombuffer(data, np.uint8))
    with pytest.raises(NOTICED):
        check_refused(session, drawn[:1], with_spare_bit, MessageValueError)
