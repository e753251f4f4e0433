"""Every field of every message, changed by the peer that sends it.

Every field that says what a message is must be right; contents are its sender's own, and may spoil
its own result. Another session, live all the while, is right afterwards. What somebody on the way
changes: :mod:`tests.faults.test_transit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from data_owner import Client
from radiopaque.certificates import Identity, Role
from radiopaque.errors import (
    MessageOrderError,
    MessageSizeError,
    MessageValueError,
    PlanDigestError,
    ProtocolError,
    RadiopaqueError,
    RestoredLedgerError,
    UnknownModelError,
    UnknownSessionError,
)
from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import Peer
from radiopaque.transport.link import accept
from radiopaque.wire import frames, messages
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.v1 import services_pb2 as pb
from tests.e2e.networks import lungs
from tests.faults.hand import EPOCH, SECONDS, Hand
from tests.faults.inside import Inside, redealing
from tests.faults.mutations import (
    AUDITED,
    DEAL,
    FROM_CLINIC,
    FROM_OWNER,
    HEADER,
    REGISTER,
    REPLIES,
    RESERVE,
    TABLES,
    Fault,
    Meddled,
    answering,
    assert_burnt,
    assert_right,
    at,
    bit_of_payload,
    lengths,
    meddling,
    other,
    outcome,
    replacing,
    ways,
)
from tests.faults.test_messages import changed


def test_no_field_of_any_message_is_left_out() -> None:
    found = {
        name: {field.name for field in message.fields}
        for name, message in pb.DESCRIPTOR.message_types_by_name.items()
        if message.fields
    }
    assert found == {name: set(table) for name, table in TABLES.items()}


@pytest.mark.parametrize("kind", Kind)
def test_every_bit_of_a_frame(kind: Kind) -> None:
    """The encoding with any one bit of a header changed is no frame, or one that is not due."""
    session, payload = bytes(range(16)), b"payload"
    due = (session, 300, kind, 2, len(payload))
    good = frames.encode(Frame(session, 300, kind, 2, payload))
    assert accept(frames.decode(good), *due).tobytes() == payload
    bad = [good[:end] for end in range(len(good))] + [good + b"\0", good + good]
    for bit in range(8 * (len(good) - len(payload))):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        bad.append(bytes(data))
    bad += [frames.encode(Frame(session, 300, one, 2, payload)) for one in Kind if one is not kind]
    for damaged in bad:
        with pytest.raises(ProtocolError):
            accept(frames.decode(damaged), *due)


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    with Inside(tmp_path_factory.mktemp("mutations"), lungs()) as inside:
        yield inside


@pytest.fixture
def identity(inside: Inside) -> Identity:
    return inside.identity(Role.DATA_OWNER)  # type: ignore[no-any-return]


@pytest.fixture
def live(inside: Inside, identity: Identity) -> Iterator[Hand]:
    """A session that is under way while a test does its worst, and must be right afterwards."""
    with Hand(inside, identity, "it") as hand:  # type: ignore[arg-type]
        channel = hand.prepare().start()
        yield hand
        inside.lies.clear()
        images = hand.network.images(3)
        value, bound = hand.network.plaintext(images)
        assert (np.abs(hand.run(channel, images) - value) <= bound).all()


@pytest.fixture
def hand(inside: Inside, identity: Identity) -> Iterator[Hand]:
    with Hand(inside, identity, "it") as hand:  # type: ignore[arg-type]
        yield hand


@pytest.mark.parametrize("kind", FROM_CLINIC)
def test_a_clinics_frame_in_the_wrong_place(
    inside: Inside, live: Hand, hand: Hand, kind: Kind
) -> None:
    for change in ways(live).values():
        hand.renew()
        channel = Meddled(hand.prepare().start(), kind, change)
        with pytest.raises((MessageOrderError, MessageSizeError)):
            hand.run(channel)
        assert_burnt(inside, hand.session)


@pytest.mark.parametrize("kind", FROM_OWNER)
def test_a_model_owners_frame_in_the_wrong_place(inside: Inside, live: Hand, kind: Kind) -> None:
    with Client.from_config(inside.clinic(f"frames-{kind.name}")) as client:
        client.model()
        for change in ways(live).values():
            (prepared,) = client.prepare()
            inside.lies["Infer"] = meddling(kind, change)
            with pytest.raises((MessageOrderError, MessageSizeError)):
                client.infer_tensor(live.network.images())
            inside.lies.clear()
            assert_burnt(inside, prepared.session)
        assert_right(client, live)


@pytest.mark.parametrize("place", [0.3, 0.9999])
def test_contents_may_spoil_their_own_result_alone(
    inside: Inside, live: Hand, hand: Hand, place: float
) -> None:
    """A bit of each payload: the session ends as ever or in a typed error."""
    change = bit_of_payload(place)
    for kind in FROM_CLINIC:
        hand.renew()
        channel = Meddled(hand.prepare().start(), kind, change)
        outcome(lambda channel=channel: hand.run(channel))  # type: ignore[misc]
        assert_burnt(inside, hand.session)
    hand.renew()
    hand.reserve()
    first, *rest = hand.frames
    meddled = change(None, first)  # type: ignore[arg-type]
    if outcome(lambda: hand.upload(hand.requests([meddled, *rest]))) is None:
        outcome(hand.infer)
    with Client.from_config(inside.clinic(f"contents-{place}")) as client:
        for kind in FROM_OWNER:
            inside.lies["Infer"] = meddling(kind, change)
            outcome(lambda: client.infer_tensor(live.network.images()))
        inside.lies.clear()
        inside.lies["Deal"] = redealing(lambda good: [change(None, good[0]), *good[1:]])  # type: ignore[arg-type]
        outcome(lambda: client.infer_tensor(live.network.images()))
        inside.lies.clear()
        assert_right(client, live)


@pytest.mark.parametrize("field", RESERVE)
def test_reserve(live: Hand, hand: Hand, field: str) -> None:
    good = {
        "session": hand.session,
        "plan_digest": hand.artefact.plan_digest,
        "artefact": hand.artefact.artefact,
        "key_d": hand.key_d.reveal(),
        "epoch": EPOCH,
    }[field]
    for value in lengths(good):
        with pytest.raises(MessageSizeError, match="must have"):
            hand.reserve(SECONDS, **{field: value})
    hand.reserve(SECONDS, **{field: other(good)})
    expected = RESERVE[field]
    if expected is None:
        hand.upload()
        outcome(hand.infer)
        return
    with pytest.raises(expected):
        hand.upload()


@pytest.mark.parametrize("field", HEADER)
def test_the_header_of_an_offline_message(live: Hand, hand: Hand, field: str) -> None:
    hand.reserve()
    header, *rest = hand.requests()
    good = getattr(header.header, field)
    for value in lengths(good):
        with pytest.raises((MessageSizeError, PlanDigestError)):
            hand.upload([hand.header(**{field: value}), *rest])
    with pytest.raises(HEADER[field] or RadiopaqueError):
        hand.upload([hand.header(**{field: other(good)}), *rest])
    hand.renew()
    hand.prepare().infer()


def test_the_parts_of_an_offline_message(live: Hand, hand: Hand) -> None:
    for order in ((0, 0), (1, 0), (0, 1, 0)):
        hand.renew()
        hand.reserve()
        parts = list(hand.requests())
        with pytest.raises((MessageOrderError, UnknownSessionError)):
            hand.upload([parts[number] for number in order])


@pytest.fixture
def provider(inside: Inside) -> Iterator[Peer]:
    """The crypto provider, as the model owner calls it."""
    identity = inside.identity(Role.MODEL_OWNER)
    with Peer(Role.CRYPTO_PROVIDER, inside.provider.address, identity) as peer:
        yield peer


@pytest.mark.parametrize("field", DEAL)
def test_deal(live: Hand, hand: Hand, provider: Peer, field: str) -> None:
    hand.reserve()
    good = {"session": hand.session, "artefact": hand.artefact.artefact, "key_o": bytes(32)}

    def deal(value: bytes) -> list[Frame]:
        request = pb.DealRequest(**(good | {field: value}))
        return list(provider.download_frames("Deal", request, Counters(), SECONDS))

    for value in lengths(good[field]):
        with pytest.raises(MessageSizeError, match="must have"):
            deal(value)
    expected = DEAL[field]
    if expected is None:
        assert {frame.kind for frame in deal(other(good[field]))} == {Kind.CORRECTION}
        return
    with pytest.raises(expected):
        deal(other(good[field]))
    # what was refused has not used the reservation up
    assert deal(good[field])


@pytest.mark.parametrize("field", REGISTER)
def test_register(inside: Inside, live: Hand, provider: Peer, field: str) -> None:
    compiled = inside.compiled["it"]
    good = {
        "plan": compiled.plan_bytes,
        "plan_digest": compiled.key.id.plan_digest,
        "artefact": compiled.key.id.artefact,
        "key_b": compiled.key.key_b.reveal(),
    }

    def register(value: bytes) -> None:
        request = pb.RegisterRequest(**(good | {field: value}))
        provider.call("Register", request, pb.RegisterReply, Counters(), SECONDS)

    for value in lengths(good[field]):
        with pytest.raises((MessageSizeError, PlanDigestError)):
            register(value)
    expected = REGISTER[field]
    if expected is None:
        # the name of another artefact, which is the model owner's to choose
        register(other(good[field]))
        return
    with pytest.raises(expected):
        register(other(good[field]))


def test_what_a_clinic_asks_for(live: Hand) -> None:
    plan = live.network.plan
    for name, version in ((other(plan.name), plan.version), (plan.name, other(plan.version))):
        request = pb.FetchPlanRequest(name=name, version=version)
        with pytest.raises(UnknownModelError):
            live.owner.call("FetchPlan", request, pb.FetchPlanReply, Counters(), SECONDS)
    asked = pb.FetchMaskedWeightsRequest(artefact=other(live.artefact.artefact))
    with pytest.raises(UnknownModelError):
        list(live.owner.download("FetchMaskedWeights", asked, pb.Chunk, Counters(), SECONDS))


@pytest.mark.parametrize(
    ("method", "field"), [(method, field) for method, table in REPLIES.items() for field in table]
)
def test_replies_of_a_model_owner(inside: Inside, live: Hand, method: str, field: str) -> None:
    change = replacing(field)
    if method == "ListModels":
        lie = answering(lambda reply: change(reply.models[0]))
    elif method == "FetchMaskedWeights":

        def lie(honest: Any, request: Any, call: Any) -> Iterator[pb.Chunk]:
            for chunk in honest(request, call):
                change(chunk)
                yield chunk
    else:
        lie = answering(change)
    inside.lies[method] = lie
    expected = REPLIES[method][field]
    with Client.from_config(inside.clinic(f"{method}-{field}")) as client:
        if expected is None:
            assert client.models()
            assert_right(client, live)
            return
        with pytest.raises(expected):
            client.model()
        inside.lies.clear()
        assert_right(client, live)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("its own epoch", at(0), None),
        ("the clinic's epoch", at(16), None),
        ("a session that never was", at(32), RestoredLedgerError),
        ("cut", lambda mark: mark[:-1], MessageSizeError),
        ("padded", lambda mark: mark + b"\0", MessageSizeError),
        ("nothing", lambda mark: b"", MessageSizeError),
    ],
)
def test_the_mark_in_the_reply_to_reserve(
    inside: Inside, live: Hand, name: str, change: Callable[[bytes], bytes], expected: Fault
) -> None:
    with Client.from_config(inside.clinic(f"mark-{name.replace(' ', '-')}")) as client:
        client.prepare()
        inside.lies["Reserve"] = answering(replacing("mark", change))
        if expected is None:
            client.prepare()
        else:
            with pytest.raises(expected):
                client.prepare()
        inside.lies.clear()
        assert_right(client, live)


@pytest.mark.parametrize("start", [0, 16, 32])
def test_the_mark_in_start(live: Hand, hand: Hand, start: int) -> None:
    """It speaks of ledgers of the clinic alone: another one changes nothing of a session."""
    channel = hand.prepare().owner.open("Infer", SECONDS)
    mark = at(start)(hand.mark.encode())
    channel.send(Frame(hand.session, 0, Kind.START, 0, mark))
    assert channel.receive().kind is Kind.READY
    images = hand.network.images()
    value, bound = hand.network.plaintext(images)
    assert (np.abs(hand.run(channel, images) - value) <= bound).all()


@pytest.mark.parametrize("field", [*AUDITED, "key"])
def test_the_key_that_a_clinic_opens(inside: Inside, live: Hand, hand: Hand, field: str) -> None:
    key = Frame(hand.session, 0, Kind.KEY, 0, hand.key_d.reveal())
    sent = AUDITED[field](key) if field in AUDITED else changed(key, payload=bytes(32))
    channel = hand.prepare().owner.open("Audit", SECONDS)
    channel.send(Frame(hand.session, 0, Kind.START, 0, hand.mark.encode()))
    assert channel.receive().kind is Kind.READY
    channel.send(sent)
    with pytest.raises(MessageValueError if field == "key" else ProtocolError):
        channel.receive()
    channel.close()
    assert_burnt(inside, hand.session)


@pytest.mark.parametrize("field", AUDITED)
def test_the_verdict_of_a_model_owner(inside: Inside, live: Hand, field: str) -> None:
    with Client.from_config(inside.clinic(f"verdict-{field}")) as client:
        client.prepare()
        inside.lies["Audit"] = meddling(Kind.VERDICT, lambda _, frame: AUDITED[field](frame))
        with pytest.raises((MessageOrderError, MessageSizeError)):
            client.audit(1.0)
        inside.lies.clear()
        assert_right(client, live)


def test_fields_in_another_order_are_refused() -> None:
    """As many bytes, and the same to a lenient parser: not what this version writes."""
    first = pb.DealRequest(session=bytes(16)).SerializeToString()
    second = pb.DealRequest(artefact=bytes(16)).SerializeToString()
    messages.decode(pb.DealRequest, first + second)
    with pytest.raises(MessageValueError, match="another order"):
        messages.decode(pb.DealRequest, second + first)
