"""Three parties, two of them in processes of their own, from an image's tensor to the result."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data_owner import Client
from data_owner.results import probabilities
from radiopaque.engine.artefact import masked_weights_size
from radiopaque.errors import UnknownModelError
from radiopaque.gates import plan_cost
from radiopaque.graph.plan import Plan
from radiopaque.kernels.bits import packed_size
from radiopaque.wire import frames
from radiopaque.wire.frames import Frame, Kind
from tests.e2e.networks import Network
from tests.e2e.parties import Clinic, Deployment
from tests.protocol.sessions import schedule

MODELS = {
    "lungs-1.9": ("lungs", "1.9"),
    "lungs-1.10": ("lungs", "1.10"),
    "findings": ("findings", None),
    "stack": ("stack", None),
}


@pytest.fixture(scope="module")
def clinics(processes: Deployment) -> dict[str, Clinic]:
    """One clinic for every model."""
    return {
        folder: processes.clinic(f"clinic-of-{folder}", name, version)
        for folder, (name, version) in MODELS.items()
    }


def assert_within(network: Network, images: np.ndarray, outputs: np.ndarray) -> None:
    value, bound = network.plaintext(images)
    assert outputs.shape == value.shape
    assert (np.abs(outputs - value) <= bound).all(), (outputs, value, bound)


@pytest.mark.parametrize("folder", MODELS)
def test_the_result_is_that_of_the_plaintext(
    deployment: Deployment, clinics: dict[str, Clinic], folder: str
) -> None:
    """Rings of 32 and 64 bits, one image and three at once, each within the propagated units."""
    network = deployment.networks[folder]
    answers = []
    with Client.from_config(clinics[folder].config) as client:
        offer = client.model().offer
        assert (offer.name, offer.version) == (network.plan.name, network.plan.version)
        for seed in (1, 2):
            images = network.images(seed)
            answers.append(client.infer_tensor(images))
            assert_within(network, images, answers[-1].outputs)
    # the bound tells one image from another, so results cannot be mixed up unnoticed
    _, bound = network.plaintext(network.images(1))
    assert (np.abs(answers[0].outputs - answers[1].outputs) > bound).any()
    deployment.assert_used_up(*(answer.session for answer in answers))


def test_multilabel_and_raw_reports(
    deployment: Deployment, clinics: dict[str, Clinic], pictures: dict[str, str]
) -> None:
    with Client.from_config(clinics["findings"].config) as client:
        report = client.infer(pictures["png"])
    assert report.task == "multilabel"
    assert report.classes == ("effusion", "nodule", "fracture", "device")
    expected = 1 / (1 + np.exp(-np.array(report.logits)))
    assert np.allclose(report.probabilities, expected, rtol=0, atol=1e-12)
    with Client.from_config(clinics["stack"].config) as client:
        reports = client.infer_many([pictures["png"], pictures["jpeg"]])
    assert [report.image for report in reports] == ["chest.png", "chest.jpeg"]
    assert all(report.task == "raw" and report.probabilities == () for report in reports)
    assert reports[0].classes == tuple(f"output {i}" for i in range(5))
    # both came from one session: three places, one of them filled up
    assert reports[0].session_id == reports[1].session_id
    assert reports[0].logits != reports[1].logits


def test_probabilities_add_up(deployment: Deployment, clinics: dict[str, Clinic]) -> None:
    with Client.from_config(clinics["lungs-1.9"].config) as client:
        logits = client.infer_tensor(deployment.networks["lungs-1.9"].images(3)).outputs
    found = probabilities(logits, "multiclass")
    assert found.sum() == pytest.approx(1.0, abs=1e-12)
    assert np.allclose(np.log(found / found[0, 0]), logits - logits[0, 0], atol=1e-9)


def frame_bytes(plan: Plan, receiver: str, kinds: set[Kind]) -> int:
    """Bytes of the frames that the plan makes due, from the protocol's description alone."""
    return sum(
        frames.encoded_size(
            Frame(bytes(16), due.gate, due.kind, 0, bytes(packed_size(due.count, due.width)))
        )
        for due in schedule(plan)
        if due.receiver == receiver and due.kind in kinds
    )


@pytest.mark.parametrize("folder", ["lungs-1.9", "findings"])
def test_measured_bytes_are_the_predicted_ones_and_their_framing(
    deployment: Deployment, clinics: dict[str, Clinic], folder: str
) -> None:
    network = deployment.networks[folder]
    plan, cost = network.plan, plan_cost(network.plan)
    offline = {Kind.CORRECTION, Kind.OFFLINE}
    online = set(Kind) - offline
    with Client.from_config(clinics[folder].config) as client:
        (prepared,) = client.prepare()
        answer = client.infer_tensor(network.images())
    to_owner = answer.online_bytes["data_owner_to_model_owner"]
    to_clinic = answer.online_bytes["model_owner_to_data_owner"]
    assert to_owner == frame_bytes(plan, "model-owner", online)
    assert to_clinic == frame_bytes(plan, "data-owner", online)
    assert answer.round_trips == cost.round_trips
    corrections = prepared.bytes["crypto_provider_to_model_owner"]
    assert corrections == frame_bytes(plan, "model-owner", {Kind.CORRECTION})
    deltas = prepared.bytes["data_owner_to_model_owner"]
    count = sum(due.kind is Kind.OFFLINE for due in schedule(plan))
    # every frame is part of a request with a tag and a length; the header names the session,
    # the artefact, the plan and what the session is bound to
    header = 2 + sum(2 + size for size in (16, 32, 16, 32))
    wrapped = deltas - frame_bytes(plan, "model-owner", {Kind.OFFLINE}) - header
    assert 2 * count <= wrapped <= 4 * count
    messages = len(list(schedule(plan)))
    for measured, predicted in (
        (to_owner, cost.to_model_owner_bytes),
        (to_clinic, cost.to_data_owner_bytes),
        (corrections, cost.correction_bytes),
        (deltas, cost.offline_bytes),
    ):
        assert 0 < measured - predicted <= 32 * messages + header


def test_clinic_and_crypto_provider_exchange_a_kilobyte_at_most(
    deployment: Deployment, clinics: dict[str, Clinic]
) -> None:
    with Client.from_config(clinics["findings"].config) as client:
        (prepared,) = client.prepare()
    assert prepared.bytes["data_owner_to_crypto_provider"] == 122
    assert prepared.bytes["crypto_provider_to_data_owner"] == 50
    assert prepared.bytes["model_owner_to_crypto_provider"] < 100
    assert prepared.bytes["model_owner_to_data_owner"] < 100


def test_the_model_is_fetched_once(deployment: Deployment, clinics: dict[str, Clinic]) -> None:
    network = deployment.networks["findings"]
    compiled = deployment.compiled["findings"]
    clinic = deployment.clinic("fetching", "findings")
    with Client.from_config(clinic.config) as client:
        client.model()
        first = client.setup.received_bytes
    with Client.from_config(clinic.config) as client:
        client.model()
        second = client.setup.received_bytes
    assert second < len(compiled.plan_bytes) + 200
    assert 0 <= first - second - masked_weights_size(network.plan) < 20


def test_several_clinics_with_several_sessions_at_once(deployment: Deployment) -> None:
    """Two clinics, two threads on each one's client; not all sessions were prepared before."""
    network = deployment.networks["lungs-1.10"]
    clients = [
        Client.from_config(deployment.clinic(f"busy-{number}").config) for number in range(2)
    ]
    together = threading.Barrier(4)
    try:
        for client in clients:
            client.prepare(2)

        def work(number: int) -> list[bytes]:
            client = clients[number % 2]
            together.wait(20)
            used = []
            for turn in range(3):
                images = network.images(100 * number + turn)
                answer = client.infer_tensor(images)
                assert_within(network, images, answer.outputs)
                used.append(answer.session)
            return used

        with ThreadPoolExecutor(4) as pool:
            used = [session for found in pool.map(work, range(4)) for session in found]
        assert [client.stock() for client in clients] == [0, 0]
    finally:
        for client in clients:
            client.close()
    assert len(set(used)) == 12
    deployment.assert_used_up(*used)


def test_newest_version_by_default_and_others_by_name(
    deployment: Deployment, clinics: dict[str, Clinic]
) -> None:
    newest, older = deployment.networks["lungs-1.10"], deployment.networks["lungs-1.9"]
    images = newest.images(4)
    with Client.from_config(deployment.clinic("undemanding").config) as client:
        assert [(name, version) for name, version, _ in client.models()] == [
            ("findings", "1"),
            ("lungs", "1.9"),
            ("lungs", "1.10"),
            ("stack", "1"),
            ("wide", "1"),
        ]
        assert client.model().offer.version == "1.10"
        outputs = client.infer_tensor(images).outputs
    assert_within(newest, images, outputs)
    value, bound = older.plaintext(images)
    assert (np.abs(outputs - value) > bound).any()
    with (
        Client.from_config(deployment.clinic("demanding", "lungs", "2").config) as client,
        pytest.raises(UnknownModelError, match=r"'lungs 2'.*offers: findings 1, lungs 1.9, lungs"),
    ):
        client.model()


def test_prepared_sessions_survive_a_restart_of_both_servers(deployment: Deployment) -> None:
    network = deployment.networks["lungs-1.10"]
    clinic = deployment.clinic("patient-clinic")
    with Client.from_config(clinic.config) as client:
        sessions = [prepared.session for prepared in client.prepare(2)]
    assert deployment.owner.stop() == 0
    assert deployment.provider.stop() == 0
    deployment.ensure_running()
    images = network.images(5)
    # the crypto provider is not needed between the moment an image exists and its result
    assert deployment.provider.stop() == 0
    with Client.from_config(clinic.config) as client:
        assert client.stock() == 2
        for session in sessions:
            answer = client.infer_tensor(images)
            assert answer.session == session
            assert answer.prepared is None
            assert_within(network, images, answer.outputs)
        assert client.stock() == 0
    deployment.ensure_running()
