"""Whole inferences with two worker processes and the dealer, without a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest

from radiopaque.engine.crypten import local
from radiopaque.engine.crypten.compile import CompiledCrypten, compile_crypten
from radiopaque.engine.crypten.runs import check_images
from radiopaque.errors import PlanError, RadiopaqueError, TensorError, UnsupportedModelError
from radiopaque.transport.channel import Channel
from radiopaque.transport.memory import MemoryChannel, connect
from radiopaque.wire.frames import Frame, Kind, encoded_size
from tests.protocol.chisquare import THRESHOLD, uniform
from tests.unit.graph.support import make_model, node, plaintext, rng

SHAPE = (1, 1, 12, 12)


def network() -> onnx.ModelProto:
    """Convolution, ReLU, max-pool, a gate by a sigmoid, fully connected."""
    draw = rng(5).standard_normal
    constants = {
        "w": draw((4, 1, 3, 3)) * 0.5,
        "b": draw(4) * 0.1,
        "e": draw((4, 4, 1, 1)) * 0.5,
        "f": draw((144, 3)) * 0.2,
        "g": draw(3) * 0.1,
    }
    nodes = [
        node("Conv", "x w b", "t", pads=[1, 1, 1, 1]),
        node("Relu", "t", "u"),
        node("MaxPool", "u", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "p", "q"),
        node("Conv", "q e", "r"),
        node("Sigmoid", "r", "s"),
        node("Mul", "p s", "m"),
        node("Flatten", "m", "v"),
        node("Gemm", "v f g"),
    ]
    return make_model(nodes, SHAPE, constants)


MODEL = network()


def image(seed: int) -> np.ndarray:
    return rng(seed).uniform(-2, 2, SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def compiled(crypten: None) -> CompiledCrypten:
    return compile_crypten(MODEL, image=image(0))


Change = Callable[[Frame], Frame]


def watched(monkeypatch: pytest.MonkeyPatch, change: Change | None = None) -> list[Frame]:
    """The frames that the clinic sends in the next inferences, changed on the way if wanted."""
    sent: list[Frame] = []

    class Watching:
        def __init__(self, channel: MemoryChannel) -> None:
            self._channel = channel
            self.counters = channel.counters

        def send(self, frame: Frame) -> None:
            sent.append(replace(frame, payload=bytes(frame.payload)))
            self._channel.send(change(frame) if change else frame)

        def receive(self, more: bool = False) -> Frame:
            return self._channel.receive()

        def close(self, error: RadiopaqueError | None = None) -> None:
            self._channel.close(error)

    def watching(serve: Callable[[Channel], None], seconds: float) -> Watching:
        return Watching(connect(serve, seconds))

    monkeypatch.setattr(local, "connect", watching)
    return sent


def test_the_result_the_traffic_and_the_clinics_messages(
    compiled: CompiledCrypten, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is onnxruntime's; payloads are as predicted; the clinic sends only noise."""
    sent = watched(monkeypatch)
    found = local.infer(compiled, image(1))
    assert np.abs(found.outputs - plaintext(MODEL, image(1))).max() < 0.01
    cost = compiled.plan.cost()
    assert found.counters.round_trips == cost.round_trips
    payload = b"".join(bytes(frame.payload) for frame in sent)
    assert len(payload) == cost.to_model_owner_bytes
    headers = sum(encoded_size(frame) - len(frame.payload) for frame in sent)
    assert found.counters.sent_bytes == len(payload) + headers
    assert {frame.kind for frame in sent} == {Kind.SHARE}
    # openings of single bits are words of 0 and 1; everything else is uniform over the ring
    wide = [frame.payload for frame in sent if max(np.frombuffer(frame.payload, "u1")) > 1]
    words = np.frombuffer(b"".join(wide), "<u8")
    assert words.size > 10_000
    assert min(uniform(words, 64)) > THRESHOLD
    bits = b"".join(bytes(f.payload) for f in sent if bytes(f.payload) not in wide)
    ones = np.frombuffer(bits, "<u8")
    assert abs(float(ones.mean()) - 0.5) < 5 * 0.5 / np.sqrt(ones.size)


def test_a_frame_out_of_place_ends_the_session(
    compiled: CompiledCrypten, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(frame: Frame) -> Frame:
        return replace(frame, payload=bytes(frame.payload)[:-8]) if frame.gate == 3 else frame

    watched(monkeypatch, cut)
    with pytest.raises(RadiopaqueError) as caught:
        local.infer(compiled, image(1), seconds=60.0)
    assert "takes" in str(caught.value)


def test_a_plan_that_lacks_a_tuple_is_noticed(compiled: CompiledCrypten) -> None:
    """CrypTen asks for what the plan does not have: no tuple is used twice instead."""
    shorter = replace(compiled, plan=replace(compiled.plan, requests=compiled.plan.requests[:-2]))
    with pytest.raises((PlanError, RadiopaqueError), match="tuple"):
        local.infer(shorter, image(1), seconds=60.0)


def test_a_batch_is_computed_as_its_images(crypten: None) -> None:
    """CrypTen's own front end fails with two; ours does not."""
    two = make_model(list(MODEL.graph.node), (2, *SHAPE[1:]))
    two.graph.initializer.extend(MODEL.graph.initializer)
    images = np.concatenate([image(1), image(2)])
    found = local.infer(compile_crypten(two, image=images), images).outputs
    expected = np.concatenate([plaintext(MODEL, image(1)), plaintext(MODEL, image(2))])
    assert np.abs(found - expected).max() < 0.01


def test_the_report_says_what_was_seen(compiled: CompiledCrypten) -> None:
    report, plan = compiled.report, compiled.plan
    assert report.largest_error < 0.01
    assert 0 < plan.gross_errors == report.gross_errors < 1e-3
    assert report.truncations > 576  # of the convolution alone
    assert plan.largest_output == pytest.approx(
        float(np.abs(plaintext(MODEL, image(0))).max()), abs=1e-6
    )


def test_a_model_that_crypten_computes_badly_is_refused(crypten: None) -> None:
    """exp is an approximation for small numbers; values beyond 64 bits wrap unnoticed."""
    with pytest.raises(UnsupportedModelError, match="off by"):
        compile_crypten(make_model([node("Exp", "x")], (1, 4)), image=np.full((1, 4), 8.0))
    nodes = [node("Mul", "x c", "t"), node("Mul", "t t", "u"), node("Mul", "u d")]
    constants = {"c": np.array([2e4], np.float32), "d": np.array([1e-9], np.float32)}
    with pytest.raises(UnsupportedModelError, match=r"64 bits|off by"):
        compile_crypten(make_model(nodes, (1, 4), constants), image=np.full((1, 4), 2.0))


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (np.zeros((2, 1, 12, 12)), "shape"),
        (np.full(SHAPE, np.nan), "NaN"),
        (np.full(SHAPE, np.inf), "NaN or infinity"),
        (np.full(SHAPE, 1e6), "reaches"),
    ],
)
def test_images_that_cannot_be_sent_are_refused(
    compiled: CompiledCrypten, images: np.ndarray, reason: str
) -> None:
    with pytest.raises(TensorError, match=reason):
        check_images(compiled.plan, images)
