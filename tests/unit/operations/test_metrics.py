"""Metrics of a real server: what they count, who may read them, and what is made of them."""

from __future__ import annotations

import io
import json
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from prometheus_client import CollectorRegistry, Gauge

from radiopaque.certificates import (
    CertificateFiles,
    Identity,
    PeerIdentity,
    Role,
    init_directory,
    issue,
    revoke,
)
from radiopaque.config import TlsConfig
from radiopaque.errors import (
    AuthenticationError,
    ConfigError,
    PeerUnavailableError,
    ResourceError,
    StoreError,
)
from radiopaque.ledger import State
from radiopaque.operations.endpoint import _MOST_READERS, Endpoint, is_loopback, read_metrics
from radiopaque.operations.metrics import Metrics
from radiopaque.operations.snapshot import Method, parse
from radiopaque.operations.stock import Stock
from radiopaque.transport.grpc_server import Call
from radiopaque.versions import PROTOCOL
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.v1 import services_pb2 as pb
from tests.e2e.parties import until
from tests.unit.transport.calls import list_models, no_models
from tests.unit.transport.conftest import Host, load
from tests.unit.transport.test_grpc_rotation import serial

CUT_OFF = r"(?i)certificate.required|remote end|reset|closed|EOF|broken pipe"


def tls_of(files: CertificateFiles) -> TlsConfig:
    return TlsConfig.model_construct(
        certificate=files.certificate,
        key=files.key,
        ca=files.ca,
        crl=files.crl,
        accept_stale_crl=False,
    )


@pytest.fixture
def tls(certificate_files: dict[Role, CertificateFiles]) -> TlsConfig:
    return tls_of(certificate_files[Role.MODEL_OWNER])


@pytest.fixture
def metrics(identities: dict[Role, Identity]) -> Metrics:
    stock = Stock({State.READY: 3, State.STARTED: 1}, 5_000_000, 20_000_000)
    return Metrics(identities[Role.MODEL_OWNER], lambda: stock)


@pytest.fixture
def observed(identities: dict[Role, Identity], metrics: Metrics) -> Iterator[Any]:
    host = Host(identities, observer=metrics)
    yield host
    host.close()


@pytest.fixture
def serve(identities: dict[Role, Identity]) -> Iterator[Callable[..., Endpoint]]:
    opened: list[Endpoint] = []
    own = identities[Role.MODEL_OWNER]

    def make(
        registry: CollectorRegistry, listen: str = "127.0.0.1:0", identity: Identity = own
    ) -> Endpoint:
        opened.append(Endpoint(registry, listen, identity))
        return opened[-1]

    yield make
    for endpoint in opened:
        endpoint.close()


def test_what_a_server_did(
    observed: Any, metrics: Metrics, serve: Callable[..., Endpoint], tls: TlsConfig
) -> None:
    def infer(channel: Any, call: Call) -> None:
        frame = channel.receive()
        channel.send(frame)
        channel.send(frame)
        call.about.update(model="lungs", version="1.10", session="00112233")

    def fail(*_: Any) -> None:
        raise ResourceError("no")

    observed.functions.update(ListModels=no_models, Infer=infer, FetchPlan=fail)
    for _ in range(3):
        list_models(observed.peer)
    with pytest.raises(ResourceError):
        observed.peer.call("FetchPlan", pb.FetchPlanRequest(), pb.FetchPlanReply, _counters())
    channel = observed.peer.open("Infer")
    channel.send(Frame(bytes(16), 0, Kind.START))
    channel.receive()
    channel.receive()
    channel.close()
    with (
        observed.peer_of(observed.identities[Role.CRYPTO_PROVIDER]) as stranger,
        pytest.raises(Exception, match="is for data-owner"),
    ):
        list_models(stranger)
    address = serve(metrics.registry).address
    until(lambda: parse(read_metrics(address, tls, Role.MODEL_OWNER)).inferences != {})

    read = parse(read_metrics(address, tls, Role.MODEL_OWNER))
    assert read.party["role"] == "model-owner"
    assert read.party["protocol"] == str(PROTOCOL)
    assert read.sessions == {"READY": 3, "STARTED": 1}
    assert read.inferences == {("data-owner", "lungs", "1.10"): 1}
    listed = read.methods["ListModels"]
    assert (listed.calls, listed.refused, listed.under_way) == ({"ok": 3}, {"RoleError": 1}, 0)
    assert read.methods["FetchPlan"].calls == {"ResourceError": 1}
    sent = channel.counters
    infer_bytes = (read.methods["Infer"].received_bytes, read.methods["Infer"].sent_bytes)
    assert infer_bytes == (sent.sent_bytes, sent.received_bytes)
    document = json.loads(json.dumps(read.document()))
    assert document["material_bytes"] == 5_000_000
    assert document["material_limit_bytes"] == 20_000_000
    assert 390 * 86_400 < document["certificate_seconds_left"] < 400 * 86_400
    assert document["cpu_seconds"] > 0
    assert document["memory_bytes"] > 1e6
    assert document["methods"]["ListModels"]["seconds"]["p50"] > 0


def test_calls_that_started_no_session(metrics: Metrics) -> None:
    """Refused before its START was taken, a call reveals nothing and is no inference."""
    call = Call(PeerIdentity(Role.DATA_OWNER, "ward-7"), 60.0, about={"model": "m", "version": "1"})
    for method, session in (("Infer", None), ("Infer", "00112233"), ("Prepare", "44556677")):
        call.about.update({"session": session} if session else {})
        metrics.begun(method, call)
        metrics.ended(method, call, "ResourceError")
    labels = {"clinic": "ward-7", "model": "m", "version": "1"}
    assert metrics.registry.get_sample_value("radiopaque_inferences_total", labels) == 1


def _counters() -> Any:
    from radiopaque.transport.channel import Counters

    return Counters()


def test_calls_under_way(observed: Any, metrics: Metrics) -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait(*_: Any) -> pb.ListModelsReply:
        entered.set()
        leave.wait(10)
        return pb.ListModelsReply()

    observed.functions["ListModels"] = wait
    caller = threading.Thread(target=list_models, args=(observed.peer,))
    caller.start()
    assert entered.wait(10)
    count = "radiopaque_calls_under_way"
    assert metrics.registry.get_sample_value(count, {"method": "ListModels"}) == 1
    leave.set()
    caller.join()
    until(lambda: metrics.registry.get_sample_value(count, {"method": "ListModels"}) == 0)


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("vendor.example:1", False),
        ("localhost.example:1", False),
    ],
)
def test_loopback(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


def a_registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("radiopaque_party", "x", ["role"], registry=registry).labels("model-owner").set(1)
    return registry


def test_off_loopback_only_the_party_itself_reads(
    serve: Callable[..., Endpoint],
    tls: TlsConfig,
    certificate_files: dict[Role, CertificateFiles],
    tmp_path: Path,
) -> None:
    endpoint = serve(a_registry(), "0.0.0.0:0")
    port = endpoint.address.rpartition(":")[2]
    # of this machine, and not taken for loopback
    address = f"0.0.0.0:{port}"
    assert parse(read_metrics(address, tls, Role.MODEL_OWNER)).party == {"role": "model-owner"}
    folder = certificate_files[Role.DATA_OWNER].ca.parent
    others = [
        certificate_files[Role.DATA_OWNER],
        certificate_files[Role.CRYPTO_PROVIDER],
        issue(folder, Role.MODEL_OWNER, "other-vendor", output=tmp_path),
    ]
    for files in others:
        assert status(port, files) == 403
    with pytest.raises(OSError, match=CUT_OFF):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)
    context = ssl.create_default_context(cafile=str(tls.ca))
    context.check_hostname = False
    with pytest.raises(OSError, match=CUT_OFF):
        urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", timeout=5, context=context)
    context.load_cert_chain(tls.certificate, tls.key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(OSError, match=r"(?i)protocol|version"):
        urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", timeout=5, context=context)
    assert parse(read_metrics(address, tls, Role.MODEL_OWNER)).party


def status(port: str, files: CertificateFiles) -> int:
    """What somebody with that certificate is answered."""
    context = ssl.create_default_context(cafile=str(files.ca))
    context.check_hostname = False
    context.load_cert_chain(files.certificate, files.key)
    try:
        url = f"https://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=5, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_off_loopback_a_revoked_certificate_reads_nothing_and_a_new_one_is_shown(
    serve: Callable[..., Endpoint], tmp_path: Path
) -> None:
    """Without a restart; neither does a reader believe an endpoint whose certificate is revoked."""
    authority, kept = tmp_path / "pki", tmp_path / "kept"
    files = init_directory(authority)[Role.MODEL_OWNER]
    crl = revoke(authority, issue(authority, Role.DATA_OWNER, "other").certificate)
    files = replace(files, crl=crl)
    endpoint = serve(a_registry(), "0.0.0.0:0", load(files, Role.MODEL_OWNER))
    port = endpoint.address.rpartition(":")[2]
    kept.mkdir()
    assert endpoint_serial(port, files) == serial(files.certificate)
    old = replace(files, certificate=kept / "old.crt", key=kept / "old.key")
    for before, after in ((files.certificate, old.certificate), (files.key, old.key)):
        before.rename(after)
    issue(authority, Role.MODEL_OWNER, "model-owner")
    assert status(port, old) == status(port, files) == 200
    assert endpoint_serial(port, files) == serial(files.certificate)
    revoke(authority, old.certificate)
    assert (status(port, old), status(port, files)) == (403, 200)
    assert parse(read_metrics(f"0.0.0.0:{port}", tls_of(files), Role.MODEL_OWNER)).party
    stolen = serve(a_registry(), "0.0.0.0:0", load(replace(old, crl=None), Role.MODEL_OWNER))
    with pytest.raises(AuthenticationError, match="was revoked"):
        read_metrics(
            f"0.0.0.0:{stolen.address.rpartition(':')[2]}", tls_of(files), Role.MODEL_OWNER
        )


def endpoint_serial(port: str, files: CertificateFiles) -> int:
    """Of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=str(files.ca))
    context.check_hostname = False
    with (
        socket.create_connection(("127.0.0.1", int(port)), timeout=5) as connection,
        context.wrap_socket(connection) as secure,
    ):
        der = secure.getpeercert(binary_form=True) or b""
    return x509.load_der_x509_certificate(der).serial_number


def test_silent_connections_take_no_more_than_their_places(
    serve: Callable[..., Endpoint], tls: TlsConfig
) -> None:
    port = serve(a_registry(), "0.0.0.0:0").address.rpartition(":")[2]
    before = threading.active_count()
    strangers = [
        socket.create_connection(("127.0.0.1", int(port)), timeout=5)
        for _ in range(2 * _MOST_READERS)
    ]
    closed = [one for one in strangers[_MOST_READERS:] if not one.recv(1)]
    assert len(closed) == _MOST_READERS
    assert threading.active_count() <= before + _MOST_READERS
    for stranger in strangers:
        stranger.close()
    until(lambda: threading.active_count() <= before)
    assert parse(read_metrics(f"0.0.0.0:{port}", tls, Role.MODEL_OWNER)).party


def test_other_paths_and_a_store_that_fails(
    serve: Callable[..., Endpoint], identities: dict[Role, Identity]
) -> None:
    def broken() -> Stock:
        raise StoreError("the ledger at /secret/place is gone")

    endpoint = serve(Metrics(identities[Role.MODEL_OWNER], broken).registry)
    for path, status in (("/", 404), ("/metrics/..", 404), ("/metrics", 503)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://{endpoint.address}{path}", timeout=5)
        assert caught.value.code == status
        assert b"secret" not in caught.value.read()


def test_a_port_in_use(serve: Callable[..., Endpoint]) -> None:
    endpoint = serve(a_registry())
    with pytest.raises(ConfigError, match="choose another address for metrics"):
        serve(a_registry(), endpoint.address)


def test_what_is_no_party(serve: Callable[..., Endpoint], tls: TlsConfig) -> None:
    endpoint = serve(CollectorRegistry())
    with pytest.raises(PeerUnavailableError, match="no radiopaque party"):
        parse(read_metrics(endpoint.address, tls, Role.MODEL_OWNER))
    for text in ("{", "radiopaque_sessions 3", "radiopaque_party{"):
        with pytest.raises(PeerUnavailableError):
            parse(text)
    endpoint.close()
    with pytest.raises(PeerUnavailableError, match="check that it is running"):
        read_metrics(endpoint.address, tls, Role.MODEL_OWNER)


def test_quantiles_of_buckets() -> None:
    method = Method(buckets={0.1: 50, 0.2: 90, 1.0: 100, float("inf"): 100})
    assert method.quantile(0.5) == pytest.approx(0.1)
    assert method.quantile(0.7) == pytest.approx(0.15)
    assert method.quantile(0.99) == pytest.approx(0.92)
    beyond = Method(buckets={0.1: 1, float("inf"): 4})
    assert beyond.quantile(0.99) == 0.1
    assert Method().quantile(0.5) is None
    assert Method(buckets={0.1: 0, float("inf"): 0}).quantile(0.5) is None


def test_the_live_view(observed: Any, metrics: Metrics) -> None:
    """What the screen says, with rates since the reading before; names cannot steer a terminal."""
    from prometheus_client import generate_latest
    from rich.console import Console

    from radiopaque.cli.top import view

    observed.functions["ListModels"] = no_models
    before = parse(generate_latest(metrics.registry).decode())
    for _ in range(4):
        list_models(observed.peer)
    until(lambda: metrics.registry.get_sample_value(CALLS, LISTED) == 4)
    after = parse(generate_latest(metrics.registry).decode())
    before.seconds, after.seconds = 1000.0, 1002.0
    after.inferences = {("evil\x1b[2J[bold]", "lungs", "1"): 7}
    after.party = {**after.party, "name": "worse\x1b[2J"}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(view(after, before))
    text = console.export_text()
    assert "3 READY, 1 STARTED" in text
    assert "material: 0.01 of 0.02 GB" in text
    (row,) = [line for line in text.splitlines() if "ListModels" in line]
    cells = [cell.strip() for cell in row.strip("│ ").split("│")]
    assert cells[:6] == ["ListModels", "0", "4", "2.0", "0", "0"]
    assert "\x1b" not in text
    assert "evil?[2J[bold]" in text
    assert "worse?[2J" in text


CALLS = "radiopaque_calls_total"
LISTED = {"method": "ListModels", "outcome": "ok"}
