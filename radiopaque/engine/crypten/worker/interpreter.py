"""Runs a program on CrypTen's tensors: one line an operation, CrypTen does the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from radiopaque.engine.crypten.program import Operation, Program
from radiopaque.engine.crypten.worker.compatibility import crypten, torch
from radiopaque.errors import PlanError

Tensor = Any
"""A CrypTensor. CrypTen has no types."""


def evaluate(program: Program, image: Tensor, constants: Mapping[int, Tensor]) -> Tensor:
    """The program's result, secret-shared like its inputs.

    Raises PlanError where a result has another shape than the program states.
    """
    values: dict[int, Tensor] = {0: image}
    freed = program.last_uses()
    for number, operation in enumerate(program.operations):
        if operation.name == "constant":
            values[number] = constants[number]
        elif number:
            inputs = [values[i] for i in operation.inputs]
            values[number] = _TABLE[operation.name](operation, *inputs)
        found = tuple(values[number].size())
        if found != operation.shape:
            raise PlanError(
                f"operation {number} ({operation.name}) has the shape {list(found)}, the program "
                f"says {list(operation.shape)}; compile the model again"
            )
        for value in freed[number]:
            del values[value]
    return values[len(program.operations) - 1]


def _conv(operation: Operation, x: Tensor, weights: Tensor) -> Tensor:
    numbers = operation.integers
    return x.conv2d(
        weights,
        stride=numbers[0:2],
        padding=numbers[2:4],
        dilation=numbers[4:6],
        groups=numbers[6],
    )


def _affine(operation: Operation, x: Tensor) -> Tensor:
    factor, offset = operation.reals
    if factor == -1.0:
        x = x.neg()
    elif factor != 1.0:
        x = x.mul(factor)
    return x.add(offset) if offset else x


def _max_pool(operation: Operation, x: Tensor) -> Tensor:
    numbers = operation.integers
    return x.max_pool2d(
        numbers[0:2], stride=numbers[2:4], padding=numbers[4:6], dilation=numbers[6:8]
    )


def _average_pool(operation: Operation, x: Tensor) -> Tensor:
    numbers = operation.integers
    return x.avg_pool2d(numbers[0:2], stride=numbers[2:4], padding=numbers[4:6])


def _slice(operation: Operation, x: Tensor) -> Tensor:
    axis, start, step = operation.integers
    count = operation.shape[axis]
    if step == 1:
        return x.narrow(axis, start, count)
    return x.index_select(axis, torch.arange(start, start + (count - 1) * step + 1, step))


def _pad(operation: Operation, x: Tensor) -> Tensor:
    rank = len(operation.shape)
    before, after = operation.integers[:rank], operation.integers[rank:]
    amounts = [amount for axis in reversed(range(rank)) for amount in (before[axis], after[axis])]
    return x.pad(amounts, value=operation.reals[0])


_TABLE: Final[Mapping[str, Callable[..., Tensor]]] = {
    "conv": _conv,
    "matmul": lambda _, a, b: a.matmul(b),
    "add": lambda _, a, b: a.add(b),
    "sub": lambda _, a, b: a.sub(b),
    "mul": lambda _, a, b: a.mul(b),
    "affine": _affine,
    "relu": lambda _, x: x.relu(),
    "clip": lambda o, x: x.hardtanh(*o.reals),
    "square": lambda _, x: x.square(),
    "exp": lambda _, x: x.exp(),
    "sigmoid": lambda _, x: x.sigmoid(),
    "tanh": lambda _, x: x.tanh(),
    "sqrt": lambda _, x: x.sqrt(),
    "inverse_sqrt": lambda _, x: x.inv_sqrt(),
    "reciprocal": lambda _, x: x.reciprocal(),
    "softmax": lambda o, x: x.softmax(o.integers[0]),
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "max_last": lambda _, x: x.max(dim=-1)[0],
    "sum_last": lambda _, x: x.sum(-1),
    "mean_last": lambda _, x: x.sum(-1).div(x.size(-1)),
    "reshape": lambda o, x: x.reshape(o.shape),
    "transpose": lambda o, x: x.permute(o.integers),
    "concat": lambda o, *xs: crypten.cat(list(xs), dim=o.integers[0]),
    "slice": _slice,
    "take": lambda o, x: x.index_select(o.integers[0], torch.tensor(o.integers[1:])),
    "pad": _pad,
    "expand": lambda o, x: x.expand(o.shape),
}
