"""What an operator has of a running deployment: doctor, top, usage, health, drain, roll-back.

Real processes, started once for this file, with metrics on.
"""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_owner import Client
from radiopaque.certificates import Role
from radiopaque.cli.main import main
from radiopaque.errors import PeerUnavailableError, UnknownModelError
from radiopaque.telemetry import traces
from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import Peer
from radiopaque.wire.v1 import services_pb2 as pb
from tests.e2e.networks import lungs
from tests.e2e.parties import Clinic, Deployment, free_port, until
from tests.faults.hand import Hand

_NUMBERS = count()


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two versions of one network, and metrics of both servers."""
    hosted = {
        "lungs-1.9": lungs().offered_as("1.9"),
        "lungs-1.10": lungs(seed=10).offered_as("1.10"),
    }
    deployment = Deployment(tmp_path_factory.mktemp("operated"), hosted)
    for party in (deployment.provider, deployment.owner):
        party._head = f'metrics = "127.0.0.1:{free_port()}"\n' + party._head
        party.write_config("")
    with deployment:
        yield deployment


@pytest.fixture
def clinic(operated: Deployment) -> Clinic:
    operated.ensure_running()
    return operated.clinic(f"op-{next(_NUMBERS)}")


def output(*arguments: object, code: int = 0) -> str:
    """What a command prints, run in this process, which spares a second each."""
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert (ended.value.code or 0) == code, printed.getvalue()
    return printed.getvalue()


def document(*arguments: object, code: int = 0) -> dict[str, Any]:
    """The JSON object that it prints."""
    answer: dict[str, Any] = json.loads(output(*arguments, "--json", code=code))
    return answer


def levels(answer: dict[str, Any]) -> dict[str, str]:
    return {one["check"]: one["level"] for one in answer["checks"]}


def infer(clinic: Clinic, seed: int = 0) -> np.ndarray:
    """One inference by the clinic's configuration, which must be right."""
    network = lungs(seed=10).offered_as("1.10")
    images = network.images(seed)
    with Client.from_config(clinic.config) as client:
        answer = client.infer_tensor(images)
    return answer.outputs


def test_the_doctor_finds_a_good_deployment_good(operated: Deployment, clinic: Clinic) -> None:
    clinic.json("prepare", "--count", 1)
    wanted = {
        "crypto-provider": {"own port", "own port: TLS", "metrics", "ledger", "store", "key"},
        "model-owner": {
            *("own port", "own port: TLS", "metrics", "models", "crypto provider"),
            *("crypto provider: version", "crypto provider: clock", "crypto provider: TLS"),
        },
        "data-owner": {
            *("model owner", "model owner: version", "model owner: clock", "model owner: TLS"),
            *("model owner: certificate end", "crypto provider", "stock", "kernels", "ledger"),
            "model",
        },
    }
    configs = {
        "crypto-provider": operated.provider.config,
        "model-owner": operated.owner.config,
        "data-owner": clinic.config,
    }
    for role, config in configs.items():
        answer = document("doctor", role, "--config", config)
        found = levels(answer)
        assert answer["failed"] == 0
        assert {check for check in wanted[role] if found.get(check) != "pass"} == set(), answer
        # a trial's certificates have no revocation list, and this disk may be small
        assert {check for check, level in found.items() if level == "warn"} <= {
            "revocation",
            "disk",
        }
    own = ("doctor", "model-owner", "--config", operated.owner.config, "--only", "own port")
    assert set(levels(document(*own))) == {"configuration", "own port", "own port: TLS"}
    unknown = document(*own, "--only", "weather", code=2)
    assert "choose among: certificate, store" in unknown["message"]
    text = output("doctor", "data-owner", "--config", clinic.config)
    assert "pass model owner: serves at" in text.replace("  ", " ")


def test_the_doctor_finds_what_is_down(operated: Deployment, clinic: Clinic) -> None:
    operated.provider.kill()
    try:
        answer = document("doctor", "data-owner", "--config", clinic.config, code=9)
        assert levels(answer)["crypto provider"] == "fail"
        assert levels(answer)["model owner"] == "pass"
        (line,) = [one for one in answer["checks"] if one["level"] == "fail"]
        assert "cannot reach" in line["text"]
        assert "check that it is running" in line["remedy"]
        own = document("doctor", "crypto-provider", "--config", operated.provider.config, code=9)
        assert levels(own)["own port"] == levels(own)["metrics"] == "fail"
    finally:
        operated.ensure_running()


def test_top_and_usage_count_what_a_clinic_did(operated: Deployment, clinic: Clinic) -> None:
    infer(clinic)
    infer(clinic, 1)
    owner = ("model-owner", "--config", operated.owner.config)
    who = (clinic.name, "Infer")

    def finished() -> bool:
        read = document("top", *owner)
        counts = [one["count"] for one in read["inferences"] if one["clinic"] == clinic.name]
        used = document("usage", *owner)["usage"]
        served = [one["calls"] for one in used if (one["caller"], one["method"]) == who]
        return counts == served == [2]

    until(finished)
    read = document("top", *owner)
    assert (read["role"], read["name"]) == ("model-owner", "model-owner")
    assert read["sessions"]["STARTED"] == 0
    infers = read["methods"]["Infer"]
    assert infers["calls"]["ok"] >= 2
    assert 0 < infers["seconds"]["p50"] < 60
    found = {
        one["method"]: one
        for one in document("usage", *owner)["usage"]
        if one["caller"] == clinic.name
    }
    assert (found["Infer"]["calls"], found["Infer"]["sessions"], found["Infer"]["failed"]) == (
        *(2, 2),
        0,
    )
    assert (found["Infer"]["model"], found["Infer"]["version"]) == ("lungs", "1.10")
    assert found["Prepare"]["sessions"] == 2
    assert found["Infer"]["received_bytes"] > 1000
    assert found["Infer"]["cpu_seconds"] > 0
    assert document("usage", *owner, "--last", "2020-01-01")["usage"] == []
    provider = ("crypto-provider", "--config", operated.provider.config)
    dealt = {(one["role"], one["method"]): one for one in document("usage", *provider)["usage"]}
    assert dealt["model-owner", "Deal"]["sessions"] >= 2
    assert dealt["data-owner", "Reserve"]["calls"] >= 2
    assert clinic.name in output("usage", *owner)
    for command in ("top", "usage"):
        refused = document(command, "data-owner", "--config", clinic.config, code=2)
        assert refused["error"] == "ConfigError"
        assert "a data owner serves nothing" in refused["message"]


def test_sigterm_lets_an_inference_finish(operated: Deployment, clinic: Clinic) -> None:
    identity = clinic.identity()
    with (
        Hand(operated, identity) as hand,
        Hand(operated, identity) as refused,
        Peer(Role.MODEL_OWNER, operated.owner.address, identity) as peer,
    ):
        images = hand.network.images(3)
        hand.prepare()
        refused.prepare()
        channel = hand.start()
        process = operated.owner._started()
        process.send_signal(signal.SIGTERM)
        until(lambda: not peer.check_health(5.0).serving)
        with pytest.raises(PeerUnavailableError, match="try again in a minute"):
            peer.call("ListModels", pb.ListModelsRequest(), pb.ListModelsReply, Counters(), 5.0)
        with pytest.raises(PeerUnavailableError):
            refused.start()
        # the one under way goes on to its result
        outputs = hand.run(channel, images)
        value, bound = hand.network.plaintext(images)
        assert (np.abs(outputs - value) <= bound).all()
        assert process.wait(20) == 0
        assert operated.owner.sessions()[refused.session][0] == "READY"
    operated.ensure_running()


def test_sigterm_while_kernels_are_compiled(
    operated: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first start takes long; the party ends by itself, as process 1 of a container must."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    provider = operated.provider
    provider.stop()
    try:
        written = provider.log.stat().st_size
        provider.start()
        until(lambda: "loading kernels" in provider.log.read_text()[written:])
        assert provider.stop() == 0
        assert "listening" not in provider.log.read_text()[written:]
    finally:
        monkeypatch.undo()
        operated.ensure_running()


def test_rolling_back_while_serving(operated: Deployment, clinic: Clinic) -> None:
    """The version that was withdrawn is gone at once; a session of it under way finishes."""
    roll_back = ("model-owner", "roll-back", "lungs")
    config = ("--config", operated.owner.config)
    identity = clinic.identity()
    with Hand(operated, identity) as under_way:
        images = under_way.network.images(4)
        under_way.prepare()
        channel = under_way.start()
        answer = document(*roll_back, "1.9", *config)
        assert answer == {"model": "lungs", "served": ["1.9"], "withdrawn": ["1.10"]}
        try:
            assert [one["version"] for one in clinic.json("models")["models"]] == ["1.9"]
            outputs = under_way.run(channel, images)
            value, bound = under_way.network.plaintext(images)
            assert (np.abs(outputs - value) <= bound).all()
            pinned = operated.clinic("pinned", version="1.10")
            with (
                Client.from_config(pinned.config) as client,
                pytest.raises(UnknownModelError, match=r"offers: lungs 1\.9$"),
            ):
                client.model()
            old = lungs().offered_as("1.9")
            images = old.images(5)
            with Client.from_config(clinic.config) as client:
                outputs = client.infer_tensor(images).outputs
            value, bound = old.plaintext(images)
            assert (np.abs(outputs - value) <= bound).all()
        finally:
            document(*roll_back, "1.10", *config)
    assert sorted(one["version"] for one in clinic.json("models")["models"]) == ["1.10", "1.9"]


def test_a_clinic_traces_what_it_does(operated: Deployment, clinic: Clinic) -> None:
    """Preparing and inferring, with the session that the servers' logs name."""
    seen: list[tuple[str, dict[str, object]]] = []
    traces.start(lambda name, _, __, fields: seen.append((name, fields)))
    try:
        infer(clinic)
    finally:
        traces.start(None)
    assert [name for name, _ in seen] == ["prepare", "infer"]
    for _, fields in seen:
        assert (fields["model"], fields["model_version"]) == ("lungs", "1.10")
        assert fields["outcome"] == "ok"
        assert str(fields["session"]) in operated.owner.log.read_text()
        assert set(fields) == {"session", "model", "model_version", "outcome"}


def test_a_collector_that_is_down_holds_nobody_up(clinic: Clinic) -> None:
    text = clinic.config.read_text()
    clinic.config.write_text(f'traces = "http://127.0.0.1:{free_port()}/v1/traces"\n' + text)
    # nobody listens there: the result comes all the same
    infer(clinic)
