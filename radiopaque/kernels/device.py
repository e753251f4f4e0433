"""What gates need of the device that a party computes on.

Gates hold arrays of their device: numpy's on the processor (:mod:`radiopaque.kernels.cpu`), torch's
elsewhere (:mod:`radiopaque.kernels.tensors`). Both kinds are indexed, reshaped, added, subtracted
and combined by exclusive or in the same notation, and their words wrap; what differs is here. The
same words come out on every device, bit for bit, so each party may be on its own.

dtypes are numpy's unsigned ones throughout. A device may keep the bits under another name (torch
has no arithmetic on uint32), which its arrays' own dtypes show and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from radiopaque.graph.bands import Rows
from radiopaque.graph.plan import Linear, WindowSum
from radiopaque.kernels.bits import Bytes
from radiopaque.ring import RingArray

Array = Any
"""An array of a device: numpy's on the processor, a torch tensor elsewhere."""


class LinearMap(Protocol):
    """x -> weights * x of one gate with secret weights, exact in the ring."""

    def __call__(self, x: Array, rows: Rows | None = None) -> Array:
        """All of the output, or some rows of it.

        Of these a convolution is given the whole input, of which it reads the rows that it needs,
        every other map the same rows of the input.
        """
        ...


Words = Callable[[NDArray[np.unsignedinteger] | None], NDArray[np.unsignedinteger]]
"""Writes a stream into an array in this process's memory, or makes one for it; returns it."""


class Device(Protocol):
    """Arrays, and the loops over them. Threads may share it.

    The comparison's and the truncation's methods are the loops of
    :mod:`radiopaque.kernels.comparison`, with their layouts and their arguments: what is computed
    is written into arrays that the caller has made.
    """

    @property
    def name(self) -> str:
        """As in the configuration."""
        ...

    # --- to and from the network and the streams

    def upload(self, words: NDArray[np.unsignedinteger]) -> Array:
        """The same words here. The caller's array may be the result and must not change."""
        ...

    def download(self, words: Array) -> NDArray[np.unsignedinteger]:
        """The same words as a contiguous numpy array, ready to be sent."""
        ...

    def fill(
        self, words: Words, shape: tuple[int, ...], dtype: DTypeLike, out: Array | None = None
    ) -> Array:
        """A stream's words, written into ``out`` if given, contiguous and of that shape."""
        ...

    def pack(self, values: Array, width: int) -> Bytes:
        """The low ``width`` bits of every element, to be sent (:mod:`radiopaque.kernels.bits`)."""
        ...

    def unpack(
        self, data: Bytes, count: int, width: int, dtype: np.dtype[np.unsignedinteger]
    ) -> Array:
        """What :meth:`pack` packed, [count]. Raises MessageSizeError, MessageValueError."""
        ...

    # --- arrays

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> Array:
        """An array to be written."""
        ...

    def view(self, octets: Array, dtype: DTypeLike) -> Array:
        """Bytes [n] as words [n / itemsize], the same memory."""
        ...

    def contiguous(self, values: Array) -> Array:
        """In row-major order, the same array where it is."""
        ...

    def transpose(self, values: Array, permutation: Sequence[int]) -> Array:
        """Axis ``i`` of the result is axis ``permutation[i]``; contiguous."""
        ...

    def broadcast(self, values: Array, shape: tuple[int, ...]) -> Array:
        """Numpy broadcasting; contiguous and writable."""
        ...

    def concatenate(self, values: Sequence[Array], axis: int) -> Array:
        """One after the other along an axis."""
        ...

    def pad(
        self, values: Array, before: Sequence[int], after: Sequence[int], constant: int
    ) -> Array:
        """Surrounded by a signed integer, taken mod 2**k."""
        ...

    def scaled(self, values: Array, factor: int) -> Array:
        """A new array: times a signed integer, mod 2**k."""
        ...

    def shifted(self, values: Array, places: int) -> Array:
        """Down by some bits; zeros come in at the top."""
        ...

    def window_sum(self, values: Array, gate: WindowSum, rows: Rows | None = None) -> Array:
        """Sums over windows of the last two axes; or some rows of them, of all values."""
        ...

    def warm_up(self, dtype: DTypeLike) -> None:
        """Compile the linear maps' loops for a ring, in all variants that weights may ask for."""
        ...

    def linear_map(self, gate: Linear, weights: RingArray) -> LinearMap:
        """The map of a gate, its weights brought here and into form once."""
        ...

    # --- comparison and truncation

    def deal_comparison(
        self,
        r_d: Array,
        r_o: Array,
        mu_d: Array,
        mu_o: Array,
        rho_d: Array,
        rho_o: Array,
        opened_bits: int,
        shift: int,
        level1: Array,
        level2: Array,
        products: Array,
    ) -> None:
        """Crypto provider: the data owner's tables and products become the model owner's."""
        ...

    def open_comparison(
        self,
        h: Array,
        offset: Array,
        mu: Array,
        level1: Array,
        first: int,
        opened_bits: int,
        shift: int,
        masked: Array,
        message: Array,
    ) -> None:
        """Model owner, message 1."""
        ...

    def select_comparison(
        self,
        message: Array,
        mu: Array,
        level1: Array,
        level2: Array,
        first: int,
        n: int,
        received: Array,
        decision: Array,
        reply: Array,
    ) -> None:
        """Data owner, message 2."""
        ...

    def decide_comparison(
        self,
        masked: Array,
        reply: Array,
        level2: Array,
        first: int,
        n: int,
        index_bits: int,
        decision: Array,
        opened: Array,
    ) -> None:
        """Model owner, message 3."""
        ...

    def finish_comparison(
        self,
        masked: Array,
        opened: Array,
        products: Array,
        other: Array,
        first: int,
        n: int,
        model_owner: bool,
        out: Array,
    ) -> None:
        """A party's share of z: the model owner's plus ``other``, the data owner's minus it."""
        ...

    def deal_truncation(
        self, r_d: Array, r_o: Array, opened_bits: int, shift: int, products: Array
    ) -> None:
        """Crypto provider: the data owner's products become the model owner's."""
        ...

    def open_truncation(
        self,
        h: Array,
        offset: Array,
        products: Array,
        first: int,
        opened_bits: int,
        shift: int,
        top: Array,
        share: Array,
    ) -> None:
        """Model owner: the top bit to send, and its own share."""
        ...

    def finish_truncation(
        self, top: Array, products: Array, mask: Array, first: int, out: Array
    ) -> None:
        """Data owner: its share minus its fresh mask."""
        ...
