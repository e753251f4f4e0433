"""How long the gates of a plan take, from their shapes alone.

The unit is a ring product of a large layer, of which a core does 10^10 a second. Small and odd
shapes take more than their products: kernels fill tiles, copy padded images, and begin anew for
every image, group and row. The constants are rounded up from times of both kinds of shapes.
"""

from __future__ import annotations

from math import prod

from radiopaque.graph import plan as p
from radiopaque.graph.bands import band_count

TILE_ROWS = 8
TILE_COLUMNS = 32
"""Outputs and positions that the kernels of any machine multiply at once, needed or not."""
ELEMENT = 128
"""An element of a gate that moves or adds."""
COPIED = 48
"""An element of a padded copy, of a window that is gathered, of a row that is packed."""
ADDED = 8
"""An element of a row that is added to another."""
LINE = 512
"""Beginning a row, or a channel of an image."""
IMAGE = 4096
"""Beginning an image, of one group's channels."""
BAND_ROWS = 8
"""Rows that are convolved together, at least, where there are as many."""


def step_work(plan: p.Plan, step: p.Step) -> int:
    """Work of one step of a plan."""
    gate, size = step.gate, step.size
    inputs = [plan.steps[number].shape for number in step.inputs]
    if isinstance(gate, p.WindowSum):
        return _window_sum(gate, inputs[0], step.shape)
    if isinstance(gate, p.Convolution):
        bands = band_count(inputs[0], plan.ring_bits // 8)
        return ELEMENT * size + _convolution(gate, inputs[0], step.shape, bands)
    if isinstance(gate, p.MatrixProduct):
        depth, rows = inputs[0][-1], prod(inputs[0][:-1])
        columns = _up(gate.columns, TILE_COLUMNS)
        packed = rows * (2 * LINE + COPIED * depth)
        return ELEMENT * size + packed + _up(rows, TILE_ROWS) * columns * depth
    return ELEMENT * size * max(1, len(inputs))


def _window_sum(gate: p.WindowSum, image: p.Shape, result: p.Shape) -> int:
    # whole rows are added up first, whatever the stride
    rows = prod(result[:-1])
    added = (gate.kernel[0] + 1) * (LINE + ADDED * image[-1])
    return rows * (added + gate.kernel[1] * (LINE + ADDED * result[-1]))


def _convolution(gate: p.Convolution, image: p.Shape, result: p.Shape, bands: int) -> int:
    channels = image[1] // gate.groups
    outputs = _up(gate.out_channels // gate.groups, TILE_ROWS)
    reach = [(gate.kernel[axis] - 1) * gate.dilations[axis] for axis in range(2)]
    phases = prod(min(gate.strides[axis], reach[axis] + 1) for axis in range(2))
    pieces = -(-result[2] // BAND_ROWS)
    # every piece of an image copies the rows anew that its windows share with the next one's
    rows = image[0] * result[2] + (image[0] * pieces + bands) * (1 + reach[0] // gate.strides[0])
    copied = phases * rows * (LINE + COPIED * (result[3] + reach[1] // gate.strides[1]))
    begun = (image[0] * pieces + bands) * (IMAGE + LINE * channels)
    positions = image[0] * pieces * _up(min(BAND_ROWS, result[2]) * result[3], TILE_COLUMNS)
    products = positions * channels * prod(gate.kernel) * (outputs + COPIED)
    return gate.groups * (begun + channels * copied + products)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
