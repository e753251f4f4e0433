"""The last step of preprocessing, which says what the network's input can reach.

Every party computes it alike, in float32 with its rounding: a plan whose limit some picture goes
beyond by a unit would have a clinic refuse that picture, and its vendor learn which.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radiopaque.graph.plan import Preprocessing


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
