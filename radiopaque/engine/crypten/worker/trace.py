"""The compiler's dry run: which tuples a program takes, what CrypTen makes of it, how it may fail.

One rank runs alone, with all masks, triples and the other rank's shares zero: then its shares are
the values themselves, in CrypTen's own fixed-point arithmetic, and every step is the real one. No
control flow of CrypTen's depends on a secret, so the tuples asked for are those of every inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radiopaque.engine.crypten.program import Program
from radiopaque.engine.crypten.tuples import Request, TupleKind
from radiopaque.engine.crypten.worker.communicator import TwoPartyCommunicator
from radiopaque.engine.crypten.worker.compatibility import (
    ArithmeticSharedTensor,
    BinarySharedTensor,
    TupleProvider,
    crypten,
    install,
    torch,
)
from radiopaque.engine.crypten.worker.interpreter import evaluate
from radiopaque.engine.crypten.worker.provider import triple_request
from radiopaque.engine.crypten.worker.sources import ZeroSource


def trace(
    program: Program, image: NDArray[np.float32], constants: Sequence[NDArray[np.float32]]
) -> dict[str, Any]:
    """Run the program in the clear.

    Returns ``requests`` (kind, left, right, integers), ``outputs`` (flat), ``truncations`` (values
    divided share by share), ``gross_errors`` (how many of them fail on average, see
    :class:`_Truncations`) and ``largest_bits`` (of the largest value before a truncation).
    """
    recorder = _Recorder()
    zeros = ZeroSource()
    install(_Alone(), recorder, {"prev": zeros, "next": zeros, "local": zeros})
    with _Truncations() as truncations:
        # in a trace rank 0 is the source of everything
        picture = crypten.cryptensor(torch.from_numpy(image), src=0)
        numbers = [number for number, _ in program.constant_shapes()]
        shared = {
            number: crypten.cryptensor(torch.from_numpy(array), src=0)
            for number, array in zip(numbers, constants, strict=True)
        }
        output = evaluate(program, picture, shared).get_plain_text(dst=0)
    return {
        "requests": [
            [int(r.kind), list(r.left), list(r.right), list(r.integers)] for r in recorder.requests
        ],
        "outputs": output.reshape(-1).tolist(),
        "truncations": truncations.count,
        "gross_errors": truncations.expected,
        "largest_bits": truncations.largest.bit_length(),
    }


class _Alone(TwoPartyCommunicator):
    """Rank 0, whose peer's shares are all zero."""

    def __init__(self) -> None:
        super().__init__(0, self)

    def send(self, number: int, data: memoryview) -> None:
        """Nobody listens."""

    def receive(self, number: int, size: int) -> bytearray:
        """The peer's zeros."""
        return bytearray(size)


class _Recorder(TupleProvider):  # type: ignore[misc] # CrypTen has no types
    """Tuples of zeros, and a list of what was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []

    def generate_additive_triple(
        self, size0: Any, size1: Any, op: str, device: Any = None, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        return self._record(triple_request(size0, size1, op, args, dict(kwargs)))

    def square(self, size: Any, device: Any = None) -> tuple[Any, Any]:
        a, _, c = self._record(Request(TupleKind.SQUARE, tuple(size)))
        return a, c

    def generate_binary_triple(
        self, size0: Any, size1: Any, device: Any = None
    ) -> tuple[Any, Any, Any]:
        request = Request(TupleKind.CONJUNCTION, tuple(size0), tuple(size1))
        return tuple(_binary(tensor) for tensor in self._record(request))  # type: ignore[return-value]

    def B2A_rng(self, size: Any, device: Any = None) -> tuple[Any, Any]:
        a, _, c = self._record(Request(TupleKind.BIT, tuple(size)))
        return c, _binary(a)

    def _record(self, request: Request) -> tuple[Any, Any, Any]:
        self.requests.append(request)
        shapes = (request.left, request.right, request.result)
        a, b, c = (
            ArithmeticSharedTensor.from_shares(torch.zeros(s, dtype=torch.int64), precision=0)
            for s in shapes
        )
        return a, b, c


def _binary(tensor: Any) -> Any:
    return BinarySharedTensor.from_shares(tensor.share, precision=0)


class _Truncations:
    """Watches CrypTen's division of shares by public integers, by which it rescales products.

    Each party divides its own share of v. Where the two shares, as signed integers, add up to v
    with a wrap around 2^64, the quotients do not: the result is off by 2^64 / divisor. For uniform
    shares that happens with probability |v| / 2^64, whose sum over all values is ``expected``.

    Source: Mohassel and Zhang, SecureML, theorem 1, of the same method.
    """

    def __init__(self) -> None:
        self.count = 0
        self.expected = 0.0
        self.largest = 0

    def __enter__(self) -> _Truncations:
        self._original = ArithmeticSharedTensor.div_
        watched = self._original

        def div_(tensor: Any, y: Any) -> Any:
            # by any other real it multiplies, which comes back here with the scale
            if bool((torch.as_tensor(y) % 1 == 0).all()):
                self._note(tensor.share)
            return watched(tensor, y)

        ArithmeticSharedTensor.div_ = div_
        return self

    def __exit__(self, *_: object) -> None:
        ArithmeticSharedTensor.div_ = self._original

    def _note(self, values: Any) -> None:
        sizes = values.to(torch.float64).abs()
        self.count += values.numel()
        self.expected += float(sizes.sum()) / 2.0**64
        self.largest = max(self.largest, int(sizes.max()) if values.numel() else 0)
