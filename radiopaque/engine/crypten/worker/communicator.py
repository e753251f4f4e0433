"""CrypTen's communicator over the party's pipe: two ranks, tensors as 64-bit words, no pickle.

Rank 0 is the model owner, rank 1 the data owner. Both know the shape of every tensor that they
exchange, so the size of each message is known before it is received, and nothing else is accepted.
"""

from __future__ import annotations

from typing import Any, NoReturn, Protocol

from radiopaque.engine.crypten.worker.compatibility import Communicator, torch
from radiopaque.errors import EngineError

WORD = 8
ReduceOp = torch.distributed.ReduceOp


class Wire(Protocol):
    """The other rank."""

    def send(self, number: int, data: memoryview) -> None:
        """Bytes to the other rank."""
        ...

    def receive(self, number: int, size: int) -> bytearray:
        """So many bytes from the other rank."""
        ...


class TwoPartyCommunicator(Communicator):  # type: ignore[misc] # CrypTen has no types
    """What two ranks that compute a model need of a communicator; the rest is refused.

    CrypTen's objects (sizes, tuples, models) travel by pickle in its own communicators; here no
    object travels at all.
    """

    BYTES_PER_ELEMENT = WORD

    def __init__(self, rank: int, wire: Wire) -> None:
        self._rank = rank
        self._wire = wire
        self._exchanges = 0

    def get_rank(self) -> int:
        return self._rank

    def get_world_size(self) -> int:
        return 2

    def all_reduce(self, input: Any, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """The sum (or exclusive or) of both ranks' tensors, at both; one exchange for all."""
        own = list(input) if batched else [input]
        number = self._next()
        self._send(number, own)
        results = [
            _combined(tensor, other, op)
            for tensor, other in zip(own, self._receive(number, own), strict=True)
        ]
        return results if batched else results[0]

    def reduce(self, input: Any, dst: int, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """The same at rank ``dst`` alone; None at the other."""
        own = list(input) if batched else [input]
        number = self._next()
        if dst != self._rank:
            self._send(number, own)
            return None
        results = [
            _combined(tensor, other, op)
            for tensor, other in zip(own, self._receive(number, own), strict=True)
        ]
        return results if batched else results[0]

    def _next(self) -> int:
        self._exchanges += 1
        return self._exchanges

    def _send(self, number: int, tensors: list[Any]) -> None:
        flat = torch.cat([_words(tensor).reshape(-1) for tensor in tensors])
        self._wire.send(number, flat.numpy().data.cast("B"))

    def _receive(self, number: int, like: list[Any]) -> list[Any]:
        sizes = [tensor.numel() for tensor in like]
        data = self._wire.receive(number, WORD * sum(sizes))
        flat = torch.frombuffer(data, dtype=torch.int64)
        pieces = torch.split(flat, sizes)
        return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]

    def send_obj(self, obj: Any, dst: int, group: Any = None) -> NoReturn:
        raise _refusal("send an object")

    def recv_obj(self, src: int, group: Any = None) -> NoReturn:
        raise _refusal("receive an object")

    def broadcast_obj(self, obj: Any, src: int, group: Any = None) -> NoReturn:
        raise _refusal("broadcast an object")

    def scatter(self, scatter_list: Any, src: int, size: Any = None, async_op: Any = False) -> Any:
        raise _refusal("scatter tensors")

    def gather(self, tensor: Any, dst: int, async_op: Any = False) -> NoReturn:
        raise _refusal("gather tensors")


def _words(tensor: Any) -> Any:
    if tensor.dtype != torch.int64:
        raise EngineError(f"CrypTen wanted to send {tensor.dtype}, only 64-bit integers travel")
    return tensor.detach()


def _combined(own: Any, other: Any, op: Any) -> Any:
    if op == ReduceOp.SUM:
        return own + other
    if op == ReduceOp.BXOR:
        return own ^ other
    raise _refusal(f"reduce with {op}")


def _refusal(what: str) -> EngineError:
    return EngineError(
        f"CrypTen wanted to {what}, which two ranks that compute a model never do here"
    )
