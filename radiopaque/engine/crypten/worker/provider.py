"""CrypTen's tuple provider, fed by the crypto provider: no party deals for itself.

The plan lists the tuples in the order in which they are used. Each is checked against what CrypTen
asks for, and used once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from radiopaque.engine.crypten.tuples import Halves, Request, TupleKind, Words
from radiopaque.engine.crypten.worker.compatibility import (
    ArithmeticSharedTensor,
    BinarySharedTensor,
    TupleProvider,
    torch,
)
from radiopaque.errors import EngineError, PlanError

_KINDS = {
    "mul": TupleKind.PRODUCT,
    "matmul": TupleKind.MATRIX_PRODUCT,
    "conv2d": TupleKind.CONVOLUTION,
}

Draw = Callable[[int, Request], Halves]
"""This party's half of the tuple with this number."""


class PlannedProvider(TupleProvider):  # type: ignore[misc] # CrypTen has no types
    """Hands out the tuples of a plan. Raises PlanError where CrypTen asks for another one."""

    NAME = "radiopaque"

    def __init__(self, requests: tuple[Request, ...], draw: Draw) -> None:
        super().__init__()
        self._requests = requests
        self._draw = draw
        self._used = 0

    def generate_additive_triple(
        self, size0: Any, size1: Any, op: str, device: Any = None, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        half = self._take(triple_request(size0, size1, op, args, kwargs))
        return _added(half.a), _added(half.b), _added(half.c)

    def square(self, size: Any, device: Any = None) -> tuple[Any, Any]:
        half = self._take(Request(TupleKind.SQUARE, tuple(size)))
        return _added(half.a), _added(half.c)

    def generate_binary_triple(
        self, size0: Any, size1: Any, device: Any = None
    ) -> tuple[Any, Any, Any]:
        half = self._take(Request(TupleKind.CONJUNCTION, tuple(size0), tuple(size1)))
        return _xored(half.a), _xored(half.b), _xored(half.c)

    def B2A_rng(self, size: Any, device: Any = None) -> tuple[Any, Any]:
        half = self._take(Request(TupleKind.BIT, tuple(size)))
        return _added(half.c), _xored(half.a)

    def finish(self) -> None:
        """Raise PlanError where the plan has tuples that were not asked for."""
        if self._used != len(self._requests):
            raise PlanError(
                f"the plan has {len(self._requests)} tuples, CrypTen used {self._used}; "
                "compile the model again"
            )

    def _take(self, asked: Request) -> Halves:
        number = self._used
        planned = self._requests[number] if number < len(self._requests) else None
        if asked != planned:
            raise PlanError(
                f"CrypTen asked for {asked} as tuple {number}, the plan has {planned}; "
                "compile the model again with the same versions"
            )
        self._used += 1
        return self._draw(number, asked)


def triple_request(
    size0: Any, size1: Any, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Request:
    """The request behind a call of generate_additive_triple. Raises EngineError."""
    kind = _KINDS.get(op)
    if kind is None or args:
        raise EngineError(f"CrypTen asked for a tuple for {op}, which no operation here needs")
    integers: tuple[int, ...] = ()
    if kind is TupleKind.CONVOLUTION:
        pairs = [kwargs.pop(name) for name in ("stride", "padding", "dilation")]
        integers = (*(int(v) for pair in pairs for v in pair), int(kwargs.pop("groups")))
    if kwargs:
        raise EngineError(f"CrypTen asked for a tuple for {op} with {sorted(kwargs)}")
    return Request(kind, tuple(size0), tuple(size1), integers)


def _tensor(words: Words | None) -> Any:
    if words is None:
        raise EngineError("a tuple lacks a part")
    return torch.from_numpy(np.ascontiguousarray(words).view(np.int64))


def _added(words: Words | None) -> Any:
    return ArithmeticSharedTensor.from_shares(_tensor(words), precision=0)


def _xored(words: Words | None) -> Any:
    return BinarySharedTensor.from_shares(_tensor(words), precision=0)
