"""The private half of a compiled model: quantised weights and constants, by gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Weights:
    """Secret of the model owner.

    ``linear``: weights of every linear gate, ``constants``: of every AddConstant gate; ring words
    (uint32 or uint64, two's complement) in the shapes of ``Plan.weight_shapes()`` and
    ``Plan.constant_shapes()``.
    """

    linear: Mapping[int, NDArray[np.unsignedinteger]] = field(repr=False)
    constants: Mapping[int, NDArray[np.unsignedinteger]] = field(repr=False)
