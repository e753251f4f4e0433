"""Networks by name and by their figures; wrong ones are refused with the form to write."""

from __future__ import annotations

from math import inf

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.network import LOOPBACK, PROFILES, Network, network


def test_profiles_are_those_of_the_documentation() -> None:
    stated = {name: (one.rtt_ms, one.mbit) for name, one in PROFILES.items()}
    assert stated == {
        "loopback": (0.0, inf),
        "lan": (0.5, 1000.0),
        "metro": (5.0, 500.0),
        "wan": (40.0, 100.0),
    }
    assert [one.relayed for one in PROFILES.values()] == [False, True, True, True]
    assert network("wan") is PROFILES["wan"]


def test_a_network_of_ones_own() -> None:
    assert network("clinic:rtt_ms=15,mbit=50") == Network("clinic", 15.0, 50.0)
    assert network("shaky:cut_mb=2.5") == Network("shaky", cut_mb=2.5)
    assert network("shaky:cut_mb=2.5").relayed
    assert network("loopback") is LOOPBACK


@pytest.mark.parametrize(
    "text",
    [
        "moon",
        "",
        "a:rtt=3",
        "a:rtt_ms",
        "a:rtt_ms=fast",
        "a:rtt_ms=-1",
        "a:rtt_ms=nan",
        "a:mbit=inf",
        "a:mbit=0",
        "lan:rtt_ms=3",
        ":rtt_ms=3",
    ],
)
def test_wrong_networks(text: str) -> None:
    with pytest.raises(BenchmarkError, match=r"rtt_ms, mbit and cut_mb, such as"):
        network(text)
