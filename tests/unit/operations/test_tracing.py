"""Traces: what an exporter gets of a call, of a block, and what it never gets."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import radiopaque
from radiopaque.certificates import PeerIdentity, Role
from radiopaque.errors import SessionError
from radiopaque.operations import tracing
from radiopaque.telemetry import traces
from radiopaque.transport.admission import Call

OWN = PeerIdentity(Role.MODEL_OWNER, "vendor")
CLINIC = PeerIdentity(Role.DATA_OWNER, "clinic-a")


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    """Finished spans, once what this yields was told to flush by the test's end."""
    exporter = InMemorySpanExporter()
    stop = tracing.start("http://127.0.0.1:1", OWN, exporter)
    yield exporter
    stop()


def spans(exporter: InMemorySpanExporter) -> list[Any]:
    """Wait for what the exporting thread still holds."""
    deadline = time.monotonic() + 20
    while not exporter.get_finished_spans() and time.monotonic() < deadline:
        time.sleep(0.05)
    return list(exporter.get_finished_spans())


def test_a_call_is_a_span(exported: InMemorySpanExporter) -> None:
    about = {"model": "lungs", "version": "1.10", "session": "00112233"}
    call = Call(CLINIC, 60.0, about=about, began=time.time() - 2.0)
    call.counters.count_received(1000)
    tracing.Tracing().ended("Infer", call, "abandoned")
    (span,) = spans(exported)
    assert span.name == "Infer"
    assert span.end_time - span.start_time == pytest.approx(2e9, rel=0.2)
    assert dict(span.attributes) == {
        "radiopaque.method": "Infer",
        "radiopaque.peer": "data-owner 'clinic-a'",
        "radiopaque.outcome": "abandoned",
        "radiopaque.model": "lungs",
        "radiopaque.model_version": "1.10",
        "radiopaque.session": "00112233",
        "radiopaque.received_bytes": 1000,
        "radiopaque.sent_bytes": 0,
    }
    assert not span.status.is_ok
    assert span.resource.attributes == {
        "service.name": "radiopaque-model-owner",
        "service.instance.id": "vendor",
        "service.version": radiopaque.__version__,
    }


def test_refusals_and_blocks(exported: InMemorySpanExporter) -> None:
    tracing.Tracing().refused("Infer", "RoleError", "crypto-provider 'p'")
    secret = "canary-of-a-patient"
    with (
        pytest.raises(SessionError),
        traces.span("infer", session=bytes(range(16)), model="lungs"),
    ):
        raise SessionError(secret)
    with traces.span("odd", key=secret, patient=secret):  # type: ignore[call-arg]
        pass
    refused, block, odd = spans(exported)
    assert dict(refused.attributes)["radiopaque.outcome"] == "RoleError"
    assert dict(block.attributes) == {
        "radiopaque.session": "00010203",
        "radiopaque.model": "lungs",
        "radiopaque.outcome": "SessionError",
    }
    assert dict(odd.attributes)["radiopaque.key"] == "<redacted>"
    everything = " ".join(span.to_json() for span in (refused, block, odd))
    assert secret not in everything


def test_off_until_started_and_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_DELAY_MILLISECONDS", 20)
    exporter = InMemorySpanExporter()
    with traces.span("before"):
        pass
    stop = tracing.start("http://127.0.0.1:1", OWN, exporter)
    with traces.span("during"):
        pass
    stop()
    with traces.span("after"):
        pass
    time.sleep(0.3)  # what still exports has done so
    assert [span.name for span in exporter.get_finished_spans()] == ["during"]


def test_over_the_network_to_a_collector() -> None:
    """The real exporter against a server that keeps what it is sent."""
    bodies: list[bytes] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stop = tracing.start(f"http://127.0.0.1:{server.server_port}/v1/traces", OWN)
    with traces.span("prepare", model="lungs"):
        pass
    stop()
    server.shutdown()
    server.server_close()
    (body,) = bodies
    request = ExportTraceServiceRequest.FromString(body)
    (resource,) = request.resource_spans
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["prepare"]


def test_without_the_extra_it_is_a_configuration_error() -> None:
    program = """
import json, sys
class Extra:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Extra())
from radiopaque.certificates import PeerIdentity, Role
from radiopaque.errors import ConfigError
from radiopaque.operations import tracing
try:
    tracing.start("http://127.0.0.1:1", PeerIdentity(Role.MODEL_OWNER, "v"))
except ConfigError as error:
    print(json.dumps(str(error)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert "pip install 'radiopaque[otel]'" in json.loads(done.stdout)
