"""The work that plans are bounded by follows the time that kernels take, whatever the shape."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from radiopaque.graph import plan as p
from radiopaque.graph.work import step_work
from radiopaque.kernels.convolution import PackedConvolution, PackedMatrix, window_sum
from radiopaque.ring import RingArray

MOST = 100
"""Times as long for its work as a large layer; 15 was measured. By products alone it is 6,000."""
DILATED = p.Convolution(4, (2, 1), dilations=(512, 1))
STRIDED = p.Convolution(8, (2, 2), (100, 100), (256,) * 4, (200, 200))

SHAPES: dict[str, tuple[p.Gate, p.Shape, p.Shape]] = {
    "single pixels": (p.Convolution(1, (1, 1)), (512, 64, 1, 1), (1, 64, 1, 1)),
    "single channels": (p.Convolution(4096, (1, 1), groups=2048), (1, 4096, 1, 1), (4096, 2, 1, 1)),
    "depthwise": (p.Convolution(2048, (1, 1), groups=2048), (1, 2048, 2, 2), (2048, 1, 1, 1)),
    "narrow": (p.Convolution(1, (1, 2)), (1, 8, 1 << 13, 2), (1, 8, 1, 2)),
    "far apart": (DILATED, (1, 16, 1024, 64), (4, 16, 2, 1)),
    "phases": (STRIDED, (1, 8, 4, 4), (8, 8, 2, 2)),
    "single numbers": (p.MatrixProduct(1), (1 << 14, 1), (1, 1)),
    "single columns": (p.MatrixProduct(1), (1 << 12, 64), (64, 1)),
    "a single row": (p.MatrixProduct(1), (1, 1 << 16), (1 << 16, 1)),
    "sums of single numbers": (p.WindowSum((1, 1)), (1 << 14, 1, 1), ()),
    "tall sums": (p.WindowSum((64, 1)), (1, 1 << 14, 1), ()),
}


def seconds_per_work(gate: p.Gate, image: p.Shape, weights: p.Shape) -> float:
    """Of this thread's processor time, which other work beside does not count in."""
    x = np.ones(image, np.uint32)
    run: Callable[[RingArray], RingArray]
    if isinstance(gate, p.Convolution):
        run = PackedConvolution(np.ones(weights, np.uint32), gate)
    elif isinstance(gate, p.MatrixProduct):
        run = PackedMatrix(np.ones(weights, np.uint32))
    else:
        assert isinstance(gate, p.WindowSum)
        spec = gate

        def run(x: RingArray) -> RingArray:
            return window_sum(x, spec)

    result = run(x)
    times = []
    for _ in range(5):
        start = time.thread_time()
        run(x)
        times.append(time.thread_time() - start)
    steps = (p.Step(p.Input(), (), image, 0), p.Step(gate, (0,), result.shape, 0))
    return min(times) / step_work(p.Plan(32, "timed", "1", steps), steps[1])


@pytest.mark.parametrize("name", SHAPES)
def test_slow_shapes_count_for_what_they_take(name: str) -> None:
    large = p.Convolution(128, (3, 3), pads=(1, 1, 1, 1))
    usual = seconds_per_work(large, (1, 128, 28, 28), (128, 128, 3, 3))
    assert seconds_per_work(*SHAPES[name]) < MOST * usual
