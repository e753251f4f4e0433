"""Bands: every element once, in the order that a second implementation lists, none too large."""

from __future__ import annotations

from math import prod
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from radiopaque.gates.base import Site
from radiopaque.graph import plan as p
from radiopaque.graph.bands import bands, crossing, row_count, rows_between, some_rows
from radiopaque.kernels.cpu import CPU
from tests.reference.bands import order

SHAPES = st.lists(st.integers(1, 6), min_size=4, max_size=4).map(tuple) | st.lists(
    st.integers(1, 5), min_size=1, max_size=5
).map(tuple)


@settings(max_examples=300, deadline=None)
@given(SHAPES, st.integers(1, 80), st.sampled_from((32, 64)))
def test_bands_are_those_of_the_second_implementation(
    shape: p.Shape, words: int, ring_bits: int
) -> None:
    with mock.patch("radiopaque.graph.bands.BLOCK_BYTES", words * ring_bits // 8):
        site = Site(0, p.Step(p.Input(), (), shape, 0), (), ring_bits)
        cut = site.bands
        expected = order(shape, words)
        places = np.arange(prod(shape), dtype=site.dtype)
        value = site.arranged(CPU, places)
        listed = [[int(value[place]) for place in band] for band in expected]
        assert listed == [list(range(band.start, band.stop)) for band in cut]
        assert (site.in_bands(CPU, value) == places).all()
        assert list(site.block_sizes()) == [
            piece.stop - piece.start for band in cut for _, piece in band.blocks
        ]


@settings(max_examples=300, deadline=None)
@given(SHAPES, st.integers(1, 80))
def test_bands_and_blocks_follow_one_another(shape: p.Shape, words: int) -> None:
    with mock.patch("radiopaque.graph.bands.BLOCK_BYTES", words * 4):
        cut = bands(shape, 4)
    row = shape[1] * shape[3] if len(shape) == 4 else prod(shape)
    assert (cut[0].start, cut[-1].stop) == (0, prod(shape))
    assert cut[-1].end == row_count(shape)
    number = at = rows = 0
    for place, band in enumerate(cut):
        assert band.number == place
        assert band.end > rows
        assert band.size <= max(words, row)
        if band.rows is not None:
            assert prod(band.rows.shape(shape)) == band.size
            assert band.rows.height == band.end - rows
        rows = band.end
        for block, piece in band.blocks:
            assert (block, piece.start) == (number, at)
            assert 0 < piece.stop - piece.start <= words
            assert band.local(piece) == slice(piece.start - band.start, piece.stop - band.start)
            number, at = number + 1, piece.stop
        assert at == band.stop


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.data())
def test_rows_between(images: int, height: int, data: st.DataObject) -> None:
    shape = (images, 2, height, 3)
    total = row_count(shape)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    listed = []
    for rows in rows_between(shape, start, stop):
        assert rows is not None
        several = rows.last - rows.first > 1
        assert not several or (rows.top, rows.bottom) == (0, height)
        listed += [
            image * height + row
            for image in range(rows.first, rows.last)
            for row in range(rows.top, rows.bottom)
        ]
    assert listed == list(range(start, stop))
    assert list(rows_between((7, 9), 0, 1)) == [None]
    assert list(rows_between((7, 9), 1, 1)) == []


@given(st.integers(-9, 9), st.integers(0, 9), st.integers(1, 6))
def test_crossing(start: int, length: int, size: int) -> None:
    before, inside, after = crossing(start, start + length, size)
    axis = list(range(size))
    padded = [None] * before + axis[inside] + [None] * after
    assert padded == [i if 0 <= i < size else None for i in range(start, start + length)]


@settings(deadline=None)
@given(st.data())
def test_some_rows_of_what_is_broadcast(data: st.DataObject) -> None:
    shape = (3, 2, 4, 2)
    narrow = tuple(data.draw(st.sampled_from((1, extent))) for extent in shape)
    narrow = narrow[data.draw(st.integers(0, 4)) :]
    constant = np.arange(prod(narrow)).reshape(narrow)
    start = data.draw(st.integers(0, 11))
    for rows in rows_between(shape, start, data.draw(st.integers(start, 12))):
        assert rows is not None
        whole = np.broadcast_to(constant, shape)[rows.where]
        part = np.broadcast_to(some_rows(constant, rows), rows.shape(shape))
        assert (whole == part).all()
    assert some_rows(constant, None) is constant
