"""Linear gates: with secret weights (Beaver triples), and with public coefficients."""

from __future__ import annotations

from typing import Any

from tests.reference import encoding, tensors
from tests.reference.session import Session, weight_shape
from tests.reference.tensors import Tensor, build, expand, tensor

SECRET_WEIGHTS = ("convolution", "matrix_product", "multiply")


def weight_mask(run: Session, gate: int) -> Tensor:
    """B."""
    shape = weight_shape(run.plan, gate)
    assert shape is not None
    return run.ring_words(run.b, gate, "weights", shape)


def apply_weights(step: dict[str, Any], weights: Tensor, x: Tensor) -> Tensor:
    """The gate's linear map of weights and input."""
    gate, shape = step["gate"], tuple(step["shape"])
    if gate["kind"] == "convolution":
        return tensors.convolution(weights, x, shape, gate)
    if gate["kind"] == "matrix_product":
        return tensors.matrix_product(weights, x, shape)
    return tensors.multiply(weights, x)


def secret_weights(run: Session, gate: int, step: dict[str, Any]) -> None:
    """W*x = W*h + F*A + B*A, with F = W - B at the data owner and A the input's mask."""
    (source,) = step["inputs"]
    w, b = run.weights[gate], weight_mask(run, gate)
    share = run.ring_words(run.d, gate, "product", tuple(step["shape"]))
    known = run.known[source]
    assert known is not None, "the crypto provider must know the mask of what is multiplied"
    correction = apply_weights(step, b, known) - share
    run.corrections[gate] = encoding.words(correction.values, run.bits)
    run.m[gate] = apply_weights(step, w - b, run.m[source]) + share
    run.h[gate] = apply_weights(step, w, run.h[source]) + correction
    run.known[gate] = None


def public(run: Session, gate: int, step: dict[str, Any]) -> None:
    """Each party applies the map to its own half; the model owner alone adds constants."""
    sources = step["inputs"]
    run.m[gate] = linear_part(step, [run.m[i] for i in sources], 0)
    parts = [run.known[i] for i in sources]
    known = [part for part in parts if part is not None]
    run.known[gate] = linear_part(step, known, 0) if len(known) == len(parts) else None
    own = linear_part(step, [run.h[i] for i in sources], step["gate"].get("value", 0))
    if step["gate"]["kind"] == "add_constant":
        own = own + expand(run.constants[gate], own.shape)
    run.h[gate] = own


def linear_part(step: dict[str, Any], values: list[Tensor], padding: int) -> Tensor:
    """A gate with public coefficients, its secret constant left out."""
    gate, shape = step["gate"], tuple(step["shape"])
    kind, first = gate["kind"], values[0]
    if kind == "add_constant":
        return first
    if kind == "combine":
        pairs = list(zip(gate["coefficients"], values, strict=True))
        return build(shape, first.bits, lambda i: sum(c * v[i] for c, v in pairs))
    if kind == "reshape":
        return tensor(shape, first.values, first.bits)
    if kind == "transpose":
        axes = gate["permutation"]
        return build(
            shape,
            first.bits,
            lambda i: first[tuple(i[axes.index(axis)] for axis in range(len(axes)))],
        )
    if kind == "slice":
        steps = list(zip(gate["starts"], gate["strides"], strict=True))
        return build(
            shape,
            first.bits,
            lambda i: first[tuple(s + j * t for j, (s, t) in zip(i, steps, strict=True))],
        )
    if kind == "pad":
        return tensors.pad(first, shape, gate["before"], padding)
    if kind == "concatenate":
        return tensors.concatenate(values, shape, gate["axis"])
    if kind == "expand":
        return expand(first, shape)
    if kind == "window_sum":
        return tensors.window_sum(first, shape, gate)
    raise AssertionError(f"{kind} is not a public linear map")
