"""Epsilon by both accountants, against those of another library."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("opacus")
pytest.importorskip("dp_accounting")

import dp_accounting
from dp_accounting import pld, rdp

from training.accounting import (
    LARGEST_PRV,
    ORDERS,
    Steps,
    noise_for,
    prv_epsilon,
    rdp_epsilon,
)
from training.errors import SettingsError

HISTORIES = [
    (Steps(1.1, 0.01, 1000),),
    (Steps(2.0, 0.1, 300),),
    (Steps(0.8, 0.05, 50),),
    (Steps(5.0, 0.2, 100), Steps(3.0, 0.1, 40)),
    (Steps(10.0, 0.05, 20),),
    (Steps(4.0, 1.0, 30),),
]
DELTAS = [1e-5, 1e-6]


def compose(accountant: dp_accounting.PrivacyAccountant, history: tuple[Steps, ...]) -> None:
    for steps in history:
        event = dp_accounting.PoissonSampledDpEvent(
            steps.sample_rate, dp_accounting.GaussianDpEvent(steps.noise_multiplier)
        )
        accountant.compose(event, steps.count)


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("delta", DELTAS)
def test_rdp_equals_that_of_dp_accounting(history: tuple[Steps, ...], delta: float) -> None:
    other = rdp.RdpAccountant(list(ORDERS))
    compose(other, history)
    assert rdp_epsilon(history, delta) == pytest.approx(other.get_epsilon(delta), rel=1e-6)


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("delta", DELTAS)
def test_prv_is_within_two_per_cent_of_the_pld_accountant(
    history: tuple[Steps, ...], delta: float
) -> None:
    other = pld.PLDAccountant()
    compose(other, history)
    assert prv_epsilon(history, delta) == pytest.approx(other.get_epsilon(delta), rel=0.02)
    assert prv_epsilon(history, delta) <= rdp_epsilon(history, delta)


def test_steps_without_noise_have_no_epsilon_and_no_steps_cost_nothing() -> None:
    assert math.isinf(rdp_epsilon((Steps(0.0, 0.1, 1),), 1e-5))
    assert math.isinf(prv_epsilon((Steps(2.0, 0.1, 5), Steps(0.0, 0.1, 1)), 1e-5))
    assert rdp_epsilon((), 1e-5) == 0.0
    assert prv_epsilon((Steps(0.0, 0.1, 0),), 1e-5) == 0.0


def test_an_epsilon_that_protects_nobody_is_bounded_without_composition() -> None:
    history = (Steps(0.3, 0.5, 200),)
    assert prv_epsilon(history, 1e-5) == rdp_epsilon(history, 1e-5) > LARGEST_PRV


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_the_noise_for_an_epsilon_keeps_within_it_and_less_does_not(accountant: str) -> None:
    epsilon_of = {"prv": prv_epsilon, "rdp": rdp_epsilon}[accountant]
    noise = noise_for(4.0, 1e-5, 0.1, 100, accountant)  # type: ignore[arg-type]
    assert epsilon_of((Steps(noise, 0.1, 100),), 1e-5) <= 4.0
    assert epsilon_of((Steps(noise * 0.99, 0.1, 100),), 1e-5) > 4.0


@pytest.mark.parametrize(
    ("noise", "rate", "count"),
    [(-1.0, 0.1, 1), (math.nan, 0.1, 1), (1.0, 0.0, 1), (1.0, 1.5, 1), (1.0, 0.1, -1)],
)
def test_values_out_of_range_are_refused(noise: float, rate: float, count: int) -> None:
    with pytest.raises(SettingsError):
        Steps(noise, rate, count)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5])
def test_a_delta_out_of_range_is_refused(delta: float) -> None:
    with pytest.raises(SettingsError, match="delta"):
        rdp_epsilon((Steps(1.0, 0.1, 1),), delta)
    with pytest.raises(SettingsError, match="delta"):
        prv_epsilon((Steps(1.0, 0.1, 1),), delta)


def test_an_epsilon_that_no_noise_can_keep_is_refused() -> None:
    with pytest.raises(SettingsError, match="allow more"):
        noise_for(1e-6, 1e-9, 1.0, 1000, "rdp")
    with pytest.raises(SettingsError, match="positive"):
        noise_for(0.0, 1e-5, 0.1, 10)
