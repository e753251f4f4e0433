"""What has to be changed before CrypTen 0.4.1 runs here, each with its reason.

Whatever is needed of CrypTen is imported from here, never from ``crypten``, which would not load by
itself; :func:`install` puts a session's parts in place of CrypTen's globals.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn, Protocol

import torch
from torch.onnx._internal.torchscript_exporter import registration

# CrypTen's ONNX front end, which only the benchmarks use, imports
# torch.onnx._internal.registration; since torch 2.9 it lives under torchscript_exporter.
sys.modules.setdefault("torch.onnx._internal.registration", registration)

import crypten  # noqa: E402 - the alias must be there first
from crypten.communicator.communicator import Communicator  # noqa: E402
from crypten.mpc.primitives import (  # noqa: E402
    ArithmeticSharedTensor,
    BinarySharedTensor,
    arithmetic,
    binary,
)
from crypten.mpc.provider.provider import TupleProvider  # noqa: E402

from radiopaque.errors import EngineError  # noqa: E402

__all__ = [
    "ArithmeticSharedTensor",
    "BinarySharedTensor",
    "Communicator",
    "Source",
    "TupleProvider",
    "crypten",
    "install",
    "torch",
]

Tensor = Any
"""A torch tensor of 64-bit integers, or one of CrypTen's; CrypTen has no types."""

_CPU = torch.device("cpu")

DRAWING = (
    *("rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "random"),
    *("random_", "uniform_", "normal", "normal_", "log_normal_", "cauchy_", "exponential_"),
    *("geometric_", "bernoulli", "bernoulli_", "binomial", "multinomial", "poisson"),
    *("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "native_dropout"),
    *("feature_dropout", "feature_dropout_", "alpha_dropout", "alpha_dropout_"),
    *("feature_alpha_dropout", "feature_alpha_dropout_", "rrelu", "rrelu_"),
    *("gru", "lstm", "miopen_rnn", "rnn_relu", "rnn_tanh", "scaled_dot_product_attention"),
)
"""Functions that draw from torch's generator, or can; CrypTen's own for secrets use none."""


class Source(Protocol):
    """Takes the place of a torch.Generator: uniform words, never the same twice."""

    def words(self, shape: tuple[int, ...]) -> Tensor:
        """An int64 tensor of this shape, uniform over all of its values."""
        ...


def install(communicator: Any, provider: Any, sources: dict[str, Source]) -> None:
    """Make CrypTen use this communicator, tuple provider and randomness. Once in a process.

    ``sources``: "prev", "next" and "local", as CrypTen names its generators.
    """
    # CrypTen picks one of its two communicators here; every use looks the function up again.
    crypten.communicator.get = lambda: communicator
    crypten.communicator.is_initialized = lambda: True
    # CrypTen picks one of its own providers by name.
    crypten.mpc.get_default_provider = lambda: provider
    # CrypTen draws with torch.randint from a torch.Generator (MT19937, seeded with 64 bits; its
    # upper bound leaves out a value of the ring).
    for module in (arithmetic, crypten.common.rng):
        module.generate_random_ring_element = _ring_elements
    for module in (binary, crypten.common.rng):
        module.generate_kbit_random_tensor = _bits
    for name, source in sources.items():
        crypten.generators[name] = {_CPU: source}
    # Dropout's masks, in training alone, come from here.
    crypten.generators["global"] = {}
    # Whatever else might draw would not be cryptographic: it ends the session instead.
    for place in (torch, torch.Tensor, torch.nn.functional):
        for name in DRAWING:
            if hasattr(place, name):
                setattr(place, name, _refuse_random)


def _ring_elements(
    size: Any, ring_size: int = 1 << 64, generator: Source | None = None, device: Any = None
) -> Tensor:
    """CrypTen's generate_random_ring_element."""
    if ring_size != 1 << 64:
        raise EngineError(f"CrypTen asked for random numbers below {ring_size}, not 2^64")
    source: Source = generator or crypten.generators["local"][_CPU]
    return source.words(tuple(size))


def _bits(
    size: Any, bitlength: int | None = None, generator: Source | None = None, device: Any = None
) -> Tensor:
    """CrypTen's generate_kbit_random_tensor."""
    words = _ring_elements(size, generator=generator)
    if bitlength is None or bitlength == 64:
        return words
    return words & ((1 << bitlength) - 1)


def _refuse_random(*_: object, **__: object) -> NoReturn:
    raise EngineError("CrypTen drew from torch's generator, which is not cryptographic")
