"""Rounding of weights to integers so that their errors cancel where inputs are alike.

Neighbouring pixels of an activation are similar and, behind a ReLU, all activations have a positive
mean. What rounding does to a convolution's result is then mostly the sum of its errors: rounding to
nearest leaves about sqrt(n / 12) units for n weights. Here every weight still goes to one of its
two neighbours, but so that the sum over each kernel window is off by less than a unit and the sum
over each output channel by at most half of one (largest remainders, as seats in a parliament).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radiopaque.graph import plan as p

BLOCK = 1 << 22
"""Weights that are sorted at once: fully connected layers have a hundred million."""


def round_weights(gate: p.Linear, scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Integer-valued weights for real ``scaled`` ones in the gate's shape."""
    if isinstance(gate, p.Convolution):
        windows = scaled.reshape(*scaled.shape[:2], -1)
        return _round_to_sums(windows, _round_channels(windows)).reshape(scaled.shape)
    if isinstance(gate, p.MatrixProduct):
        columns = scaled.T
        return _round_to_sums(columns, np.rint(columns.sum(axis=-1))).T
    return np.rint(scaled)


def _round_channels(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Integer sums for each window [out, in, taps], right in total for each output channel."""
    sums = windows.sum(axis=-1)
    return _round_to_sums(sums, np.rint(sums.sum(axis=-1)))


def _round_to_sums(values: NDArray[np.float64], sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Down or up, the largest remainders up, so that the last axis has the sums asked for."""
    rounded = np.floor(values)
    rows = max(1, BLOCK * len(values) // max(values.size, 1))
    for start in range(0, len(values), rows):
        block = slice(start, start + rows)
        remainders = rounded[block] - values[block]
        wanted = sums[block] - rounded[block].sum(axis=-1)
        order = np.argsort(remainders, axis=-1, kind="stable")
        up = np.arange(values.shape[-1]) < wanted[..., np.newaxis]
        chosen = np.empty_like(up)
        np.put_along_axis(chosen, order, up, axis=-1)
        rounded[block] += chosen
    return rounded
