"""What `radiopaque compile` predicts is what is counted, to the byte, for every model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.models import MADE, choose, obtain, sample_images
from radiopaque.cli.reports import cost_dict
from radiopaque.engine.local import LocalDeployment
from radiopaque.graph.compile import compile_model
from radiopaque.telemetry import Span, recorder

TO_MODEL_OWNER = {"IMAGE", "SELECTION", "RERANDOMISED"}


@pytest.fixture
def spans() -> Iterator[list[Span]]:
    yield recorder.start()
    recorder.stop()


# The full sizes are part of the committed run (benchmarks/results).
@pytest.mark.parametrize(
    ("name", "ring_bits"), [*((name, 32) for name in MADE), ("lenet", 64), ("mobilenet-v2", 64)]
)
def test_predicted_is_counted(
    model_cache: None, spans: list[Span], name: str, ring_bits: int
) -> None:
    source = obtain(choose(f"{name}@32"))
    compiled = compile_model(source.onnx, manifest=source.manifest, ring_bits=ring_bits)
    deployment = LocalDeployment(compiled.plan, compiled.weights)
    result = deployment.infer(sample_images(source.preprocessing, 1))
    predicted = cost_dict(compiled.plan)
    sent = [span for span in spans if span.activity == "send"]
    taken = [span for span in spans if span.activity == "accept"]
    assert predicted["online_bytes"] == {
        "data_owner_to_model_owner": sum(s.size for s in sent if s.kind in TO_MODEL_OWNER),
        "model_owner_to_data_owner": sum(s.size for s in sent if s.kind not in TO_MODEL_OWNER),
    }
    assert predicted["offline_bytes"] == {
        "crypto_provider_to_model_owner": sum(s.size for s in taken if s.kind == "CORRECTION"),
        "data_owner_to_model_owner": sum(s.size for s in taken if s.kind == "OFFLINE"),
    }
    assert predicted["round_trips"] == result.counters.round_trips
