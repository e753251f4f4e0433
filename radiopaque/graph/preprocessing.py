"""How large a network's input may be, and the last step towards it, which says what it can reach.

Every party computes that step alike, in float32 with its rounding: a plan whose limit some picture
goes beyond by a unit would have a clinic refuse that picture, and its vendor learn which.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radiopaque.errors import PlanError
from radiopaque.graph.plan import MAX_PIXELS, MAX_SIDE, Preprocessing


def check_extent(spec: Preprocessing) -> None:
    """Raise PlanError where the network takes no picture, or one of more than a picture may have.

    Resampling holds one side of what it reads by the other of what it makes: the limit of both is
    what bounds its memory.
    """
    channels, height, width = shape = (spec.channels, spec.height, spec.width)
    if min(shape) < 1:
        raise PlanError(f"the input is {list(shape)}, which is empty; ask the vendor")
    if max(height, width) > MAX_SIDE or channels * height * width > MAX_PIXELS:
        raise PlanError(
            f"the input is {list(shape)}, over {MAX_SIDE} pixels a side or {MAX_PIXELS} values; "
            "ask the vendor"
        )


def normalised(pixels: NDArray[np.float32], spec: Preprocessing) -> NDArray[np.float32]:
    """(pixel - mean) / std of every channel, float32 [c, h, w], from pixels [h, w]."""
    mean = np.asarray(spec.mean, np.float32).reshape(-1, 1, 1)
    std = np.asarray(spec.std, np.float32).reshape(-1, 1, 1)
    result: NDArray[np.float32] = np.ascontiguousarray((pixels[np.newaxis] - mean) / std)
    return result


def reachable(spec: Preprocessing) -> tuple[float, float]:
    """Least and largest value that pixels in 0..1 become: rounding keeps their order."""
    with np.errstate(all="ignore"):  # of a std that is 0 in float32, infinity or NaN
        ends = normalised(np.array([[0, 1]], np.float32), spec)
    return float(ends.min()), float(ends.max())
