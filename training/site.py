"""What one site does in a round: a few steps on its own images, and the change of the weights.

This is the part that is the same in one process, across machines, with and without privacy: a
site step takes the network and the weights of the round and returns a `SiteUpdate`. Source of the
scheme: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, algorithm 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.errors import DivergedError, SettingsError

Vector = NDArray[np.float32]
Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class SiteUpdate:
    """What a site hands to aggregation.

    `delta` is float32 [parameters], new minus old weights in the order of `shared_names`; the
    update counts `samples` times in the average; `metrics` are figures for the log of the site.
    """

    delta: Vector
    samples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


SiteStep = Callable[[nn.Module, Weights], SiteUpdate]


class Site(Protocol):
    """A participant. `begin` is called once before the `step` of each round, counted from 0."""

    @property
    def name(self) -> str: ...

    @property
    def samples(self) -> int: ...

    def begin(self, number: int, rounds: int) -> None: ...

    def step(self, model: nn.Module, weights: Weights) -> SiteUpdate: ...


def shared_names(model: nn.Module) -> tuple[str, ...]:
    """Names of what is averaged, in the order of the flat vector.

    First the trainable parameters as `named_parameters` has them, then mean and variance of the
    batch norms that train. A network whose batch norms are frozen, or that has none, shares
    parameters only.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for name, module in model.named_modules():
        if _trains_statistics(module):
            prefix = f"{name}." if name else ""
            names += [f"{prefix}running_mean", f"{prefix}running_var"]
    return tuple(names)


def _trains_statistics(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.running_mean is not None
        and module.weight is not None
        and module.weight.requires_grad
    )


def set_training_mode(model: nn.Module) -> None:
    """Training mode, except for frozen batch norms, whose statistics must not move."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not _trains_statistics(module):
            module.eval()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything that is shared, by name."""
    state = model.state_dict()
    return {name: state[name].detach().clone() for name in shared_names(model)}


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Put shared weights into the network.

    Raises:
        SettingsError: names or shapes are not those of the network.
    """
    names = shared_names(model)
    if set(names) != set(weights):
        missing = sorted(set(names) ^ set(weights))[:3]
        raise SettingsError(
            f"the weights do not belong to this network (for instance {', '.join(missing)}); "
            "all sites need the same configuration"
        )
    state = model.state_dict()
    with torch.no_grad():
        for name in names:
            if state[name].shape != weights[name].shape:
                raise SettingsError(
                    f"{name} has shape {tuple(weights[name].shape)}, the network needs "
                    f"{tuple(state[name].shape)}; all sites need the same configuration"
                )
            state[name].copy_(weights[name])


def flatten(weights: Weights, names: tuple[str, ...]) -> Vector:
    """Return float32 [parameters]: the tensors of `names`, one after the other."""
    parts = [weights[name].detach().reshape(-1).to("cpu", torch.float32) for name in names]
    joined = torch.cat(parts) if parts else torch.empty(0)
    vector: Vector = joined.numpy()
    return vector


def unflatten(vector: Vector, like: Weights, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Cut a flat vector, float32 [parameters], into tensors shaped as in `like`.

    Raises:
        SettingsError: the vector has another length.
    """
    expected = sum(like[name].numel() for name in names)
    if vector.shape != (expected,):
        raise SettingsError(
            f"the update has shape {vector.shape}, the network needs ({expected},); "
            "all sites need the same configuration"
        )
    tensors: dict[str, Tensor] = {}
    start = 0
    flat = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float32))
    for name in names:
        size = like[name].numel()
        tensors[name] = flat[start : start + size].reshape(like[name].shape).clone()
        start += size
    return tensors


def applied(weights: Weights, delta: Vector, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return `weights` plus a flat change."""
    changes = unflatten(delta, weights, names)
    return {name: weights[name] + changes[name] for name in names}


def update_since(
    weights: Weights, model: nn.Module, samples: int, metrics: Mapping[str, float], site: str
) -> SiteUpdate:
    """Return the update that leads from `weights` to what `model` holds now.

    Raises:
        DivergedError: a weight is not finite.
    """
    names = shared_names(model)
    delta: Vector = flatten(weights_of(model), names) - flatten(weights, names)
    if not np.isfinite(delta).all():
        raise DivergedError(
            f"the update of site {site!r} is not finite; lower the learning rate. "
            "Nothing of it was sent, and the last checkpoint is untouched"
        )
    return SiteUpdate(delta, samples, metrics)


def round_generator(seed: int, site: str, number: int) -> torch.Generator:
    """The generator of one site in one round, so that a resumed run repeats an unbroken one.

    For shuffling and augmentation only: never for masks, keys or privacy noise.
    """
    digest = hashlib.sha256(f"{seed}/{site}/{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
