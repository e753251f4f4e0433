"""Tiny torch networks of the families that the compiler is meant for, and their export."""

from __future__ import annotations

import io
import warnings

import onnx
import torch
from torch import Tensor, nn

from tests.unit.graph.support import Floats, rng


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch norm statistics too, so that folding them is tested; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.weight.data[::3] *= -1
            module.bias.data.normal_(0, 0.3, generator=generator)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Conv1d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.3, generator=generator)
    return model.eval()


def export(
    model: nn.Module, shape: tuple[int, ...], dynamo: bool = False, opset: int | None = None
) -> onnx.ModelProto:
    """The network as either of torch's exporters writes it, with a dynamic batch dimension."""
    image = torch.zeros(shape)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if dynamo:
            batch = {0: torch.export.Dim("batch", min=1, max=64)}
            program = torch.onnx.export(
                model,
                (image,),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=(batch,),
                verbose=False,
            )
            assert program is not None
            return program.model_proto
        file = io.BytesIO()
        torch.onnx.export(
            model,
            (image,),
            file,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=opset or 17,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "n"}},
        )
    return onnx.load_from_string(file.getvalue())


def images(shape: tuple[int, ...], seed: int = 0) -> Floats:
    """Smooth-ish random images, float32."""
    noise = rng(seed).normal(size=shape)
    return (noise + rng(seed + 1).normal(size=(*shape[:2], 1, 1))).astype("float32")


class DenseBlock(nn.Module):
    """Batch norm before each convolution, behind a concatenation: not foldable (Huang 2017)."""

    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(channels + i * growth),
                nn.ReLU(),
                nn.Conv2d(channels + i * growth, 2 * growth, 1, bias=False),
                nn.BatchNorm2d(2 * growth),
                nn.ReLU(),
                nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False),
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


def densenet() -> nn.Module:
    """Stem, dense block, transition with average pool, dense block, head."""
    return randomise(
        nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
            DenseBlock(8, 4, 2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 8, 1, bias=False),
            nn.AvgPool2d(2),
            DenseBlock(8, 4, 2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 3),
        )
    )


class InvertedResidual(nn.Module):
    """Expand, depthwise, project without activation (Sandler 2018)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        hidden = 3 * channels
        self.residual = stride == 1 and channels == out
        self.body = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.residual else y


def mobilenet() -> nn.Module:
    """Depthwise convolutions, ReLU6 and linear bottlenecks."""
    return randomise(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            InvertedResidual(8, 8, 1),
            InvertedResidual(8, 12, 2),
            InvertedResidual(12, 12, 1),
            nn.Conv2d(12, 24, 1),
            nn.ReLU6(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(24, 4),
        )
    )


def vgg() -> nn.Module:
    """Plain convolutions with bias, 2x2 max-pools, several fully connected layers."""
    return randomise(
        nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 12, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(12 * 16, 20),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(20, 5),
        )
    )


class Inception(nn.Module):
    """Branches of different scales that meet in a concatenation, with pools of stride 1."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(6, 4, 1)
        self.three = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(6, 4, 1))
        self.average = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.one(x), self.three(x), self.pooled(x), self.average(x)]
        return torch.relu(torch.cat(branches, 1))


def inception() -> nn.Module:
    """One block between a stem and a head."""
    return randomise(
        nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.ReLU(),
            Inception(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(18, 3),
        )
    )
