"""CrypTen over the three parties: processes, certificates, ledgers, commands; and parties that die.

The model is of the size of LeNet. Without CrypTen (`make test` installs it) these are skipped.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from data_owner import Client
from radiopaque.engine.crypten.process import INSTALL, Worker
from radiopaque.engine.crypten.weights_file import StoredCrypten, read_compiled
from radiopaque.errors import (
    ConfigError,
    ConnectionLostError,
    DeadlineError,
    EngineError,
    ProtocolError,
    RadiopaqueError,
)
from radiopaque.ledger import MARK_BYTES, Mark
from radiopaque.transport.link import Link
from radiopaque.wire.frames import Frame, Kind
from tests.e2e.parties import Clinic, Deployment, contents, radiopaque, until
from tests.unit.graph.support import make_model, node, plaintext, rng

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("crypten") is None, reason=f"CrypTen is not installed; run: {INSTALL}"
)
SIDE = 28
SHAPE = (1, 1, SIDE, SIDE)
WORKER = b"radiopaque.engine.crypten.worker"


def lenet() -> onnx.ModelProto:
    """Two convolutions with a swish between them, which the compiled engine does not take."""
    draw = rng(11).standard_normal
    constants = {
        "w": draw((6, 1, 5, 5)) * 0.2,
        "b": draw(6) * 0.1,
        "v": draw((16, 6, 5, 5)) * 0.1,
        "d": draw((400, 32)) * 0.05,
        "e": draw((32, 3)) * 0.3,
        "c": draw(3) * 0.1,
    }
    nodes = [
        node("Conv", "x w b", "t1", pads=[2, 2, 2, 2]),
        node("Relu", "t1", "t2"),
        node("MaxPool", "t2", "t3", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "t3 v", "t4"),
        node("Sigmoid", "t4", "t5"),
        node("Mul", "t4 t5", "t6"),
        node("AveragePool", "t6", "t7", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "t7", "t8"),
        node("Gemm", "t8 d", "t9"),
        node("Relu", "t9", "t10"),
        node("Gemm", "t10 e c"),
    ]
    return make_model(nodes, SHAPE, constants)


MODEL = lenet()


@dataclass(frozen=True)
class Hosted:
    """A deployment with the model, and what its vendor compiled."""

    deployment: Deployment
    stored: StoredCrypten
    report: dict[str, Any]

    def clinic(self, name: str, **options: Any) -> Clinic:
        """A clinic that accepts CrypTen."""
        clinic = self.deployment.clinic(name, "swish", **options)
        clinic.config.write_text('engine = "crypten"\n' + clinic.config.read_text())
        return clinic


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    folder = tmp_path_factory.mktemp("crypten")
    model = folder / "model"
    model.mkdir()
    onnx.save(MODEL, str(model / "swish.onnx"))
    manifest = {
        "schema": 1,
        "name": "swish",
        "version": "1",
        "onnx": "swish.onnx",
        "sha256": hashlib.sha256((model / "swish.onnx").read_bytes()).hexdigest(),
        "licence": "none",
        "task": "multiclass",
        "classes": ["one", "two", "three"],
        "preprocessing": {
            "channels": 1,
            "height": SIDE,
            "width": SIDE,
            "resize": "stretch",
            "interpolation": "bilinear",
            "mean": [0.5],
            "std": [0.25],
        },
    }
    (model / "manifest.json").write_text(json.dumps(manifest))
    out = folder / "compiled"
    refused = radiopaque("compile", model, "-o", out, "--ring", 64)
    assert refused.returncode == 3
    assert "--engine crypten" in refused.stderr
    done = radiopaque("compile", model, "-o", out, "--engine", "crypten", "--json", timeout=200)
    assert done.returncode == 0, done.stderr
    with Deployment(folder / "deployment", {}, [out]) as deployment:
        yield Hosted(deployment, read_compiled(out), json.loads(done.stdout))


@pytest.fixture
def hosted(running: Hosted) -> Hosted:
    running.deployment.ensure_running()
    return running


def images(seed: int = 0) -> np.ndarray:
    return rng(seed).uniform(-2, 2, SHAPE).astype(np.float32)


def test_the_result_the_costs_and_what_remains(hosted: Hosted) -> None:
    deployment, clinic = hosted.deployment, hosted.clinic("first", deadline_seconds=100.0)
    with Client.from_config(clinic.config) as client:
        prepared = client.prepare()[0]
        assert client.stock() == 1
        answer = client.infer_tensor(images(1))
    assert np.abs(answer.outputs - plaintext(MODEL, images(1))).max() < 0.01
    assert prepared.session == answer.session
    cost = hosted.stored.plan.cost()
    assert answer.round_trips == cost.round_trips == hosted.report["cost"]["round_trips"]
    # headers of frames come on top of payloads: about 25 bytes each, far below a twentieth
    for found, payload in (
        (answer.online_bytes["data_owner_to_model_owner"], cost.to_model_owner_bytes),
        (answer.online_bytes["model_owner_to_data_owner"], cost.to_data_owner_bytes),
        (prepared.bytes["crypto_provider_to_model_owner"], cost.correction_bytes),
    ):
        assert payload < found < payload * 1.05
    # the crypto provider deals before the image exists, and tells the clinic its ledger's mark
    # alone; the clinic sends nothing offline
    assert prepared.bytes["crypto_provider_to_data_owner"] == 50
    assert prepared.bytes["data_owner_to_model_owner"] < 200
    deployment.assert_used_up(answer.session)
    assert not any(secret for _, secret in clinic.sessions().values())
    # weights stay in the vendor's compiled folder, and the image in the clinic's memory
    weights = hosted.stored.constants[0].tobytes()[:32]
    for path, data in contents([deployment.provider.store, deployment.owner.store, clinic.store]):
        assert weights not in data, path
        assert images(1).tobytes()[:32] not in data, path


def test_the_commands_and_the_report(
    hosted: Hosted, pictures: dict[str, str], tmp_path: Path
) -> None:
    clinic = hosted.clinic("commands", deadline_seconds=100.0)
    answer = clinic.json("submit", pictures["dcm"], "--output", tmp_path / "reports")
    (result,) = answer["results"]
    assert result["engine"] == "crypten"
    assert sum(result["probabilities"]) == pytest.approx(1.0)
    assert any("CrypTen" in warning and "gross error" in warning for warning in result["warnings"])
    page = next((tmp_path / "reports").glob("*.html")).read_text()
    assert "computed under CrypTen" in page


def test_a_clinic_must_want_crypten(hosted: Hosted) -> None:
    """Its results can be wrong, so nobody gets it by a change at the vendor."""
    clinic = hosted.deployment.clinic("unaware", "swish", deadline_seconds=100.0)
    done = clinic.command("prepare")
    assert done.returncode == ConfigError.exit_code
    assert 'engine = "crypten"' in done.stderr
    assert clinic.json("prepare", "--engine", "crypten")["stock"] == 1
    done = hosted.clinic("aware").command("prepare", "--engine", "compiled")
    assert "is offered for the crypten engine" in done.stderr


def workers(parent: int) -> list[int]:
    """Worker processes of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            if WORKER in command and int(stat.rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
    return found


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


class Stopped:
    """An inference in the middle of which the vendor's worker is stopped.

    The session is STARTED at both, and the clinic's worker has its image, when that happens.
    """

    def __init__(self, hosted: Hosted, client: Client, patch: pytest.MonkeyPatch) -> None:
        self.owner = hosted.deployment.owner._started().pid
        self.error: RadiopaqueError | None = None
        self.worker = self.own_worker = 0
        self._client = client
        self._reached = threading.Event()
        self._thread = threading.Thread(target=self._infer)
        serve = Worker.serve

        def stopping(worker: Worker, *arguments: Any) -> bytearray:
            (self.worker,) = workers(self.owner)
            self.own_worker = worker.pid
            os.kill(self.worker, signal.SIGSTOP)
            self._reached.set()
            return serve(worker, *arguments)

        patch.setattr(Worker, "serve", stopping)

    def __enter__(self) -> Stopped:
        self._thread.start()
        assert self._reached.wait(60)
        assert alive(self.worker)
        assert alive(self.own_worker)
        return self

    def __exit__(self, *_: object) -> None:
        if alive(self.worker):
            os.kill(self.worker, signal.SIGKILL)
        self._thread.join(60)

    def wait(self) -> RadiopaqueError:
        """The error that the clinic's call ends with; its worker is gone then."""
        self._thread.join(60)
        assert self.error is not None
        assert not alive(self.own_worker)
        return self.error

    def _infer(self) -> None:
        try:
            self._client.infer_tensor(images(3))
        except RadiopaqueError as error:
            self.error = error


def test_a_vendor_that_dies_leaves_a_typed_error_and_no_worker(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    clinic = hosted.clinic("orphan", deadline_seconds=100.0)
    with Client.from_config(clinic.config) as client:
        session = client.prepare()[0].session
        with Stopped(hosted, client, monkeypatch) as stopped:
            assert clinic.sessions()[session] == ("STARTED", False)
            hosted.deployment.owner.kill()
            assert isinstance(stopped.wait(), ConnectionLostError)
            # a stopped process is told when it may go on, and finds nobody there
            os.kill(stopped.worker, signal.SIGCONT)
            until(lambda: not alive(stopped.worker))
        assert clinic.sessions()[session] == ("BURNT", False)
    hosted.deployment.ensure_running()
    hosted.deployment.assert_used_up(session)


def test_a_worker_that_dies_burns_its_session_and_nothing_else(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    clinic = hosted.clinic("unlucky", deadline_seconds=100.0)
    with Client.from_config(clinic.config) as client:
        with monkeypatch.context() as patch, Stopped(hosted, client, patch) as stopped:
            os.kill(stopped.worker, signal.SIGKILL)
            error = stopped.wait()
        assert isinstance(error, EngineError)
        assert "in its log under" in str(error)  # and nothing of the vendor's inside
        # the next one is served
        answer = client.infer_tensor(images(4))
    assert np.abs(answer.outputs - plaintext(MODEL, images(4))).max() < 0.01


def test_a_vendor_that_stops_is_given_up_in_time(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    clinic = hosted.clinic("patient", deadline_seconds=100.0)
    with Client.from_config(clinic.config) as client:
        client.prepare()
        client._sessions._deadline = 10.0
        with Stopped(hosted, client, monkeypatch) as stopped:
            assert isinstance(stopped.wait(), DeadlineError)
            # the vendor's call had the same deadline
            until(lambda: not alive(stopped.worker), seconds=30.0)


def test_a_clinic_that_goes_away_leaves_no_worker_at_the_vendor(hosted: Hosted) -> None:
    deployment = hosted.deployment
    clinic = hosted.clinic("gone", deadline_seconds=100.0)
    with Client.from_config(clinic.config) as client:
        session = client.prepare()[0].session
        channel = client._model_owner.open("Infer", 100.0)
        link = Link(channel, session)
        link.send(0, Kind.START, 0, Mark(bytes(16)).encode())
        link.receive(0, Kind.READY, 0, MARK_BYTES)
        owner = deployment.owner._started().pid
        (worker,) = workers(owner)
        assert alive(worker)
        channel.close(ConnectionLostError("the clinic is gone"))
        until(lambda: not alive(worker), seconds=30.0)
    deployment.assert_used_up(session)


def test_frames_out_of_place_end_the_session_at_the_vendor(hosted: Hosted) -> None:
    """Another kind or length than the one that is due."""
    clinic = hosted.clinic("liar", deadline_seconds=100.0)
    key = bytes(32)
    with Client.from_config(clinic.config) as client:
        for bad in (
            lambda session: Frame(session, 0, Kind.IMAGE, 0, key),
            lambda session: Frame(session, 0, Kind.SHARE, 0, key[1:]),
        ):
            session = client.prepare()[0].session
            channel = client._model_owner.open("Infer", 100.0)
            link = Link(channel, session)
            link.send(0, Kind.START, 0, Mark(bytes(16)).encode())
            link.receive(0, Kind.READY, 0, MARK_BYTES)
            channel.send(bad(session))
            with pytest.raises(ProtocolError):
                channel.receive()
            channel.close()
            until(lambda session=session: hosted.deployment.owner.sessions()[session][0] == "BURNT")
