"""A vendor's policy against clinics over real gRPC: what is refused, and what it costs nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from data_owner import Client
from model_owner.policy import Rules
from model_owner.service import ModelOwner
from radiopaque.certificates import Role
from radiopaque.errors import AccessError, ConfigError, ResourceError, SessionStateError
from radiopaque.graph.plan import Output
from radiopaque.ledger import Mark, State
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.v1 import services_pb2 as pb
from tests.e2e.networks import lungs, stack
from tests.e2e.parties import Clinic, Deployment, until
from tests.faults.hand import Hand
from tests.faults.inside import Inside


def test_an_inference_beyond_the_quota_keeps_its_session(tmp_path: Path) -> None:
    """It is refused before anything is sent, with the time to wait; no material is spent."""
    network = lungs()
    rules = Rules(images=2, period_seconds=7200.0)
    with Inside(tmp_path, network, rules=rules) as inside:
        with Client.from_config(inside.clinic()) as client:
            client.prepare(3)
            for _ in range(2):
                client.infer_tensor(network.images())
            assert client.stock() == 1
            with pytest.raises(
                ResourceError, match=r"2 images in 2 hours, is used up; try again in 7\d\d\d s"
            ):
                client.infer_tensor(network.images())
            assert client.stock() == 1
        states = [state for state, _ in inside.owner.sessions().values()]
        assert sorted(states) == ["BURNT", "BURNT", "READY"]


def test_the_images_of_a_batch_count_one_by_one(tmp_path: Path) -> None:
    """And asking for a session that was used already counts nothing."""
    network = stack()
    batch = network.plan.batch
    most = 3 * batch - 1
    with (
        Inside(tmp_path, network, rules=Rules(images=most)) as inside,
        Client.from_config(inside.clinic()) as client,
    ):
        client.prepare(3)
        used = client.infer_tensor(network.images()).session
        for _ in range(2):
            channel = client._model_owner.open("Infer", 20.0)
            channel.send(Frame(used, 0, Kind.START, 0, Mark(bytes(16)).encode()))
            with pytest.raises(SessionStateError, match="is BURNT at the model owner"):
                channel.receive()
            channel.close()
        client.infer_tensor(network.images())
        with pytest.raises(ResourceError, match=f"{most} images in 24 hours, is used up"):
            client.infer_tensor(network.images())


def test_a_start_before_its_session_is_ready_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a place, and meanwhile the clinic's own upload ends."""
    asked, go_on = threading.Event(), threading.Event()
    with Inside(tmp_path, lungs(), rules=Rules(images=1)) as inside:
        place = inside.hosting._inferring.place

        @contextmanager
        def waiting(*arguments: Any) -> Iterator[None]:
            asked.set()
            assert go_on.wait(30)
            with place(*arguments):
                yield

        monkeypatch.setattr(inside.hosting._inferring, "place", waiting)
        identity = inside.identity(Role.DATA_OWNER)
        with Hand(inside, identity, "it") as early, Hand(inside, identity, "it") as late:
            early.reserve()

            def parts() -> Iterator[pb.PrepareRequest]:
                *most, last = early.requests()
                yield from most
                assert asked.wait(30)
                yield last

            with ThreadPoolExecutor(2) as pool:
                uploading = pool.submit(early.upload, parts())
                until(lambda: inside.hosting._ledger.count(State.PREPARING) == 1)
                starting = pool.submit(early.start)
                uploading.result(30)
                go_on.set()
                early.run(starting.result(30))
            late.prepare()
            with pytest.raises(ResourceError, match="1 images in 24 hours, is used up"):
                late.start()


def test_a_clinic_that_is_not_on_the_list_gets_nothing(tmp_path: Path) -> None:
    network = lungs()
    with (
        Inside(tmp_path, network, rules=Rules(clinics=("somebody-else",))) as inside,
        Client.from_config(inside.clinic()) as client,
    ):
        for call in (client.models, client.prepare, client.model):
            with pytest.raises(AccessError, match="'data-owner' is not on this model owner's list"):
                call()
        assert inside.owner.sessions() == {}


def test_a_clinic_on_the_list_is_served(tmp_path: Path) -> None:
    network = lungs()
    with (
        Inside(tmp_path, network, rules=Rules(clinics=("data-owner",))) as inside,
        Client.from_config(inside.clinic()) as client,
    ):
        client.infer_tensor(network.images())


def test_a_model_that_reveals_more_than_the_policy_is_not_served(tmp_path: Path) -> None:
    network = lungs()
    gate = network.plan.output_step.gate
    assert isinstance(gate, Output)
    with Inside(tmp_path, network, rules=Rules(output_bits=gate.bits)) as inside:
        party = inside.hosting
        with pytest.raises(ConfigError, match="the policy allows"):
            ModelOwner(
                tmp_path / "other",
                party._hosted,
                party._dealer,
                party._admission.limits,
                rules=Rules(output_bits=gate.bits - 1),
            )


def test_a_process_keeps_its_quota_over_kill_9(serving: Deployment, clinic: Clinic) -> None:
    """From its configuration; whoever is not on the list is refused by the same process."""
    images = serving.networks["lungs-1.10"].images()
    stranger = serving.clinic(f"{clinic.name}-other")
    serving.owner.stop()
    serving.owner.write_config(
        f'sessions_per_clinic = 9\n[policy]\nimages = 1\nclinics = ["{clinic.name}"]'
    )
    try:
        serving.owner.restart()
        with Client.from_config(clinic.config) as client:
            client.infer_tensor(images)
            with pytest.raises(ResourceError, match="1 images in 24 hours, is used up"):
                client.infer_tensor(images)
            serving.owner.kill()
            serving.owner.restart()
            with pytest.raises(ResourceError, match="is used up"):
                client.infer_tensor(images)
        with (
            Client.from_config(stranger.config) as client,
            pytest.raises(AccessError, match="is not on this model owner's list"),
        ):
            client.models()
    finally:
        if serving.owner.running:
            serving.owner.stop()
        serving.owner.write_config("")
        serving.owner.restart()
