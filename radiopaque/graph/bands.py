"""Bands: the rows of a layer that are opened together, and the order of a layer's elements.

A convolution reads a few rows of every channel. So a layer is cut into bands of image rows, all
channels of a row together, and its elements are counted band by band: as soon as a band has been
compared, the next layer can be computed there, while the bands below are still on the wire. Masks,
tables and messages of a gate lie in this order; inside a band elements are in row-major order of
[n, c, h, w]. Values without rows (any other rank) are one band, in row-major order.

Bands follow from the shape alone, so all parties cut alike. Rows of a batch are counted through all
of its images: row ``i * h + y`` is row ``y`` of image ``i``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, Final, NamedTuple

from radiopaque.graph.plan import Shape

BLOCK_BYTES: Final = 1 << 19
"""Most ring words of a message, and of a band where one row is not more."""


class Rows(NamedTuple):
    """Rows ``top`` to ``bottom`` of images ``first`` to ``last``, all channels; ends excluded.

    Of more than one image they are all rows.
    """

    first: int
    last: int
    top: int
    bottom: int

    @property
    def where(self) -> tuple[slice, ...]:
        """Of an array [n, c, h, w]."""
        return (slice(self.first, self.last), slice(None), slice(self.top, self.bottom))

    @property
    def height(self) -> int:
        """Number of rows, through all of the images."""
        return (self.last - self.first) * (self.bottom - self.top)

    def shape(self, whole: Shape) -> Shape:
        """Shape of these rows of a value of that shape."""
        return (self.last - self.first, whole[1], self.bottom - self.top, whole[3])


@dataclass(frozen=True)
class Band:
    """A part of a layer: ``rows`` of it (None: all), its elements from ``start`` to ``stop``.

    ``blocks`` are its messages: (number in the layer, elements), the band's elements in order.
    """

    number: int
    rows: Rows | None
    end: int
    """Rows of the layer up to the end of this band."""
    start: int
    stop: int
    blocks: tuple[tuple[int, slice], ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start

    def local(self, piece: slice) -> slice:
        """Where a block lies among the band's own elements."""
        return slice(piece.start - self.start, piece.stop - self.start)


def row_count(shape: Shape) -> int:
    """Rows of a value, through all of its images; one that has no rows is a single one."""
    return shape[0] * shape[2] if len(shape) == 4 else 1


def rows_between(shape: Shape, start: int, stop: int) -> Iterator[Rows | None]:
    """Rows ``start`` to ``stop`` of a value: parts of one image each, or whole images."""
    if start >= stop:
        return
    if len(shape) != 4:
        yield None
        return
    height = shape[2]
    while start < stop:
        image, top = divmod(start, height)
        if top == 0 and stop - start >= height:
            last = stop // height
            yield Rows(image, last, 0, height)
            start = last * height
        else:
            bottom = min(height, top + stop - start)
            yield Rows(image, image + 1, top, bottom)
            start += bottom - top


def bands(shape: Shape, word_bytes: int) -> tuple[Band, ...]:
    """A layer of this shape in bands. Those of one image differ by at most one row."""
    return _bands(shape, BLOCK_BYTES // word_bytes)


def band_count(shape: Shape, word_bytes: int) -> int:
    """How many bands a layer is cut into."""
    return sum(1 for _ in _cut(shape, BLOCK_BYTES // word_bytes))


@lru_cache(maxsize=4096)
def _bands(shape: Shape, words: int) -> tuple[Band, ...]:
    found: list[Band] = []
    start = block = end = 0
    for rows in _cut(shape, words):
        size = prod(shape if rows is None else rows.shape(shape))
        blocks = []
        for first in range(start, start + size, words):
            blocks.append((block, slice(first, min(first + words, start + size))))
            block += 1
        if rows is None:
            end = row_count(shape)
        else:
            end += rows.height
        found.append(Band(len(found), rows, end, start, start + size, tuple(blocks)))
        start += size
    return tuple(found)


def _cut(shape: Shape, words: int) -> Iterator[Rows | None]:
    if len(shape) != 4 or prod(shape) <= words:
        yield None
        return
    images, channels, height, width = shape
    image = channels * height * width
    if image <= words:
        together = words // image
        for first in range(0, images, together):
            yield Rows(first, min(first + together, images), 0, height)
        return
    most = max(1, words // (channels * width))
    count = -(-height // most)
    for first in range(images):
        for number in range(count):
            top, bottom = number * height // count, (number + 1) * height // count
            yield Rows(first, first + 1, top, bottom)


def crossing(start: int, stop: int, size: int) -> tuple[int, slice, int]:
    """Places ``start`` to ``stop`` of an axis that has ``size``: (before, inside, after)."""
    before = min(max(0, -start), stop - start)
    after = min(max(0, stop - size), stop - start)
    inside = slice(start + before, max(start + before, stop - after))
    return before, inside, after


def some_rows(broadcast: Any, rows: Rows | None) -> Any:
    """What of an array that is broadcast to [n, c, h, w] meets these rows; None: all of it."""
    if rows is None:
        return broadcast
    if broadcast.ndim >= 2 and broadcast.shape[-2] > 1:
        broadcast = broadcast[..., rows.top : rows.bottom, :]
    if broadcast.ndim == 4 and broadcast.shape[0] > 1:
        broadcast = broadcast[rows.first : rows.last]
    return broadcast
