"""ReLU fused with truncation: z = max(y, 0) >> s, stochastically rounded, with a fresh mask.

Let alpha = y^ >> s (opened to both, s low bits withheld), a its top bit; r' = r >> s, beta its top
bit, n the bits below. c = [alpha_low < r'_low]; d = 1 xor a xor beta xor c is 1 where y >= 0. With
u = r' - (1-a) v and v = beta 2^(opened_bits - s), z = d (alpha - u).

The comparison needs no circuit: the n bits are cut into chunks of 6, and each chunk's "less" is a
one-bit look-up in an XOR-shared 64-entry truth table (level 1), its "equal" the XOR of two
neighbouring entries; their masked results index one XOR-shared table (level 2) that holds d masked
by rho.

Online:
  1. O -> D  OPENING       alpha and O's level-1 bits, masked by mu_O
  2. D -> O  SELECTION     D's level-1 bits, masked by mu_D, and D's bit of d^ = d xor rho
  3. O -> D  DECISION      O's bit of d^
  4. D -> O  RERANDOMISED  e = z_D - A, A the output's fresh mask; O sets h = z_O + e

Source: docs/protocol.md, section 6; one-time truth tables after Ishai et al., TCC 2013, and
Damgard, Nielsen, Nielsen, Ranellucci, CRYPTO 2017 (TinyTable).
Leaks: nothing. alpha is padded by r, level-1 bits by mu, the decision by rho, e by A.
Round trips: 2. Bytes online, an element: n = 18 in a 32-bit ring: 3 + 1/8 to D, 6/8 + 4 to O.
Bytes offline: level 1, 24; level 2, 4; products, five ring words; delta, opened_bits.
Exact for -2^(opened_bits-1) <= y <= 2^(opened_bits-1) - 2^s; there is no failure probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from radiopaque.gates.base import (
    Answering,
    Dealing,
    Dealt,
    DeviceStreams,
    Evaluating,
    Gate,
    GateCost,
    Prepared,
    Preparing,
    Raw,
    Site,
    fresh_mask,
    fresh_words,
)
from radiopaque.gates.opening import delta_bytes, delta_message, opening_mask, opening_offset
from radiopaque.graph.bands import Band
from radiopaque.graph.plan import Relu
from radiopaque.kernels.bits import packed_size
from radiopaque.kernels.device import Array, Device
from radiopaque.ring import RingArray
from radiopaque.wire.frames import Kind

PRODUCTS = 5  # rho, r', r' rho, v, v rho


@dataclass(frozen=True)
class Window:
    """Sizes that follow from a Relu gate's opened bits and shift."""

    opened_bits: int
    shift: int
    compared_bits: int
    chunks: int

    @classmethod
    def of(cls, site: Site) -> Window:
        gate = site.step.gate
        if not isinstance(gate, Relu):
            raise TypeError(f"{type(gate).__name__} is not a Relu gate")
        return cls(gate.opened_bits, gate.shift, gate.compared_bits, gate.chunks)

    @property
    def index_bits(self) -> int:
        """Level-1 bits of an element: less and equal of every chunk, of the last only less."""
        return 2 * self.chunks - 1

    @property
    def level2_words(self) -> int:
        """Words of 32 bits of an element's level-2 table."""
        return (1 << self.index_bits) // 32

    @property
    def opening_bytes(self) -> int:
        """Bytes an element of the OPENING message (alpha and level-1 bits): always whole bytes."""
        return (self.compared_bits + 1 + self.index_bits) // 8

    @property
    def word_dtype(self) -> np.dtype[np.unsignedinteger]:
        """Holds one element of the OPENING message."""
        return np.dtype(np.uint32 if self.opening_bytes <= 4 else np.uint64)

    @property
    def selection_bits(self) -> int:
        """Bits an element of the SELECTION message."""
        return self.index_bits + 1

    @property
    def selection_dtype(self) -> np.dtype[np.unsignedinteger]:
        """Holds one element of the SELECTION message."""
        return np.dtype(np.uint8 if self.selection_bits <= 8 else np.uint16)


@dataclass(frozen=True)
class _Tables:
    """One party's tables and products, in planes over the layer's elements."""

    level1: Array = field(repr=False)
    products: Array = field(repr=False)
    level2: Array = field(repr=False)

    @classmethod
    def of(cls, device: Device, site: Site, window: Window, region: Array) -> _Tables:
        """Views of a region, bytes: all of level 1, then the products, then level 2."""
        size = site.step.size
        first = 8 * size * window.chunks
        second = first + PRODUCTS * size * site.dtype.itemsize
        return cls(
            device.view(region[:first], np.uint64).reshape(window.chunks, size),
            device.view(region[first:second], site.dtype).reshape(PRODUCTS, size),
            device.view(region[second:], np.uint32).reshape(window.level2_words, size),
        )

    @classmethod
    def expand(cls, streams: DeviceStreams, site: Site, window: Window, region: Array) -> _Tables:
        """The data owner's half, written into a region."""
        tables = cls.of(streams.device, site, window, region)
        for quantity, planes, dtype in (
            ("level1", tables.level1, np.uint64),
            ("products", tables.products, site.dtype),
            ("level2", tables.level2, np.uint32),
        ):
            streams.words(site.number, quantity, planes.shape, dtype, out=planes)
        return tables


@dataclass(frozen=True)
class _DataOwnerState:
    mu: Array = field(repr=False)
    tables: _Tables
    mask: Array = field(repr=False)
    kept: dict[int, tuple[Array, Array]] = field(default_factory=dict, repr=False)
    """Of a band between its messages: the opening, own bits of the decision."""


@dataclass(frozen=True)
class _ModelOwnerState:
    offset: Array = field(repr=False)
    mu: Array = field(repr=False)
    tables: _Tables
    kept: dict[int, tuple[Array, Array]] = field(default_factory=dict, repr=False)
    """Of a band between its messages: masked words, opened bits of the decision."""


class ReluGate(Gate):
    """max(y, 0) >> s. See the module's text."""

    replies = 2

    def cost(self, site: Site) -> GateCost:
        window = Window.of(site)
        size = site.step.size
        word = site.dtype.itemsize
        selection = sum(packed_size(size, window.selection_bits) for size in site.block_sizes())
        decision = sum(packed_size(size, 1) for size in site.block_sizes())
        return GateCost(
            correction_bytes=_table_bytes(site, window),
            offline_bytes=delta_bytes(site, window.opened_bits),
            to_model_owner_bytes=selection + size * word,
            to_data_owner_bytes=size * window.opening_bytes + decision,
            round_trips=2,
            comparisons=size,
        )

    def deal(self, context: Dealing, site: Site, masks: Sequence[Array | None]) -> Dealt:
        window, device = Window.of(site), context.device
        d, o = context.data_owner, context.model_owner
        region = device.empty(_table_bytes(site, window), np.uint8)
        tables = _Tables.expand(d, site, window, region)
        device.deal_comparison(
            opening_mask(d, site),
            opening_mask(o, site),
            _selection_mask(d, site),
            _selection_mask(o, site),
            _decision_mask(d, site),
            _decision_mask(o, site),
            window.opened_bits,
            window.shift,
            tables.level1,
            tables.level2,
            tables.products,
        )
        return Dealt(fresh_mask(d, site), device.download(region))

    def prepare(self, context: Preparing, site: Site, masks: Sequence[Array]) -> Prepared:
        message = delta_message(context.streams, site, masks[0], Window.of(site).opened_bits)
        return Prepared(fresh_mask(context.streams, site), message)

    def load_answer(
        self, streams: DeviceStreams, site: Site, output_mask: RingArray
    ) -> _DataOwnerState:
        window = Window.of(site)
        region = streams.device.empty(_table_bytes(site, window), np.uint8)
        return _DataOwnerState(
            _selection_mask(streams, site),
            _Tables.expand(streams, site, window, region),
            fresh_words(streams, site),
        )

    def answer(
        self, context: Answering, site: Site, state: _DataOwnerState, band: Band, stage: int
    ) -> None:
        if stage == 0:
            self._select(context, site, state, band)
        else:
            self._rerandomise(context, site, state, band)

    def _select(self, context: Answering, site: Site, state: _DataOwnerState, band: Band) -> None:
        """Messages 1, 2: the opening comes in, the selection goes out."""
        window, link, device = Window.of(site), context.link, context.device
        masked = device.empty(band.size, window.word_dtype)
        own = device.empty(band.size, np.uint8)
        for block, piece in band.blocks:
            length, here = piece.stop - piece.start, band.local(piece)
            opening = link.receive(site.number, Kind.OPENING, block, length * window.opening_bytes)
            reply = device.empty(length, window.selection_dtype)
            device.select_comparison(
                device.upload(opening.reshape(window.opening_bytes, length)),
                state.mu,
                state.tables.level1,
                state.tables.level2,
                piece.start,
                window.compared_bits,
                masked[here],
                own[here],
                reply,
            )
            message = device.pack(reply, window.selection_bits)
            link.send(site.number, Kind.SELECTION, block, message)
        state.kept[band.number] = masked, own

    def _rerandomise(
        self, context: Answering, site: Site, state: _DataOwnerState, band: Band
    ) -> None:
        """Messages 3, 4: the other bit of the decision comes in, a share of z goes out."""
        window, link, device = Window.of(site), context.link, context.device
        masked, own = state.kept.pop(band.number)
        for block, piece in band.blocks:
            length, here = piece.stop - piece.start, band.local(piece)
            data = link.receive(site.number, Kind.DECISION, block, packed_size(length, 1))
            decision = device.unpack(data, length, 1, np.dtype(np.uint8)) ^ own[here]
            share = device.empty(length, site.dtype)
            device.finish_comparison(
                masked[here],
                decision,
                state.tables.products,
                state.mask[piece],
                piece.start,
                window.compared_bits,
                False,
                share,
            )
            link.send(site.number, Kind.RERANDOMISED, block, device.download(share).view(np.uint8))

    def load_evaluate(
        self, streams: DeviceStreams, site: Site, corrections: Raw, offline: Raw
    ) -> _ModelOwnerState:
        window, device = Window.of(site), streams.device
        return _ModelOwnerState(
            opening_offset(streams, site, offline, window.opened_bits),
            _selection_mask(streams, site),
            _Tables.of(device, site, window, device.upload(corrections)),
        )

    def open(
        self,
        context: Evaluating,
        site: Site,
        state: _ModelOwnerState,
        band: Band,
        value: Array,
    ) -> None:
        """Message 1: open alpha, send own level-1 bits."""
        window, device = Window.of(site), context.device
        h = device.contiguous(value).reshape(-1)
        masked = device.empty(band.size, window.word_dtype)
        for block, piece in band.blocks:
            here = band.local(piece)
            opening = device.empty((window.opening_bytes, piece.stop - piece.start), np.uint8)
            device.open_comparison(
                h[here],
                state.offset,
                state.mu,
                state.tables.level1,
                piece.start,
                window.opened_bits,
                window.shift,
                masked[here],
                opening,
            )
            message = device.download(opening.reshape(-1))
            context.link.send(site.number, Kind.OPENING, block, message)
        state.kept[band.number] = masked, device.empty(band.size, np.uint8)

    def proceed(
        self, context: Evaluating, site: Site, state: _ModelOwnerState, band: Band, stage: int
    ) -> Array | None:
        if stage == 1:
            self._decide(context, site, state, band)
            return None
        return self._finish(context, site, state, band)

    def _decide(self, context: Evaluating, site: Site, state: _ModelOwnerState, band: Band) -> None:
        """Messages 2, 3: the selection comes in, own bit of the decision goes out."""
        window, link, device = Window.of(site), context.link, context.device
        masked, opened = state.kept[band.number]
        for block, piece in band.blocks:
            length, here = piece.stop - piece.start, band.local(piece)
            data = link.receive(
                site.number, Kind.SELECTION, block, packed_size(length, window.selection_bits)
            )
            decision = device.empty(length, np.uint8)
            device.decide_comparison(
                masked[here],
                device.unpack(data, length, window.selection_bits, window.selection_dtype),
                state.tables.level2,
                piece.start,
                window.compared_bits,
                window.index_bits,
                decision,
                opened[here],
            )
            link.send(site.number, Kind.DECISION, block, device.pack(decision, 1))

    def _finish(
        self, context: Evaluating, site: Site, state: _ModelOwnerState, band: Band
    ) -> Array:
        """Message 4: own share of z plus the data owner's, less its fresh mask."""
        window, device = Window.of(site), context.device
        masked, opened = state.kept.pop(band.number)
        out = device.empty(band.size, site.dtype)
        for block, piece in band.blocks:
            length, here = piece.stop - piece.start, band.local(piece)
            other = context.link.receive_words(
                site.number, Kind.RERANDOMISED, block, length, site.dtype
            )
            device.finish_comparison(
                masked[here],
                opened[here],
                state.tables.products,
                device.upload(other),
                piece.start,
                window.compared_bits,
                True,
                out[here],
            )
        return out


def _selection_mask(streams: DeviceStreams, site: Site) -> Array:
    return streams.words(site.number, "selection", (site.step.size,), np.uint16)


def _decision_mask(streams: DeviceStreams, site: Site) -> Array:
    return streams.words(site.number, "decision", (site.step.size,), np.uint8)


def _table_bytes(site: Site, window: Window) -> int:
    """Bytes of one party's tables and products."""
    words = 8 * window.chunks + 4 * window.level2_words + PRODUCTS * site.dtype.itemsize
    return site.step.size * words
