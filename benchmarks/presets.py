"""What --quick, --growth and --full measure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from benchmarks.case import Case
from benchmarks.models import MADE, Choice, choose, shipped, usual
from benchmarks.network import LOOPBACK, PROFILES

GROWTH_SIZES = (64, 128, 224, 320, 448)
GROWTH_MODELS = ("resnet18", "resnet50")
PEER_MODELS = ("resnet18", "resnet18-average", "lenet")
_PEER_INFERENCES = 2
"""Peers take minutes where the compiled engine takes a second."""


def quick() -> list[Case]:
    """The shipped model against onnxruntime and CrypTen, within five minutes on two cores."""
    model = choose(usual())
    return [
        Case(model, "onnxruntime", LOOPBACK),
        Case(model, "compiled-32", LOOPBACK),
        Case(model, "crypten", LOOPBACK, inferences=_PEER_INFERENCES),
        Case(model, "crypten-stock", LOOPBACK, inferences=_PEER_INFERENCES),
    ]


def growth() -> list[Case]:
    """Two networks over five image sizes."""
    return [
        Case(choose(f"{name}@{size}"), "compiled-32", LOOPBACK)
        for name, size in product(GROWTH_MODELS, GROWTH_SIZES)
    ]


def full() -> list[Case]:
    """Everything that is committed: all models, rings, networks, peers, batches, concurrency."""
    cases: list[Case] = []
    for name in (*shipped(), *MADE):
        model = choose(name)
        cases += [
            Case(model, "onnxruntime", LOOPBACK),
            *(Case(model, "compiled-32", network) for network in PROFILES.values()),
            Case(model, "compiled-64", LOOPBACK),
        ]
        if name in PEER_MODELS or not model.made:
            cases += [
                Case(model, engine, LOOPBACK, inferences=_PEER_INFERENCES)
                for engine in ("crypten", "crypten-stock", "spu")
            ]
    busy = choose("resnet18")
    cases += [
        Case(busy, "compiled-32", LOOPBACK, concurrency=count, inferences=4 * count)
        for count in (2, 4, 8)
    ]
    cases += [Case(busy, "compiled-32", LOOPBACK, batch=count) for count in (2, 4, 8)]
    return _once([*cases, *growth()])


def _once(cases: Sequence[Case]) -> list[Case]:
    """Each case once, those of one model one after another."""
    order: dict[Choice, list[Case]] = {}
    for case in dict.fromkeys(cases):
        order.setdefault(case.model, []).append(case)
    return [case for own in order.values() for case in own]
