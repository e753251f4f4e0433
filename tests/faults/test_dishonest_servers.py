"""What servers may send a clinic and each other, and must not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from data_owner import Client
from radiopaque.errors import (
    ConnectionLostError,
    MessageOrderError,
    MessageSizeError,
    MessageValueError,
    PlanDigestError,
    PlanError,
    RadiopaqueError,
    SessionStateError,
)
from radiopaque.graph.plan import plan_digest
from radiopaque.ledger import Mark
from radiopaque.prg import new_id
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.plans import encode_plan
from radiopaque.wire.v1 import services_pb2 as pb
from tests.e2e.networks import lungs
from tests.e2e.parties import ledger_on_disk, until
from tests.faults.inside import Inside, Rewritten, redealing, rewriting
from tests.faults.test_messages import ONE_FRAME, lengthened, shortened
from tests.plans import product_plan

DUE = (Kind.READY, Kind.TOP_BIT, Kind.OPENING, Kind.DECISION, Kind.RESULT)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    with Inside(tmp_path_factory.mktemp("inside"), lungs()) as inside:
        yield inside


@pytest.fixture(scope="module")
def shared_client(shared: Inside) -> Iterator[Client]:
    with Client.from_config(shared.clinic()) as client:
        yield client


@pytest.fixture
def inside(shared: Inside) -> Iterator[Inside]:
    yield shared
    shared.lies.clear()


@pytest.fixture
def client(inside: Inside, shared_client: Client) -> Iterator[Client]:
    """A clinic that gets a good answer afterwards, without being set up again."""
    yield shared_client
    inside.lies.clear()
    network = inside.networks["it"]
    images = network.images(9)
    value, bound = network.plaintext(images)
    assert (np.abs(shared_client.infer_tensor(images).outputs - value) <= bound).all()


def clinic_states(inside: Inside) -> dict[bytes, tuple[str, bool]]:
    return ledger_on_disk(inside.folder / "clinic")


def once(kind: Kind, change: Callable[[Frame], list[Frame]]) -> Callable[[Frame], list[Frame]]:
    done: list[Kind] = []

    def apply(frame: Frame) -> list[Frame]:
        if frame.kind is not kind or done:
            return [frame]
        done.append(kind)
        return change(frame)

    return apply


@pytest.mark.parametrize(
    ("kind", "fault"),
    [(kind, fault) for kind in DUE for fault in ONE_FRAME],
)
def test_a_clinic_refuses_a_bad_frame(
    inside: Inside, client: Client, kind: Kind, fault: str
) -> None:
    change, expected = ONE_FRAME[fault]
    seen: list[Rewritten] = []
    (prepared,) = client.prepare()
    inside.lies["Infer"] = rewriting(once(kind, lambda frame: [change(frame)]), seen)
    with pytest.raises(RadiopaqueError) as caught:
        client.infer_tensor(inside.networks["it"].images())
    assert type(caught.value) is expected, caught.value
    assert clinic_states(inside)[prepared.session] == ("BURNT", False)
    # the vendor is not told what the clinic noticed, only that the stream is over
    until(lambda: inside.owner.sessions()[prepared.session] == ("BURNT", False))
    if kind not in (Kind.RESULT, Kind.READY):
        until(lambda: seen[0].ending is not None)
        assert type(seen[0].ending) is ConnectionLostError
        assert str(seen[0].ending) == "the peer has ended the stream"


@pytest.mark.parametrize("kind", [Kind.TOP_BIT, Kind.OPENING, Kind.DECISION])
def test_a_clinic_answers_a_repeated_frame_once(inside: Inside, client: Client, kind: Kind) -> None:
    """Asking twice for the same gate is the attack that would tell the clinic's shares."""
    seen: list[Rewritten] = []
    inside.lies["Infer"] = rewriting(once(kind, lambda frame: [frame, frame]), seen)
    with pytest.raises(MessageOrderError):
        client.infer_tensor(inside.networks["it"].images())
    until(lambda: seen[0].ending is not None)
    answered = [(frame.gate, frame.kind, frame.block) for frame in seen[0].received]
    assert len(answered) == len(set(answered))


def test_a_vendor_that_says_ready_again_gets_no_second_image(
    inside: Inside, client: Client
) -> None:
    """The clinic's own ledger refuses, whatever the vendor is willing to do."""
    from data_owner.sessions import Reserved

    images = inside.networks["it"].images()
    used = client.infer_tensor(images).session
    received: list[Frame] = []

    def always_ready(honest: object, channel: Any, call: object) -> None:
        received.append(channel.receive())
        channel.send(Frame(received[0].session, 0, Kind.READY, 0, Mark(bytes(16)).encode()))
        received.append(channel.receive())

    inside.lies["Infer"] = always_ready
    with pytest.raises(SessionStateError, match="is BURNT at the data owner, not BOUND"):
        client._sessions.infer(client.model(), Reserved(used), images)
    assert [(frame.session, frame.kind) for frame in received] == [(used, Kind.START)]


DEALT: dict[str, tuple[Callable[[list[Frame]], list[Frame]], type[RadiopaqueError]]] = {
    "too short": (lambda good: [shortened(good[0]), *good[1:]], MessageSizeError),
    "too long": (lambda good: [lengthened(good[0]), *good[1:]], MessageSizeError),
    "repeated": (lambda good: [good[0], *good], MessageOrderError),
    "out of order": (lambda good: [good[1], good[0], *good[2:]], MessageOrderError),
    "one left out": (lambda good: good[1:], MessageOrderError),
    "ended early": (lambda good: good[:-1], MessageOrderError),
    "nothing": (lambda good: [], MessageOrderError),
    "one more": (lambda good: [*good, good[-1]], MessageOrderError),
    "another session's": (
        lambda good: [
            Frame(new_id(), frame.gate, frame.kind, frame.block, frame.payload) for frame in good
        ],
        MessageOrderError,
    ),
    "offline frames": (
        lambda good: [
            Frame(frame.session, frame.gate, Kind.OFFLINE, frame.block, frame.payload)
            for frame in good
        ],
        MessageOrderError,
    ),
}


@pytest.mark.parametrize("fault", DEALT)
def test_a_model_owner_refuses_bad_corrections(inside: Inside, client: Client, fault: str) -> None:
    change, expected = DEALT[fault]
    inside.lies["Deal"] = redealing(change)
    before = set(clinic_states(inside))
    with pytest.raises(RadiopaqueError) as caught:
        client.prepare()
    assert type(caught.value) is expected, caught.value
    (session,) = set(clinic_states(inside)) - before
    assert clinic_states(inside)[session] == ("BURNT", False)
    assert inside.owner.sessions()[session] == ("BURNT", False)
    assert inside.provider.sessions()[session] == ("BURNT", False)
    assert not [path for path in inside.material() if path.stem == session.hex()]


def reply_with(**fields: Any) -> Callable[..., Any]:
    """A method whose reply has other fields."""

    def answer(honest: Any, request: Any, call: Any) -> Any:
        reply = honest(request, call)
        for name, value in fields.items():
            setattr(reply, name, value)
        return reply

    return answer


HUGE = encode_plan(product_plan(1 << 14, 1 << 14))
OFFERS: dict[str, tuple[dict[str, Any], type[RadiopaqueError], str]] = {
    "another digest": ({"plan_digest": bytes(32)}, PlanDigestError, "digest"),
    "a digest too short": ({"plan_digest": bytes(31)}, MessageSizeError, "must have 32"),
    "no plan": ({"plan": b"\xff" * 50}, PlanDigestError, "fetch"),
    "a plan that asks for gigabytes": (
        {"plan": HUGE, "plan_digest": plan_digest(HUGE)},
        PlanError,
        "the data owner, over its limit model_bytes",
    ),
    "another model's name": ({"name": "hearts"}, MessageValueError, "another one"),
    "an artefact id too long": ({"artefact": bytes(17)}, MessageSizeError, "must have 16"),
    "another F": ({"weights_digest": bytes(32)}, PlanDigestError, "stated digest"),
}


@pytest.mark.parametrize("fault", OFFERS)
def test_a_clinic_checks_what_it_is_offered(inside: Inside, client: Client, fault: str) -> None:
    fields, expected, text = OFFERS[fault]
    inside.lies["FetchPlan"] = reply_with(**fields)
    with (
        Client.from_config(inside.clinic("suspicious")) as other,
        pytest.raises(expected, match=text),
    ):
        other.model()
    assert ledger_on_disk(inside.folder / "suspicious") == {}


def chunks(change: Callable[[list[pb.Chunk]], list[pb.Chunk]]) -> Callable[..., Any]:
    return lambda honest, request, call: iter(change(list(honest(request, call))))


WEIGHTS: dict[str, tuple[Callable[[list[pb.Chunk]], list[pb.Chunk]], type[RadiopaqueError]]] = {
    "flipped": (
        lambda good: [pb.Chunk(offset=0, data=bytes([good[0].data[0] ^ 1]) + good[0].data[1:])],
        PlanDigestError,
    ),
    "cut": (lambda good: [pb.Chunk(offset=0, data=good[0].data[:-1])], PlanDigestError),
    "nothing": (lambda good: [], PlanDigestError),
    "twice": (lambda good: [*good, *good], MessageOrderError),
    "more": (
        lambda good: [*good, pb.Chunk(offset=len(good[0].data), data=b"\0")],
        MessageSizeError,
    ),
    "shifted": (lambda good: [pb.Chunk(offset=1, data=good[0].data)], MessageOrderError),
}


@pytest.mark.parametrize("fault", WEIGHTS)
def test_a_clinic_checks_the_masked_weights(inside: Inside, client: Client, fault: str) -> None:
    change, expected = WEIGHTS[fault]
    inside.lies["FetchMaskedWeights"] = chunks(change)
    with (
        Client.from_config(inside.clinic(f"fetching-{fault}")) as other,
        pytest.raises(expected, match=r"again|longer"),
    ):
        other.model()
    assert list((inside.folder / f"fetching-{fault}" / "models").iterdir()) == []


def test_damaged_masked_weights_on_disk_are_fetched_again(inside: Inside, client: Client) -> None:
    config = inside.clinic("with-a-bad-disk")
    network = inside.networks["it"]
    with Client.from_config(config) as other:
        other.model()
        complete = other.setup.received_bytes
    (path,) = (inside.folder / "with-a-bad-disk" / "models").iterdir()
    good = path.read_bytes()
    for bad in (good[:-1], bytes([good[0] ^ 1]) + good[1:], b""):
        path.write_bytes(bad)
        with Client.from_config(config) as other:
            images = network.images(1)
            outputs = other.infer_tensor(images).outputs
            assert other.setup.received_bytes == complete
        value, bound = network.plaintext(images)
        assert (np.abs(outputs - value) <= bound).all()
        assert path.read_bytes() == good
