"""Weights go to a neighbouring integer, and their sums come out right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from radiopaque.graph import plan as p
from radiopaque.graph.rounding import round_weights
from tests.unit.graph.support import rng

EXACT = 1e-6


def weights(seed: int, magnitude: float, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.asarray(10.0**magnitude * rng(seed).normal(size=shape))


@given(seed=st.integers(0, 2**32), magnitude=st.floats(-2, 5))
def test_convolution(seed: int, magnitude: float) -> None:
    real = weights(seed, magnitude, (5, 7, 3, 2))
    rounded = round_weights(p.Convolution(5, (3, 2)), real)
    np.testing.assert_array_equal(rounded, np.rint(rounded))
    error = rounded - real
    assert np.abs(error).max() < 1 + EXACT
    assert np.abs(error.sum(axis=(2, 3))).max() < 1 + EXACT
    assert np.abs(error.sum(axis=(1, 2, 3))).max() <= 0.5 + EXACT


@given(seed=st.integers(0, 2**32), magnitude=st.floats(-2, 5))
def test_matrix(seed: int, magnitude: float) -> None:
    real = weights(seed, magnitude, (9, 4))
    rounded = round_weights(p.MatrixProduct(4), real)
    np.testing.assert_array_equal(rounded, np.rint(rounded))
    error = rounded - real
    assert np.abs(error).max() < 1 + EXACT
    assert np.abs(error.sum(axis=0)).max() <= 0.5 + EXACT


def test_factors_go_to_the_nearest() -> None:
    real = np.array([0.4, -1.6, 2.5])
    rounded = round_weights(p.Multiply((3,)), real)
    np.testing.assert_array_equal(rounded, [0, -2, 2])


@pytest.mark.parametrize("gate", [p.Convolution(2, (1, 3)), p.MatrixProduct(2), p.Multiply((2,))])
def test_integers_stay(gate: p.Linear) -> None:
    shape = (2, 4, 1, 3) if isinstance(gate, p.Convolution) else (4, 2)
    real = rng().integers(-1000, 1000, shape).astype(np.float64)
    np.testing.assert_array_equal(round_weights(gate, real), real)


def test_smooth_positive_inputs_lose_less_than_by_rounding_to_nearest() -> None:
    """The case that it is for: an activation behind a ReLU, neighbouring pixels alike."""
    real = weights(1, 1, (64, 64, 3, 3))
    channels = np.abs(rng(2).normal(size=(64, 1, 1)))
    x = channels * (1 + 0.3 * rng(3).normal(size=(64, 3, 3)))
    errors = [
        np.abs(((r - real) * x).sum(axis=(1, 2, 3))).mean()
        for r in (round_weights(p.Convolution(64, (3, 3)), real), np.rint(real))
    ]
    assert errors[0] < 0.6 * errors[1]
