"""What every gate is made of: its place in the plan, its cost, and the halves of the parties.

A gate is one object without state. The crypto provider calls :meth:`Gate.deal`, the data owner
:meth:`Gate.prepare`, both offline and for a whole layer. Online, layers are computed in bands
(:mod:`radiopaque.graph.bands`), in the order of :mod:`radiopaque.gates.schedule`. The model owner
calls :meth:`Gate.evaluate` of gates that compute locally, and :meth:`Gate.open` and
:meth:`Gate.proceed` of those that communicate; the data owner :meth:`Gate.answer` of the latter.
Gates override what they need.

Each party computes on a device of its own. Masks, values and states are arrays of that device;
messages, stored material and the result's mask lie in the process's memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from radiopaque.graph.bands import Band, Rows, bands
from radiopaque.graph.plan import Plan, Step
from radiopaque.kernels.cpu import CPU
from radiopaque.kernels.device import Array, Device, LinearMap
from radiopaque.prg import Streams
from radiopaque.ring import RingArray, ring_dtype
from radiopaque.transport.link import Link

Raw = NDArray[np.uint8]


@dataclass(frozen=True)
class Site:
    """A gate's place: its number in the plan (the gate id), its step, and its inputs' steps."""

    number: int
    step: Step
    operands: tuple[Step, ...]
    ring_bits: int

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Word of the ring."""
        return ring_dtype(self.ring_bits)

    @property
    def bands(self) -> tuple[Band, ...]:
        """The output in bands; streams and messages of a gate have its elements in their order."""
        return bands(self.step.shape, self.dtype.itemsize)

    def block_sizes(self) -> Iterator[int]:
        """Elements of every message of the output."""
        for band in self.bands:
            for _, piece in band.blocks:
                yield piece.stop - piece.start

    def arranged(self, device: Device, words: Array) -> Array:
        """Words in the order of bands [size] as an array of the output's shape."""
        cut, shape = self.bands, self.step.shape
        if len(cut) == 1:
            return words.reshape(shape)
        value = device.empty(shape, self.dtype)
        for band in cut:
            if band.rows is not None:
                part = words[band.start : band.stop]
                value[band.rows.where] = part.reshape(band.rows.shape(shape))
        return value

    def in_bands(self, device: Device, value: Array) -> Array:
        """The inverse of :meth:`arranged`."""
        cut = self.bands
        if len(cut) == 1:
            return device.contiguous(value).reshape(-1)
        words = device.empty(self.step.size, self.dtype)
        for band in cut:
            if band.rows is not None:
                words[band.start : band.stop] = value[band.rows.where].reshape(-1)
        return words


def sites(plan: Plan) -> Iterator[Site]:
    """Every gate of a plan in order."""
    for number, step in enumerate(plan.steps):
        operands = tuple(plan.steps[i] for i in step.inputs)
        yield Site(number, step, operands, plan.ring_bits)


@dataclass(frozen=True)
class GateCost:
    """What one gate costs, in payload bytes and counts; sums with ``+``."""

    correction_bytes: int = 0
    """Crypto provider to model owner, offline."""
    offline_bytes: int = 0
    """Data owner to model owner, offline."""
    to_model_owner_bytes: int = 0
    """Data owner to model owner, online."""
    to_data_owner_bytes: int = 0
    """Model owner to data owner, online."""
    round_trips: int = 0
    comparisons: int = 0
    truncations: int = 0
    multiply_adds: int = 0
    """Ring multiply-adds, at the model owner online, and at each other party offline."""

    def __add__(self, other: GateCost) -> GateCost:
        return GateCost(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[int, ...]:
        """The fields in order."""
        return (
            self.correction_bytes,
            self.offline_bytes,
            self.to_model_owner_bytes,
            self.to_data_owner_bytes,
            self.round_trips,
            self.comparisons,
            self.truncations,
            self.multiply_adds,
        )


@dataclass(frozen=True)
class DeviceStreams:
    """Streams whose words are wanted on a device."""

    streams: Streams
    device: Device = CPU

    def words(
        self,
        gate: int,
        quantity: str,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        out: Array | None = None,
    ) -> Array:
        """As :meth:`radiopaque.prg.Streams.words`; ``out`` is an array of the device."""
        words = partial(self.streams.words, gate, quantity, shape, dtype)
        return self.device.fill(words, shape, dtype, out)


def fresh_words(streams: DeviceStreams, site: Site) -> Array:
    """A, the fresh mask of a gate's output, in the order of its bands, ring words [size]."""
    return streams.words(site.number, "mask", (site.step.size,), site.dtype)


def fresh_mask(streams: DeviceStreams, site: Site) -> Array:
    """A in the shape of the output."""
    return site.arranged(streams.device, fresh_words(streams, site))


@dataclass(frozen=True)
class Dealing:
    """The crypto provider's means: both parties' streams and the linear maps of B."""

    data_owner: DeviceStreams
    model_owner: DeviceStreams
    maps: Mapping[int, LinearMap] = field(repr=False)

    @property
    def device(self) -> Device:
        """Where it computes."""
        return self.data_owner.device


@dataclass(frozen=True)
class Preparing:
    """The data owner's means offline: its streams and the linear maps of F = W - B."""

    streams: DeviceStreams
    maps: Mapping[int, LinearMap] = field(repr=False)


@dataclass
class Answering:
    """The data owner online: its link, the encoded image and, at the end, the result's share."""

    link: Link
    image: Array = field(repr=False)
    """Encoded, in the shape of the plan's input."""
    device: Device = CPU
    result: NDArray[np.int64] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Evaluating:
    """The model owner online: its link, the linear maps of W and the secret constants."""

    link: Link
    maps: Mapping[int, LinearMap] = field(repr=False)
    constants: Mapping[int, Array] = field(repr=False)
    device: Device = CPU


@dataclass(frozen=True)
class Dealt:
    """Result of dealing one gate: the output's mask where known, the model owner's corrections."""

    mask: Array | None = field(repr=False)
    corrections: NDArray[Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Prepared:
    """Result of preparing one gate: the output's mask, the offline message to the model owner."""

    mask: Array = field(repr=False)
    message: Raw | None = field(default=None, repr=False)


class Reach(Enum):
    """What of its operands some rows of a local gate's output are made of."""

    ROWS = "the same rows of every operand, of as many rows each"
    WINDOWS = "rows of the one operand that lie in the same order"
    WHOLE = "everything"


class Gate:
    """A gate's three halves. The base class is a gate without communication or secrets."""

    replies: int | None = None
    """Messages of the data owner online, a band; None: the gate does not communicate."""

    def cost(self, site: Site) -> GateCost:
        """Payload bytes, round trips and work of this gate."""
        return GateCost()

    def reach(self, site: Site) -> Reach:
        """What :meth:`evaluate` wants to be given."""
        return Reach.WHOLE

    def rows_needed(self, site: Site, bottom: int) -> int:
        """Rows of the operand's image in the windows of the first ``bottom`` rows of the output's.

        May be below 0 or over the image's height, and is larger by the same number, above 0, for
        each further row. For Reach.WINDOWS alone.
        """
        raise NotImplementedError

    def deal(self, context: Dealing, site: Site, masks: Sequence[Array | None]) -> Dealt:
        """Crypto provider, offline. ``masks`` are its inputs' masks, None where it knows none."""
        raise NotImplementedError

    def prepare(self, context: Preparing, site: Site, masks: Sequence[Array]) -> Prepared:
        """Data owner, offline. ``masks`` are the masks of the inputs."""
        raise NotImplementedError

    def load_answer(self, streams: DeviceStreams, site: Site, output_mask: RingArray) -> Any:
        """Data owner, before the image: expand what :meth:`answer` needs."""
        return None

    def answer(self, context: Answering, site: Site, state: Any, band: Band, stage: int) -> None:
        """Data owner, online: what the model owner's message number ``stage`` asks for, from 0."""
        raise NotImplementedError

    def load_evaluate(
        self, streams: DeviceStreams, site: Site, corrections: Raw, offline: Raw
    ) -> Any:
        """Model owner, before the image: bring stored material into form for the online phase."""
        return None

    def evaluate(
        self,
        context: Evaluating,
        site: Site,
        state: Any,
        values: Sequence[Array],
        rows: Rows | None = None,
    ) -> Array:
        """Model owner, online: its share of some rows of the output; None: of all of it.

        ``values`` are its shares of the inputs: of these rows where the reach is ROWS, otherwise of
        everything, of which with WINDOWS only the rows that are needed count. The result may be a
        view of them.
        """
        raise NotImplementedError

    def open(self, context: Evaluating, site: Site, state: Any, band: Band, value: Array) -> None:
        """Model owner, online: send message 0 of a band. ``value`` is the input's share there."""
        raise NotImplementedError

    def proceed(
        self, context: Evaluating, site: Site, state: Any, band: Band, stage: int
    ) -> Array | None:
        """Model owner, online: take the data owner's reply number ``stage``, from 1.

        After the last one, returns the share of the output's band [band.size].
        """
        raise NotImplementedError
