"""A caller that does not read, or does not answer, keeps its places, but never has all of them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from radiopaque.certificates import Identity, PeerIdentity, Role, issue, load_identity
from radiopaque.config import CryptoProviderLimits, ModelOwnerLimits
from radiopaque.engine.artefact import ArtefactKey
from radiopaque.errors import ConnectionLostError, ResourceError
from radiopaque.prg import SecretKey, new_id
from radiopaque.transport.grpc_server import Call
from radiopaque.wire.frames import Frame
from radiopaque.wire.v1 import services_pb2 as pb
from tests.e2e.networks import lungs
from tests.faults.hand import EPOCH, Hand
from tests.faults.inside import Inside

CLINIC = PeerIdentity(Role.DATA_OWNER, "a clinic")
GREEDY = PeerIdentity(Role.MODEL_OWNER, "greedy")


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    with Inside(tmp_path, lungs()) as inside:
        yield inside


def registered(inside: Inside) -> ArtefactKey:
    """An artefact of another vendor."""
    compiled = inside.compiled["it"]
    key = ArtefactKey.generate(compiled.key.id.plan_digest)
    request = pb.RegisterRequest(
        plan=compiled.plan_bytes,
        plan_digest=key.id.plan_digest,
        artefact=key.id.artefact,
        key_b=key.key_b.reveal(),
    )
    inside.dealing.register(request, Call(GREEDY, 60.0))
    return key


def unread(inside: Inside, key: ArtefactKey, call: Call) -> Iterator[Frame]:
    """Corrections of a session that the other vendor asks for, and has not begun to read."""
    request = pb.ReserveRequest(
        session=new_id(),
        plan_digest=key.id.plan_digest,
        artefact=key.id.artefact,
        key_d=SecretKey.generate().reveal(),
        epoch=EPOCH,
    )
    inside.dealing.reserve(request, Call(CLINIC, 60.0))
    key_o = SecretKey.generate().reveal()
    deal = pb.DealRequest(session=request.session, artefact=key.id.artefact, key_o=key_o)
    return inside.dealing.deal(deal, call)


def test_a_vendor_that_does_not_read_leaves_a_place_for_others(inside: Inside) -> None:
    key = registered(inside)
    share = CryptoProviderLimits().concurrent_deals - 1
    deals = [unread(inside, key, Call(GREEDY, 60.0)) for _ in range(share)]
    for deal in deals:
        next(deal)
    waiting = Call(GREEDY, 60.0)
    with (
        ThreadPoolExecutor(1) as pool,
        Hand(inside, inside.identity(Role.DATA_OWNER), "it") as hand,
    ):
        another = unread(inside, key, waiting)
        first = pool.submit(next, another)
        try:
            with pytest.raises(TimeoutError):
                first.result(0.5)
            hand.prepare()
        finally:
            waiting.cancellation.cancel()
        with pytest.raises(ConnectionLostError):
            first.result(10)
        hand.infer()
    for deal in deals:
        # to the end, so that nothing is left under way
        assert len(list(deal)) > 0


def test_a_clinic_that_does_not_answer_leaves_a_place_for_others(inside: Inside) -> None:
    share = ModelOwnerLimits().concurrent_inferences - 1
    silent = [Hand(inside, inside.identity(Role.DATA_OWNER), "it") for _ in range(share + 1)]
    channels = []
    try:
        for hand in silent:
            hand.prepare()
        channels = [hand.start() for hand in silent[:-1]]
        with pytest.raises(ResourceError, match=f"{share} inferences of data-owner"):
            silent[-1].start()
        with Hand(inside, another_clinic(inside), "it") as other:
            other.prepare()
            other.infer()
        for hand, channel in zip(silent, channels, strict=False):
            hand.run(channel)
        silent[-1].infer()
    finally:
        for channel in channels:
            channel.close()
        for hand in silent:
            hand.__exit__()


def another_clinic(inside: Inside) -> Identity:
    files = issue(inside.folder / "certificates", Role.DATA_OWNER, "another")
    return load_identity(files.certificate, files.key, files.ca, Role.DATA_OWNER)


def test_one_caller_has_not_all_calls() -> None:
    for limits in (CryptoProviderLimits(), ModelOwnerLimits()):
        assert limits.calls_per_peer < limits.concurrent_calls
