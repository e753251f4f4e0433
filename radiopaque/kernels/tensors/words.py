"""Unsigned words in tensors of signed ones."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

_KEPT_AS: Final[dict[np.dtype[Any], torch.dtype]] = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.uint16): torch.int16,
    np.dtype(np.uint32): torch.int32,
    np.dtype(np.uint64): torch.int64,
}
_WORDS: Final = {kept: word for word, kept in _KEPT_AS.items()}


def kept_as(dtype: DTypeLike) -> torch.dtype:
    """What words of one of numpy's unsigned dtypes are kept as."""
    return _KEPT_AS[np.dtype(dtype)]


def word_dtype(kept: torch.dtype) -> np.dtype[np.unsignedinteger]:
    """The dtype whose words are kept as this one."""
    return _WORDS[kept]


def bits(x: Tensor) -> int:
    """Of a word."""
    return 8 * x.element_size()


def wide(x: Tensor) -> Tensor:
    """The words' values as int64; words of 64 bits stay as they are."""
    return x if bits(x) == 64 else low(x.to(torch.int64), bits(x))


def low(x: Tensor, count: int) -> Tensor:
    """The low ``count`` bits of int64, all others zero."""
    return x if count == 64 else x & ((1 << count) - 1)


def down(x: Tensor, places: int) -> Tensor:
    """int64 shifted down, zeros at the top."""
    return low(x >> places, 64 - places)


def signed(number: int, count: int) -> int:
    """An integer mod 2**count as torch takes it for a word: in two's complement."""
    half = 1 << (count - 1)
    return (number + half) % (2 * half) - half
