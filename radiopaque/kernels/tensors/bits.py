"""Dense bit strings of tensors; the format is that of :mod:`radiopaque.kernels.bits`.

Elements are taken apart into single bits, one byte each, so at most ``PIECE`` of them at a time.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

PIECE: Final = 1 << 18
"""A multiple of 8, so that pieces of any width are whole bytes."""


def pack(values: Tensor, width: int) -> Tensor:
    """The low ``width`` bits of every word, at most all of them, uint8."""
    flat = values.reshape(-1)
    if width == 8 * flat.element_size():
        return flat.view(torch.uint8)
    return torch.cat([_pack(piece, width) for piece in torch.split(flat, PIECE)])


def unpack(octets: Tensor, count: int, width: int, dtype: torch.dtype) -> Tensor:
    """The words of a string that has the right length, [count]."""
    if width == 8 * dtype.itemsize:
        return octets.view(dtype)
    out = torch.empty(count, dtype=dtype, device=octets.device)
    for start in range(0, count, PIECE):
        piece = out[start : start + PIECE]
        size = piece.shape[0]
        string = _apart(octets[start * width // 8 : (start * width + size * width + 7) // 8])
        elements = string.reshape(-1)[: size * width].reshape(size, width)
        whole = pad(elements, (0, 8 * dtype.itemsize - width))
        piece.copy_(_joined(whole.reshape(size, dtype.itemsize, 8)).view(dtype).reshape(size))
    return out


def _pack(values: Tensor, width: int) -> Tensor:
    size, octets = values.shape[0], values.contiguous().view(torch.uint8)
    string = _apart(octets).reshape(size, 8 * values.element_size())[:, :width].reshape(-1)
    return _joined(pad(string, (0, -string.shape[0] % 8)).reshape(-1, 8))


def _apart(octets: Tensor) -> Tensor:
    """[...] to [..., 8]: the bits of every byte, lowest first."""
    return (octets.unsqueeze(-1) >> _places(octets)) & 1


def _joined(string: Tensor) -> Tensor:
    """[..., 8] to [...]."""
    return (string << _places(string)).sum(-1, dtype=torch.uint8)


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)
