"""Whole networks of the families that matter, as both of torch's exporters write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import nn

from radiopaque.graph import plan as p
from radiopaque.graph.compile import compile_model
from radiopaque.graph.ranges import calibrate
from tests.unit.graph import networks
from tests.unit.graph.support import assert_matches, gates, rng
from training.resnet import ResNet18

SHIPPED = Path(__file__).parents[3] / "models" / "pneumonia-resnet18" / "model.onnx"
RESNET_18_SHORTCUTS = 3


def resnet() -> nn.Module:
    return networks.randomise(ResNet18(classes=3, channels=1, width=4))


NETWORKS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (resnet, (2, 1, 32, 32)),
    (networks.densenet, (2, 1, 16, 16)),
    (networks.mobilenet, (2, 3, 16, 16)),
    (networks.vgg, (2, 1, 16, 16)),
    (networks.inception, (2, 1, 16, 16)),
]


@pytest.mark.parametrize(("make", "shape"), NETWORKS, ids=lambda v: getattr(v, "__name__", None))
@pytest.mark.parametrize(("ring_bits", "tolerance"), [(32, 2.0**-7), (64, 2.0**-13)])
def test_legacy_exporter(
    make: Callable[[], nn.Module], shape: tuple[int, ...], ring_bits: int, tolerance: float
) -> None:
    model = networks.export(make(), shape)
    assert_matches(model, networks.images(shape), ring_bits, tolerance, batch=2)


@pytest.mark.parametrize("opset", [11, 13])
def test_legacy_exporter_in_old_opsets(opset: int) -> None:
    shape = (2, 3, 16, 16)
    model = networks.export(networks.mobilenet(), shape, opset=opset)
    assert model.opset_import[0].version == opset
    assert_matches(model, networks.images(shape), 64, 2.0**-13, batch=2)


@pytest.mark.parametrize(
    ("make", "shape", "opset"),
    [(networks.mobilenet, (2, 3, 16, 16), 18), (networks.inception, (2, 1, 16, 16), None)],
    ids=["mobilenet", "inception"],
)
def test_dynamo_exporter(
    make: Callable[[], nn.Module], shape: tuple[int, ...], opset: int | None
) -> None:
    model = networks.export(make(), shape, dynamo=True, opset=opset)
    assert model.opset_import[0].version >= 18
    assert_matches(model, networks.images(shape), 64, 2.0**-13, batch=2)
    assert_matches(model, networks.images(shape), 32, 2.0**-7, batch=2)


def test_converted_to_the_newest_opset() -> None:
    shape = (2, 1, 16, 16)
    model = onnx.version_converter.convert_version(networks.export(networks.vgg(), shape), 26)
    assert_matches(model, networks.images(shape), 64, 2.0**-13, batch=2)


def test_resnet_18_costs_what_the_protocol_says() -> None:
    """PROTOCOL section 7: 0.8 M truncations, 1.2 M comparisons in the pool, 44 round trips."""
    x = rng().normal(size=(1, 1, 224, 224)).astype(np.float32)
    compiled = compile_model(SHIPPED, ranges=calibrate(SHIPPED, [x]))
    report = compiled.report
    assert report.truncate_gates == 1
    assert report.truncations == 802_816
    assert report.relu_gates == 21
    assert report.remask_gates == 0
    assert report.round_trips == 44
    assert report.linear_gates == 1 + 16 + RESNET_18_SHORTCUTS + 1
    layers = [step.size for step in compiled.plan.steps if isinstance(step.gate, p.Relu)]
    assert layers[:5] == [401_408, 401_408, 200_704, 200_704, 200_704]
    assert report.comparisons - sum(layers[:4]) == 1_705_984
    assert all(gate.compared_bits == 18 for gate in gates(compiled, p.Relu))


def test_dense_blocks_truncate_each_of_their_inputs_once() -> None:
    """Two blocks of two layers and a transition: four new tensors, its pool, the stem's pool."""
    shape = (1, 1, 16, 16)
    model = networks.export(networks.densenet(), shape)
    compiled = compile_model(model, ranges=calibrate(model, [networks.images(shape)]))
    sizes = [step.size for step in compiled.plan.steps if isinstance(step.gate, p.Truncate)]
    assert sizes == [8 * 256, 4 * 64, 4 * 64, 8 * 16, 4 * 16, 4 * 16]


def test_batches_share_one_plan() -> None:
    shape = (3, 1, 16, 16)
    compiled = assert_matches(
        networks.export(networks.vgg(), shape), networks.images(shape), batch=3
    )
    assert compiled.plan.batch == 3
    assert compiled.plan.output_step.shape == (3, 5)
