"""The randomness of one CrypTen session: streams in place of torch's generators."""

from __future__ import annotations

from typing import Any

import numpy as np

from radiopaque.engine.crypten.worker.compatibility import Source, torch
from radiopaque.prg import Streams


class StreamSource:
    """Uniform words from named streams: the ``n``-th draw is stream ``quantity`` of gate ``n``."""

    def __init__(self, streams: Streams, quantity: str) -> None:
        self._streams = streams
        self._quantity = quantity
        self._drawn = 0

    def words(self, shape: tuple[int, ...]) -> Any:
        """An int64 tensor of this shape."""
        words = self._streams.words(self._drawn, self._quantity, shape, np.uint64)
        self._drawn += 1
        return torch.from_numpy(words.view(np.int64))


class ZeroSource:
    """Zeros, for a trace: then one rank's shares are the values themselves."""

    def words(self, shape: tuple[int, ...]) -> Any:
        """An int64 tensor of this shape."""
        return torch.zeros(shape, dtype=torch.int64)


def of_rank(rank: int, own: Streams, common: Streams) -> dict[str, Source]:
    """CrypTen's three generators at one rank.

    "next" of a rank is "prev" of the other: with two ranks both know both, which masks nothing from
    either and need not, since a zero sharing is added to an input that one of them knows.
    """
    return {
        "next": StreamSource(common, f"zero-sharing-{rank}"),
        "prev": StreamSource(common, f"zero-sharing-{1 - rank}"),
        "local": StreamSource(own, "local"),
    }
