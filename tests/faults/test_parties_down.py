"""Parties that are not there, go away, or take too long."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import pytest

from data_owner import Client
from radiopaque.errors import (
    ConnectionLostError,
    DeadlineError,
    PeerUnavailableError,
    RadiopaqueError,
    TransportError,
)
from radiopaque.transport.grpc_client import Peer
from radiopaque.wire.frames import Frame, Kind
from tests.e2e.networks import Network
from tests.e2e.parties import Clinic, Deployment, until
from tests.faults.hand import Hand, Tampered

Result = TypeVar("Result")


def assert_right(network: Network, images: np.ndarray, outputs: np.ndarray) -> None:
    value, bound = network.plaintext(images)
    assert (np.abs(outputs - value) <= bound).all()


def patiently(call: Callable[[], Result]) -> Result:
    """Again until a server that was started is found, for a few seconds."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return call()
        except PeerUnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class Background:
    """A call in a thread; its error or its result."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.error: Exception | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except RadiopaqueError as error:
            self.error = error

    def result(self) -> Exception | None:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.error


def test_both_down_at_the_start(serving: Deployment, clinic: Clinic) -> None:
    serving.owner.stop()
    done = clinic.command("models")
    assert done.returncode == 7
    assert done.stderr.startswith("PeerUnavailableError: cannot reach the model owner")
    assert "Traceback" not in done.stderr
    with Client.from_config(clinic.config) as client:
        with pytest.raises(PeerUnavailableError, match="cannot reach the model owner at 127"):
            client.models()
        serving.provider.stop()
        with pytest.raises(PeerUnavailableError, match="check that it is running"):
            client.prepare()
        serving.ensure_running()
        # the same client works soon after they are there
        images = serving.networks["lungs-1.10"].images()
        outputs = patiently(lambda: client.infer_tensor(images)).outputs
    assert_right(serving.networks["lungs-1.10"], images, outputs)


def test_crypto_provider_down(serving: Deployment, clinic: Clinic) -> None:
    """Preparing fails before the vendor is bothered; prepared sessions do not need it."""
    images = serving.networks["lungs-1.10"].images(1)
    with Client.from_config(clinic.config) as client:
        client.prepare()
        serving.provider.kill()
        with pytest.raises(PeerUnavailableError, match="cannot reach the crypto provider"):
            client.prepare()
        assert sorted(clinic.sessions().values()) == [("BOUND", True), ("BURNT", False)]
        outputs = client.infer_tensor(images).outputs
        assert_right(serving.networks["lungs-1.10"], images, outputs)
    serving.ensure_running()


def test_crypto_provider_down_for_the_model_owner_only(serving: Deployment, hand: Hand) -> None:
    """It goes away between the clinic's reservation and the model owner's request."""
    hand.reserve()
    serving.provider.kill()
    with pytest.raises(TransportError, match="crypto provider"):
        hand.upload()
    assert serving.owner.sessions()[hand.session] == ("BURNT", False)
    assert serving.material(hand.session) == []
    serving.ensure_running()


def test_crypto_provider_killed_while_it_deals(
    serving: Deployment, clinic: Clinic, reserved_then_paused: Callable[[], None]
) -> None:
    with Client.from_config(clinic.config) as client:
        client.model()
        reserved_then_paused()
        preparing = Background(client.prepare)
        until(lambda: "PREPARING" in states(serving, clinic))
        serving.provider.kill()
        error = preparing.result()
        assert isinstance(error, TransportError), error
        assert "crypto provider" in str(error)
        (session,) = clinic.sessions()
        assert serving.owner.sessions()[session] == ("BURNT", False)
        assert serving.material(session) == []
        serving.provider.restart()
        patiently(client.prepare)


def test_model_owner_killed_while_it_prepares(
    serving: Deployment, clinic: Clinic, reserved_then_paused: Callable[[], None]
) -> None:
    with Client.from_config(clinic.config) as client:
        client.model()
        reserved_then_paused()
        preparing = Background(client.prepare)
        until(lambda: "PREPARING" in states(serving, clinic))
        serving.owner.kill()
        error = preparing.result()
        assert isinstance(error, ConnectionLostError), error
        assert "the connection to the model owner" in str(error)
        serving.provider.resume()
        serving.owner.restart()
        (session,) = clinic.sessions()
        assert serving.owner.sessions()[session] == ("BURNT", False)
        assert serving.material(session) == []


@pytest.fixture
def reserved_then_paused(
    serving: Deployment, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """The next reservation is answered, the next request for corrections is not."""

    def arm() -> None:
        upload = Peer.upload

        def pausing(*arguments: Any) -> Any:
            monkeypatch.setattr(Peer, "upload", upload)
            serving.provider.pause()
            return upload(*arguments)

        monkeypatch.setattr(Peer, "upload", pausing)

    return arm


def states(serving: Deployment, clinic: Clinic) -> set[str]:
    """The states at the model owner of this clinic's sessions."""
    known = serving.owner.sessions()
    return {known[session][0] for session in clinic.sessions() if session in known}


@pytest.mark.parametrize("kind", [Kind.IMAGE, Kind.SELECTION, Kind.RERANDOMISED])
def test_model_owner_killed_during_an_inference(
    serving: Deployment, hand: Hand, kind: Kind
) -> None:
    channel = hand.prepare().start()

    def kill(frame: Frame) -> Iterable[Frame]:
        if frame.kind is kind and serving.owner.running:
            serving.owner.kill()
        return [frame]

    began = time.monotonic()
    with pytest.raises(ConnectionLostError, match="a session under way is spent"):
        hand.run(Tampered(channel, kill))
    assert time.monotonic() - began < 10
    serving.owner.restart()
    assert serving.owner.sessions()[hand.session] == ("BURNT", False)
    assert serving.material(hand.session) == []


def test_stock_outlives_a_vendor_that_is_down(serving: Deployment, clinic: Clinic) -> None:
    images = serving.networks["lungs-1.10"].images(2)
    with Client.from_config(clinic.config) as client:
        (prepared,) = client.prepare()
        serving.owner.stop()
        with pytest.raises(PeerUnavailableError):
            client.infer_tensor(images)
        assert clinic.sessions() == {prepared.session: ("BOUND", True)}
        serving.owner.restart()
        answer = patiently(lambda: client.infer_tensor(images))
    assert answer.session == prepared.session
    assert_right(serving.networks["lungs-1.10"], images, answer.outputs)


def test_a_deadline_that_nobody_can_keep(serving: Deployment) -> None:
    hurried = serving.clinic("hurried", deadline_seconds=1e-6)
    done = hurried.command("models", "--json")
    assert done.returncode == 7
    assert json.loads(done.stdout)["error"] == "DeadlineError"
    with (
        Client.from_config(hurried.config) as client,
        pytest.raises(DeadlineError, match="deadline_seconds"),
    ):
        client.prepare()


@pytest.mark.parametrize("party", ["owner", "provider"])
def test_a_server_that_does_not_answer(serving: Deployment, party: str) -> None:
    clinic = serving.clinic(f"waiting-for-{party}", deadline_seconds=0.5)
    server = getattr(serving, party)
    with Client.from_config(clinic.config) as client:
        client.model()
        server.pause()
        try:
            began = time.monotonic()
            with pytest.raises(DeadlineError, match="did not finish in the time allowed"):
                client.prepare()
            assert time.monotonic() - began < 5
        finally:
            server.resume()


def test_the_deadline_passes_while_preparing(
    serving: Deployment, reserved_then_paused: Callable[[], None]
) -> None:
    clinic = serving.clinic("impatient", deadline_seconds=1.0)
    with Client.from_config(clinic.config) as client:
        client.model()
        reserved_then_paused()
        began = time.monotonic()
        with pytest.raises(DeadlineError):
            client.prepare()
        assert 0.9 < time.monotonic() - began < 8
        (session,) = clinic.sessions()
        until(lambda: serving.owner.sessions()[session] == ("BURNT", False))
        until(lambda: serving.material(session) == [])
        serving.provider.resume()
        client.prepare()


def test_the_deadline_passes_during_an_inference(serving: Deployment, hand: Hand) -> None:
    """A clinic that falls silent: both sides notice, and the session is burnt."""
    channel = hand.prepare().start(seconds=1.0)
    began = time.monotonic()
    with pytest.raises(DeadlineError):
        channel.receive()
    assert 0.5 < time.monotonic() - began < 5
    serving.assert_used_up(hand.session)
    entry = f'"event": "inference broken off", "session": "{hand.session[:4].hex()}"'
    until(lambda: entry in serving.owner.log.read_text())


def test_a_paused_model_owner_is_waited_for(serving: Deployment, hand: Hand) -> None:
    """Slow is not dead: within the deadline the result arrives."""
    channel = hand.prepare().start()
    images = hand.network.images(3)

    def pause(frame: Frame) -> Iterable[Frame]:
        if frame.kind is Kind.IMAGE:
            serving.owner.pause()
            threading.Timer(0.5, serving.owner.resume).start()
        return [frame]

    assert_right(hand.network, images, hand.run(Tampered(channel, pause), images))
    serving.assert_used_up(hand.session)
