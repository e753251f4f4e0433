"""The processor as a device: numpy's arrays and the loops compiled with Numba, nothing copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from radiopaque.graph.bands import Rows, some_rows
from radiopaque.graph.plan import Convolution, Linear, MatrixProduct, WindowSum
from radiopaque.kernels import bits, convolution
from radiopaque.kernels import comparison as loops
from radiopaque.kernels.bits import Bytes
from radiopaque.kernels.convolution import PackedConvolution, PackedMatrix, window_sum
from radiopaque.kernels.device import LinearMap, Words
from radiopaque.kernels.workers import ALONE, Workers
from radiopaque.ring import RingArray


class CpuDevice:
    """See :class:`radiopaque.kernels.device.Device`. ``workers`` share the work of linear maps.

    In the 32-bit ring the time of W's maps depends on whether all weights of a gate fit 16 bits
    (:class:`PackedConvolution`), as the compiler sees to; otherwise times depend on shapes alone.
    """

    name = "cpu"

    def __init__(self, workers: Workers = ALONE) -> None:
        self._workers = workers

    def __repr__(self) -> str:
        return f"CpuDevice({self._workers.threads} thread(s))"

    def upload(self, words: NDArray[np.unsignedinteger]) -> RingArray:
        return words

    def download(self, words: RingArray) -> RingArray:
        return np.asarray(words, order="C")

    def fill(
        self, words: Words, shape: tuple[int, ...], dtype: DTypeLike, out: RingArray | None = None
    ) -> RingArray:
        return words(out)

    def pack(self, values: RingArray, width: int) -> Bytes:
        return bits.pack(values, width)

    def unpack(
        self, data: Bytes, count: int, width: int, dtype: np.dtype[np.unsignedinteger]
    ) -> RingArray:
        return bits.unpack(data, count, width, dtype)

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        return np.empty(shape, dtype)

    def view(self, octets: Bytes, dtype: DTypeLike) -> RingArray:
        return octets.view(dtype)

    def contiguous(self, values: RingArray) -> RingArray:
        # numpy's own function gives a single number an axis
        return np.asarray(values, order="C")

    def transpose(self, values: RingArray, permutation: Sequence[int]) -> RingArray:
        return np.ascontiguousarray(values.transpose(permutation))

    def broadcast(self, values: RingArray, shape: tuple[int, ...]) -> RingArray:
        return np.broadcast_to(values, shape).copy()

    def concatenate(self, values: Sequence[RingArray], axis: int) -> RingArray:
        return np.concatenate(values, axis)

    def pad(
        self, values: RingArray, before: Sequence[int], after: Sequence[int], constant: int
    ) -> RingArray:
        widths = tuple(zip(before, after, strict=True))
        return np.pad(values, widths, constant_values=_word(values, constant))

    def scaled(self, values: RingArray, factor: int) -> RingArray:
        return values.copy() if factor == 1 else values * _word(values, factor)

    def shifted(self, values: RingArray, places: int) -> RingArray:
        return values >> values.dtype.type(places)

    def window_sum(self, values: RingArray, gate: WindowSum, rows: Rows | None = None) -> RingArray:
        return window_sum(values, gate, rows)

    def warm_up(self, dtype: DTypeLike) -> None:
        convolution.warm_up(dtype)

    def linear_map(self, gate: Linear, weights: RingArray) -> LinearMap:
        if isinstance(gate, Convolution):
            return PackedConvolution(weights, gate, workers=self._workers)
        if isinstance(gate, MatrixProduct):
            return PackedMatrix(weights, workers=self._workers)
        return _Elementwise(weights)

    def deal_comparison(
        self,
        r_d: RingArray,
        r_o: RingArray,
        mu_d: RingArray,
        mu_o: RingArray,
        rho_d: RingArray,
        rho_o: RingArray,
        opened_bits: int,
        shift: int,
        level1: RingArray,
        level2: RingArray,
        products: RingArray,
    ) -> None:
        table = loops.tie_break_table(level1.shape[0])
        masks = (r_d, r_o, mu_d, mu_o, rho_d, rho_o)
        loops.deal_comparison(*masks, table, opened_bits, shift, level1, level2, products)

    def open_comparison(
        self,
        h: RingArray,
        offset: RingArray,
        mu: RingArray,
        level1: RingArray,
        first: int,
        opened_bits: int,
        shift: int,
        masked: RingArray,
        message: Bytes,
    ) -> None:
        loops.open_comparison(h, offset, mu, level1, first, opened_bits, shift, masked, message)

    def select_comparison(
        self,
        message: Bytes,
        mu: RingArray,
        level1: RingArray,
        level2: RingArray,
        first: int,
        n: int,
        received: RingArray,
        decision: RingArray,
        reply: RingArray,
    ) -> None:
        loops.select_comparison(message, mu, level1, level2, first, n, received, decision, reply)

    def decide_comparison(
        self,
        masked: RingArray,
        reply: RingArray,
        level2: RingArray,
        first: int,
        n: int,
        index_bits: int,
        decision: RingArray,
        opened: RingArray,
    ) -> None:
        loops.decide_comparison(masked, reply, level2, first, n, index_bits, decision, opened)

    def finish_comparison(
        self,
        masked: RingArray,
        opened: RingArray,
        products: RingArray,
        other: RingArray,
        first: int,
        n: int,
        model_owner: bool,
        out: RingArray,
    ) -> None:
        public, sign = (_ONE, _ONE) if model_owner else (_NONE, loops.minus_one())
        loops.finish_comparison(masked, opened, products, other, first, n, public, sign, out)

    def deal_truncation(
        self, r_d: RingArray, r_o: RingArray, opened_bits: int, shift: int, products: RingArray
    ) -> None:
        loops.deal_truncation(r_d, r_o, opened_bits, shift, products)

    def open_truncation(
        self,
        h: RingArray,
        offset: RingArray,
        products: RingArray,
        first: int,
        opened_bits: int,
        shift: int,
        top: RingArray,
        share: RingArray,
    ) -> None:
        loops.open_truncation(h, offset, products, first, opened_bits, shift, top, share)

    def finish_truncation(
        self, top: RingArray, products: RingArray, mask: RingArray, first: int, out: RingArray
    ) -> None:
        loops.finish_truncation(top, products, mask, first, out)


class _Elementwise:
    """x -> weights * x with broadcasting."""

    def __init__(self, weights: RingArray) -> None:
        self._weights = weights

    def __call__(self, x: RingArray, rows: Rows | None = None) -> RingArray:
        product: RingArray = x * some_rows(self._weights, rows)
        return product

    def __repr__(self) -> str:
        return f"<elementwise map, weights {list(self._weights.shape)} {self._weights.dtype}>"


def _word(values: RingArray, number: int) -> np.unsignedinteger:
    """A signed integer as a word of the values' ring."""
    return values.dtype.type(number % (1 << (8 * values.itemsize)))


_ONE: Final = np.uint64(1)
_NONE: Final = np.uint64(0)

CPU: Final = CpuDevice()
"""The processor, one thread."""
