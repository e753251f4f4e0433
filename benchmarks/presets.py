"""What --quick, --speed, --growth and --full measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from benchmarks.case import Case
from benchmarks.models import MADE, Choice, choose, shipped, usual
from benchmarks.network import LOOPBACK, PROFILES

GROWTH_SIZES = (64, 128, 224, 320, 448)
GROWTH_MODELS = ("resnet18", "resnet50")
SPEED_MODELS = ("vgg16", "resnet50", "densenet121", "mobilenet-v2", "efficientnet-lite0")
PEER_MODELS = ("resnet18", "resnet18-average", "lenet")
_INFERENCES = 7
_RELAYED_INFERENCES = 3
"""Mostly waiting for the relay, which takes the same time in each."""
_PEER_INFERENCES = 3
"""Peers take minutes where the compiled engine takes a second."""
_PLAINTEXT_INFERENCES = 21
"""It takes milliseconds, and everything is divided by it."""


def quick() -> list[Case]:
    """The shipped model against onnxruntime and CrypTen, within five minutes on two cores."""
    model = choose(usual())
    return [
        _plaintext(model),
        _compiled(model),
        Case(model, "crypten", LOOPBACK, inferences=_PEER_INFERENCES),
        Case(model, "crypten-stock", LOOPBACK, inferences=_PEER_INFERENCES),
    ]


def speed() -> list[Case]:
    """What docs/performance.md has goals for, within half an hour on two cores."""
    plaintext, compiled = (make(choose("resnet18")) for make in (_plaintext, _compiled))
    cases = [
        *(replace(case, threads=threads) for threads in (1, 2) for case in (plaintext, compiled)),
        *(replace(case, batch=8) for case in (plaintext, compiled)),
        *(replace(compiled, concurrency=count, inferences=4 * count) for count in (2, 4)),
        _compiled(choose("resnet18"), "compiled-64"),
        _peer(choose("resnet18"), "crypten-stock"),
    ]
    for name in SPEED_MODELS:
        cases += [make(choose(name)) for make in (_plaintext, _compiled)]
    for name in ("lan", "wan"):
        over = replace(compiled, network=PROFILES[name], inferences=_RELAYED_INFERENCES)
        cases.append(over)
    return cases


def growth() -> list[Case]:
    """Two networks over five image sizes."""
    return [
        _compiled(choose(f"{name}@{size}")) for name, size in product(GROWTH_MODELS, GROWTH_SIZES)
    ]


def full() -> list[Case]:
    """Everything that is committed: all models, rings, networks, peers, batches, concurrency.

    What computes comes first, what mostly waits for relays last.
    """
    models = [choose(name) for name in (*shipped(), *MADE)]
    loopback: list[Case] = []
    for model in models:
        loopback += [_plaintext(model), _compiled(model), _compiled(model, "compiled-64")]
        if model.name in PEER_MODELS:
            loopback += [_peer(model, name) for name in ("crypten", "crypten-stock", "spu")]
        elif not model.made:
            loopback += [_peer(model, name) for name in ("crypten", "crypten-stock")]
    plaintext, compiled = (make(choose("resnet18")) for make in (_plaintext, _compiled))
    loopback.append(replace(plaintext, threads=2))
    for count in (2, 4, 8):
        loopback += [replace(plaintext, batch=count), replace(compiled, batch=count)]
        loopback.append(replace(compiled, concurrency=count, inferences=4 * count))
    relayed = [
        replace(_compiled(model), network=network, inferences=_RELAYED_INFERENCES)
        for network in PROFILES.values()
        if network.relayed
        for model in models
    ]
    return _once([*loopback, *growth()]) + relayed


def _plaintext(model: Choice) -> Case:
    return Case(model, "onnxruntime", LOOPBACK, inferences=_PLAINTEXT_INFERENCES)


def _peer(model: Choice, name: str) -> Case:
    return Case(model, name, LOOPBACK, inferences=_PEER_INFERENCES)


def _compiled(model: Choice, engine: str = "compiled-32") -> Case:
    return Case(model, engine, LOOPBACK, inferences=_INFERENCES)


def _once(cases: Sequence[Case]) -> list[Case]:
    """Each case once, those of one model one after another."""
    order: dict[Choice, list[Case]] = {}
    for case in dict.fromkeys(cases):
        order.setdefault(case.model, []).append(case)
    return [case for own in order.values() for case in own]
