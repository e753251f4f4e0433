"""`audit_share`: a share of what a clinic prepares ahead of time is opened for the dealer audit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_owner import Client, sessions
from radiopaque.errors import ConnectionLostError, DealerError, ResourceError
from radiopaque.transport.grpc_client import GrpcChannel, Peer
from radiopaque.wire.frames import Frame
from tests.e2e.networks import lungs
from tests.e2e.parties import radiopaque, until
from tests.faults.inside import Inside
from tests.faults.test_dealer_audit import BURNT, states, wrongly


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    with Inside(tmp_path, lungs()) as inside:
        yield inside


def sharing(inside: Inside, share: float) -> Path:
    config = inside.clinic()
    config.write_text(f"audit_share = {share}\n{config.read_text()}")
    return config


def test_what_is_drawn_is_opened_when_it_was_dealt_and_nothing_else(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    dealt: list[int] = []
    draws = iter([False, True, True, False])

    def drawn(share: float) -> bool:
        assert share == 0.25
        dealt.append([state for state, _ in inside.owner.sessions().values()].count("READY"))
        return next(draws)

    monkeypatch.setattr(sessions, "drawn", drawn)
    with Client.from_config(sharing(inside, 0.25)) as client:
        prepared = client.prepare(3) + client.prepare(1)
        # each is with the model owner before anybody knows whether it will be opened
        assert dealt == [1, 2, 2, 2]
        assert [item.opened for item in prepared] == [False, True, True, False]
        for ledger, waiting in ((states(inside), "BOUND"), (inside.owner.sessions(), "READY")):
            for item in prepared:
                assert ledger[item.session] == (BURNT if item.opened else (waiting, True))
        network = inside.networks["it"]
        images = network.images()
        value, bound = network.plaintext(images)
        assert client.stock() == 2
        assert (np.abs(client.infer_tensor(images).outputs - value) <= bound).all()


def test_what_is_drawn_is_marked_at_both_before_its_key_leaves(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, object] = {}
    send = GrpcChannel.send

    def sending(channel: GrpcChannel, frame: Frame) -> None:
        at_owner = inside.owner.sessions()[frame.session]
        found[frame.kind.name] = states(inside)[frame.session], at_owner, client.stock()
        send(channel, frame)

    monkeypatch.setattr(GrpcChannel, "send", sending)
    with Client.from_config(sharing(inside, 1)) as client:
        client.prepare()
    assert found == {
        "START": (("FRESH", True), ("READY", True), 0),
        "KEY": (("OPENED", False), ("OPENED", False), 0),
    }


def test_without_a_share_nothing_is_opened(inside: Inside) -> None:
    with Client.from_config(inside.clinic()) as client:
        assert not any(item.opened for item in client.prepare(3))
        assert client.stock() == 3


@pytest.mark.parametrize("share", [0, 1])
def test_a_preparation_that_breaks_off_puts_nothing_in_stock(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """A crypto provider that stalls until the deadline decides when it does, and what it dealt."""
    upload = Peer.upload

    def losing(*arguments: Any) -> Any:
        upload(*arguments)
        raise ConnectionLostError("the reply was lost")

    with Client.from_config(sharing(inside, share)) as client:
        client.model()
        monkeypatch.setattr(Peer, "upload", losing)
        for attempt in (
            client.prepare,
            lambda: client.infer_tensor(inside.networks["it"].images()),
        ):
            with pytest.raises(ConnectionLostError):
                attempt()
            assert client.stock() == 0
        assert list(states(inside).values()) == [BURNT, BURNT]
        # the clinic says so, that they do not count against its limit
        until(lambda: list(inside.owner.sessions().values()) == [BURNT, BURNT])
        until(lambda: inside.material() == [])


def test_what_is_drawn_and_cannot_be_opened_is_gone(inside: Inside) -> None:
    def busy(*_: object) -> None:
        raise ResourceError("4 inferences are under way", retry_seconds=1)

    inside.lies["Audit"] = busy
    with Client.from_config(sharing(inside, 1)) as client:
        with pytest.raises(ResourceError):
            client.prepare()
        assert client.stock() == 0
        assert list(states(inside).values()) == [BURNT]


def test_the_command_says_what_was_opened(inside: Inside) -> None:
    done = radiopaque(
        "data-owner", "prepare", "--count", "2", "--config", sharing(inside, 1), timeout=90
    )
    assert done.returncode == 0
    assert "; 0 in stock\n" in done.stdout
    assert "dealer audit (audit_share 1): 2 of them opened, right, and gone\n" in done.stdout


def test_a_wrong_session_burns_the_stock(inside: Inside) -> None:
    """Also what was there before, of which none was opened."""
    inside.lies["Deal"] = wrongly({3})
    with Client.from_config(inside.clinic()) as client:
        client.prepare(2)
    config = sharing(inside, 1)
    with Client.from_config(config) as client:
        assert client.prepare()[0].opened
        with pytest.raises(DealerError, match="1 of 1 opened sessions are wrong, and the 2 left"):
            client.prepare(3)
        assert client.stock() == 0
    assert set(states(inside).values()) == {BURNT}
    inside.lies["Deal"] = wrongly({0})
    done = radiopaque("data-owner", "prepare", "--config", config, timeout=90)
    assert done.returncode == DealerError.exit_code
    assert done.stderr.startswith("DealerError: 1 of 1 opened sessions are wrong")
