"""A torch device as gates see it: a GPU, or the processor for tests of the same code.

Streams are expanded by the processor (ChaCha20 of the cryptography package) into page-locked
memory and copied from there while the processor goes on to the next one; what is received takes the
same way. What is sent is copied into page-locked memory, and waited for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from radiopaque.errors import ConfigError
from radiopaque.graph.bands import Rows
from radiopaque.graph.plan import Convolution, Linear, MatrixProduct, WindowSum
from radiopaque.kernels.bits import Bytes, check_packed
from radiopaque.kernels.convolution import check_weights
from radiopaque.kernels.device import LinearMap, Words
from radiopaque.kernels.matmul import check_matrix
from radiopaque.kernels.tensors import bits, comparison, linear
from radiopaque.kernels.tensors.linear import LIMB
from radiopaque.kernels.tensors.words import bits as bits_of
from radiopaque.kernels.tensors.words import down, kept_as, signed, wide, word_dtype
from radiopaque.ring import RingArray

_CHECKED_DEPTH = 1 << 12


def open_cuda() -> TensorDevice:
    """The GPU that torch calls the current one; CUDA_VISIBLE_DEVICES chooses among several.

    Raises ConfigError where there is none, or where its matrix products are not exact.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            f'device = "cuda": PyTorch {torch.__version__} finds no CUDA GPU on this machine; '
            "install the GPU's driver and a PyTorch built for CUDA, check CUDA_VISIBLE_DEVICES, "
            'or set device = "cpu"'
        )
    device = TensorDevice(torch.device("cuda", torch.cuda.current_device()))
    device.check_exactness()
    return device


class TensorDevice:
    """See :class:`radiopaque.kernels.device.Device`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._apart = device.type == "cuda"
        """Whether it has memory of its own, to and from which is copied."""

    def __repr__(self) -> str:
        return f"TensorDevice({self._device})"

    @property
    def name(self) -> str:
        return self._device.type

    def check_exactness(self) -> None:
        """Multiply the largest limbs of all. Raises ConfigError where the product is not exact.

        A library that computes float64 by other means than float64 would show here.
        """
        for word in (np.uint32, np.uint64):
            x = np.full((64, _CHECKED_DEPTH), ~word(0))
            weights = np.full((_CHECKED_DEPTH, 64), ~word(0))
            weights[0, 0] = 1 << LIMB  # so that they are not all short
            product = self.download(self.linear_map(MatrixProduct(64), weights)(self.upload(x)))
            # (-1)(-1) each
            if not (product[:, 1:] == _CHECKED_DEPTH).all():
                raise ConfigError(
                    f'device = "cuda": float64 matrix products are not exact on {self._device}; '
                    'switch off what emulates them in other formats, or set device = "cpu"'
                )

    def upload(self, words: NDArray[np.unsignedinteger]) -> Tensor:
        host = self._host(words.shape, words.dtype)
        _words(host)[...] = words
        return self._here(host)

    def download(self, words: Tensor) -> NDArray[np.unsignedinteger]:
        if not self._apart:
            return _words(words.contiguous())
        host = self._host(tuple(words.shape), word_dtype(words.dtype))
        host.copy_(words, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return _words(host)

    def fill(
        self, words: Words, shape: tuple[int, ...], dtype: DTypeLike, out: Tensor | None = None
    ) -> Tensor:
        host = self._host(shape, dtype)
        words(_words(host))
        if out is None:
            return self._here(host)
        return out.copy_(host, non_blocking=True)

    def _host(self, shape: tuple[int, ...], dtype: DTypeLike) -> Tensor:
        """Memory of the process from which, and to which, the device copies by itself."""
        return torch.empty(shape, dtype=kept_as(dtype), pin_memory=self._apart)

    def _here(self, host: Tensor) -> Tensor:
        """torch keeps page-locked memory until it has been copied from."""
        return host.to(self._device, non_blocking=True)

    def pack(self, values: Tensor, width: int) -> Bytes:
        return self.download(bits.pack(values, width)).view(np.uint8)

    def unpack(
        self, data: Bytes, count: int, width: int, dtype: np.dtype[np.unsignedinteger]
    ) -> Tensor:
        raw = check_packed(data, count, width)
        return bits.unpack(self.upload(raw), count, width, kept_as(dtype))

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> Tensor:
        return torch.empty(shape, dtype=kept_as(dtype), device=self._device)

    def view(self, octets: Tensor, dtype: DTypeLike) -> Tensor:
        return octets.view(kept_as(dtype))

    def contiguous(self, values: Tensor) -> Tensor:
        return values.contiguous()

    def transpose(self, values: Tensor, permutation: Sequence[int]) -> Tensor:
        return values.permute(*permutation).contiguous()

    def broadcast(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        return values.broadcast_to(shape).contiguous()

    def concatenate(self, values: Sequence[Tensor], axis: int) -> Tensor:
        return torch.cat(list(values), axis)

    def pad(
        self, values: Tensor, before: Sequence[int], after: Sequence[int], constant: int
    ) -> Tensor:
        word = signed(constant, bits_of(values))
        return linear.surrounded(values, tuple(before), tuple(after), word)

    def scaled(self, values: Tensor, factor: int) -> Tensor:
        return values * signed(factor, bits_of(values))

    def shifted(self, values: Tensor, places: int) -> Tensor:
        return down(wide(values), places).to(values.dtype)

    def window_sum(self, values: Tensor, gate: WindowSum, rows: Rows | None = None) -> Tensor:
        return linear.window_sum(values, gate, rows)

    def warm_up(self, dtype: DTypeLike) -> None:
        """Nothing is compiled."""

    def linear_map(self, gate: Linear, weights: RingArray) -> LinearMap:
        if isinstance(gate, Convolution):
            check_weights(weights, gate)
            return linear.TensorConvolution(self.upload(weights), gate)
        if isinstance(gate, MatrixProduct):
            check_matrix(weights)
            return linear.TensorMatrix(self.upload(weights))
        return linear.TensorProduct(self.upload(weights))

    deal_comparison = staticmethod(comparison.deal_comparison)
    open_comparison = staticmethod(comparison.open_comparison)
    select_comparison = staticmethod(comparison.select_comparison)
    decide_comparison = staticmethod(comparison.decide_comparison)
    finish_comparison = staticmethod(comparison.finish_comparison)
    deal_truncation = staticmethod(comparison.deal_truncation)
    open_truncation = staticmethod(comparison.open_truncation)
    finish_truncation = staticmethod(comparison.finish_truncation)


def _words(host: Tensor) -> NDArray[np.unsignedinteger]:
    """The same memory as unsigned words."""
    return host.numpy().view(word_dtype(host.dtype))
