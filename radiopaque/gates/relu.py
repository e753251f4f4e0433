"""ReLU fused with truncation: z = max(y, 0) >> s, stochastically rounded, with a fresh mask.

Let alpha = y^ >> s (opened to both, s low bits withheld), a its top bit; r' = r >> s, beta its top
bit, n the bits below. c = [alpha_low < r'_low]; d = 1 xor a xor beta xor c is 1 where y >= 0. With
u = r' - (1-a) v and v = beta 2^(opened_bits - s), z = d (alpha - u).

The comparison needs no circuit: the n bits are cut into chunks of 6, and each chunk's "less" and
"equal" are one-bit look-ups in XOR-shared 64-entry truth tables (level 1); their masked results
index one XOR-shared table (level 2) that holds d masked by rho.

Online:
  1. O -> D  OPENING       alpha and O's level-1 bits, masked by mu_O
  2. D -> O  SELECTION     D's level-1 bits, masked by mu_D, and D's bit of d^ = d xor rho
  3. O -> D  DECISION      O's bit of d^
  4. D -> O  RERANDOMISED  e = z_D - A, A the output's fresh mask; O sets h = z_O + e

Source: docs/protocol.md, section 6; one-time truth tables after Ishai et al., TCC 2013, and
Damgard, Nielsen, Nielsen, Ranellucci, CRYPTO 2017 (TinyTable).
Leaks: nothing. alpha is padded by r, level-1 bits by mu, the decision by rho, e by A.
Round trips: 2. Bytes online, an element: n = 18 in a 32-bit ring: 3 + 1/8 to D, 6/8 + 4 to O.
Bytes offline: level 1, 40; level 2, 4; products, five ring words; delta, opened_bits.
Exact for -2^(opened_bits-1) <= y <= 2^(opened_bits-1) - 2^s; there is no failure probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from radiopaque.gates.base import (
    Answering,
    Dealing,
    Dealt,
    Evaluating,
    Gate,
    GateCost,
    Prepared,
    Preparing,
    Raw,
    Site,
)
from radiopaque.gates.opening import delta_bytes, delta_message, opening_mask, opening_offset
from radiopaque.graph.plan import Relu
from radiopaque.kernels import comparison as kernels
from radiopaque.kernels.bits import pack, packed_size, unpack
from radiopaque.prg import Streams
from radiopaque.ring import RingArray
from radiopaque.wire.frames import Kind

PRODUCTS = 5  # rho, r', r' rho, v, v rho


@dataclass(frozen=True)
class Window:
    """Sizes that follow from a Relu gate's opened bits and shift."""

    opened_bits: int
    shift: int
    compared_bits: int
    level1_words: int
    level2_words: int

    @classmethod
    def of(cls, site: Site) -> Window:
        gate = site.step.gate
        if not isinstance(gate, Relu):
            raise TypeError(f"{type(gate).__name__} is not a Relu gate")
        index_bits = 2 * gate.chunks - 1
        return cls(
            gate.opened_bits, gate.shift, gate.compared_bits, index_bits, (1 << index_bits) // 32
        )

    @property
    def opening_bytes(self) -> int:
        """Bytes an element of the OPENING message (alpha and level-1 bits): always whole bytes."""
        return (self.compared_bits + 1 + self.level1_words) // 8

    @property
    def word_dtype(self) -> np.dtype[np.unsignedinteger]:
        """Holds one element of the OPENING message."""
        return np.dtype(np.uint32 if self.opening_bytes <= 4 else np.uint64)

    @property
    def selection_bits(self) -> int:
        """Bits an element of the SELECTION message."""
        return self.level1_words + 1


@dataclass(frozen=True)
class _DataOwnerState:
    mu: NDArray[np.uint16] = field(repr=False)
    level1: NDArray[np.uint64] = field(repr=False)
    level2: NDArray[np.uint32] = field(repr=False)
    products: RingArray = field(repr=False)
    mask: RingArray = field(repr=False)


@dataclass(frozen=True)
class _ModelOwnerState:
    offset: RingArray = field(repr=False)
    mu: NDArray[np.uint16] = field(repr=False)
    level1: NDArray[np.uint64] = field(repr=False)
    level2: NDArray[np.uint32] = field(repr=False)
    products: RingArray = field(repr=False)


class ReluGate(Gate):
    """max(y, 0) >> s. See the module's text."""

    def cost(self, site: Site) -> GateCost:
        window = Window.of(site)
        size = site.step.size
        word = site.dtype.itemsize
        blocks = [piece.stop - piece.start for _, piece in site.blocks()]
        selection = sum(packed_size(length, window.selection_bits) for length in blocks)
        decision = sum(packed_size(length, 1) for length in blocks)
        return GateCost(
            correction_bytes=size
            * (8 * window.level1_words + 4 * window.level2_words + PRODUCTS * word),
            offline_bytes=delta_bytes(site, window.opened_bits),
            to_model_owner_bytes=selection + size * word,
            to_data_owner_bytes=size * window.opening_bytes + decision,
            round_trips=2,
            comparisons=size,
        )

    def deal(self, context: Dealing, site: Site, masks: Sequence[RingArray | None]) -> Dealt:
        window = Window.of(site)
        d, o = context.data_owner, context.model_owner
        level1 = np.empty((site.step.size, window.level1_words), np.uint64)
        level2 = np.empty((site.step.size, window.level2_words), np.uint32)
        products = np.empty((site.step.size, PRODUCTS), site.dtype)
        kernels.deal_comparison(
            opening_mask(d, site),
            opening_mask(o, site),
            _selection_mask(d, site),
            _selection_mask(o, site),
            _decision_mask(d, site),
            _decision_mask(o, site),
            _level1(d, site, window),
            _level2(d, site, window),
            _products(d, site),
            kernels.tie_break_table(window.level1_words // 2 + 1),
            window.opened_bits,
            window.shift,
            level1,
            level2,
            products,
        )
        return Dealt(fresh_mask(d, site), [level1, products, level2])

    def prepare(self, context: Preparing, site: Site, masks: Sequence[RingArray]) -> Prepared:
        message = delta_message(context.streams, site, masks[0], Window.of(site).opened_bits)
        return Prepared(fresh_mask(context.streams, site), message)

    def load_answer(self, streams: Streams, site: Site, output_mask: RingArray) -> _DataOwnerState:
        window = Window.of(site)
        return _DataOwnerState(
            _selection_mask(streams, site),
            _level1(streams, site, window),
            _level2(streams, site, window),
            _products(streams, site),
            fresh_mask(streams, site).reshape(-1),
        )

    def answer(self, context: Answering, site: Site, state: _DataOwnerState) -> None:
        window, link = Window.of(site), context.link
        size = site.step.size
        alpha = np.empty(size, np.uint32)
        own = np.empty(size, np.uint8)
        for block, piece in site.blocks():
            length = piece.stop - piece.start
            # 1, 2: the opening comes in, the selection goes out
            opening = link.receive(site.number, Kind.OPENING, block, length * window.opening_bytes)
            reply = np.empty(length, np.uint16)
            kernels.select_comparison(
                opening,
                window.opening_bytes,
                state.mu[piece],
                state.level1[piece],
                state.level2[piece],
                window.compared_bits,
                alpha[piece],
                own[piece],
                reply,
            )
            link.send(site.number, Kind.SELECTION, block, pack(reply, window.selection_bits))
        for block, piece in site.blocks():
            # 3, 4: the model owner's bit of the decision comes in, the rerandomised share goes out
            length = piece.stop - piece.start
            data = link.receive(site.number, Kind.DECISION, block, packed_size(length, 1))
            decision = unpack(data, length, 1, np.dtype(np.uint8)) ^ own[piece]
            share = np.empty(length, site.dtype)
            kernels.finish_comparison(
                alpha[piece],
                decision,
                state.products[piece],
                state.mask[piece],
                window.compared_bits,
                0,
                kernels.minus_one(),
                share,
            )
            link.send(site.number, Kind.RERANDOMISED, block, share.view(np.uint8))

    def load_evaluate(
        self, streams: Streams, site: Site, corrections: Raw, offline: Raw
    ) -> _ModelOwnerState:
        window = Window.of(site)
        size = site.step.size
        first = 8 * size * window.level1_words
        second = first + PRODUCTS * size * site.dtype.itemsize
        return _ModelOwnerState(
            opening_offset(streams, site, offline, window.opened_bits),
            _selection_mask(streams, site),
            corrections[:first].view(np.uint64).reshape(size, window.level1_words),
            corrections[second:].view(np.uint32).reshape(size, window.level2_words),
            corrections[first:second].view(site.dtype).reshape(size, PRODUCTS),
        )

    def evaluate(
        self,
        context: Evaluating,
        site: Site,
        state: _ModelOwnerState,
        values: Sequence[RingArray],
    ) -> RingArray:
        window, link = Window.of(site), context.link
        h = values[0].reshape(-1)
        masked = np.empty(h.size, window.word_dtype)
        opened = np.empty(h.size, np.uint8)
        out = np.empty(h.size, site.dtype)
        for block, piece in site.blocks():
            # 1: open alpha, send own level-1 bits
            opening = np.empty((piece.stop - piece.start) * window.opening_bytes, np.uint8)
            kernels.open_comparison(
                h[piece],
                state.offset[piece],
                state.mu[piece],
                state.level1[piece],
                window.opened_bits,
                window.shift,
                window.opening_bytes,
                masked[piece],
                opening,
            )
            link.send(site.number, Kind.OPENING, block, opening)
        for block, piece in site.blocks():
            # 2, 3: the data owner's selection comes in, own bit of the decision goes out
            length = piece.stop - piece.start
            data = link.receive(
                site.number, Kind.SELECTION, block, packed_size(length, window.selection_bits)
            )
            reply = unpack(data, length, window.selection_bits, np.dtype(np.uint16))
            decision = np.empty(length, np.uint8)
            kernels.decide_comparison(
                masked[piece],
                reply,
                state.level2[piece],
                window.compared_bits,
                window.level1_words,
                decision,
                opened[piece],
            )
            link.send(site.number, Kind.DECISION, block, pack(decision, 1))
        for block, piece in site.blocks():
            # 4: own share of z plus the data owner's, less its fresh mask
            length = piece.stop - piece.start
            other = link.receive_words(site.number, Kind.RERANDOMISED, block, length, site.dtype)
            kernels.finish_comparison(
                masked[piece],
                opened[piece],
                state.products[piece],
                other,
                window.compared_bits,
                1,
                np.uint64(1),
                out[piece],
            )
        return out.reshape(site.step.shape)


def fresh_mask(streams: Streams, site: Site) -> RingArray:
    """A, the fresh mask of the gate's output, in its shape."""
    return streams.words(site.number, "mask", site.step.shape, site.dtype)


def _selection_mask(streams: Streams, site: Site) -> NDArray[np.uint16]:
    return streams.words(site.number, "selection", (site.step.size,), np.uint16)


def _decision_mask(streams: Streams, site: Site) -> NDArray[np.uint8]:
    return streams.words(site.number, "decision", (site.step.size,), np.uint8)


def _level1(streams: Streams, site: Site, window: Window) -> NDArray[np.uint64]:
    return streams.words(site.number, "level1", (site.step.size, window.level1_words), np.uint64)


def _level2(streams: Streams, site: Site, window: Window) -> NDArray[np.uint32]:
    return streams.words(site.number, "level2", (site.step.size, window.level2_words), np.uint32)


def _products(streams: Streams, site: Site) -> RingArray:
    return streams.words(site.number, "products", (site.step.size, PRODUCTS), site.dtype)
