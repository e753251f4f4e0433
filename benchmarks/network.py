"""The networks that are emulated: round-trip time, rate of each direction, loss of connection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from benchmarks.errors import BenchmarkError

_FORM = "NAME:KEY=VALUE,... with the keys rtt_ms, mbit and cut_mb, such as clinic:rtt_ms=15,mbit=50"


@dataclass(frozen=True, slots=True)
class Network:
    """What lies between any two parties. Loopback has nothing there, not even a relay."""

    name: str
    rtt_ms: float = 0.0
    mbit: float = inf
    """Megabits (10^6) a second, of each direction of each link."""
    cut_mb: float = inf
    """Megabytes that a link carries in both directions before its connections break, once."""

    @property
    def relayed(self) -> bool:
        """Whether a relay stands in front of each link."""
        return self != LOOPBACK


LOOPBACK = Network("loopback")
PROFILES: Mapping[str, Network] = {
    network.name: network
    for network in (
        LOOPBACK,
        Network("lan", 0.5, 1000.0),
        Network("metro", 5.0, 500.0),
        Network("wan", 40.0, 100.0),
    )
}


def network(text: str) -> Network:
    """A profile by name, or one of one's own. Raises BenchmarkError."""
    name, given, options = text.partition(":")
    if not given:
        if name in PROFILES:
            return PROFILES[name]
        raise BenchmarkError(
            f"there is no network {name!r}; choose one of {', '.join(PROFILES)}, or {_FORM}"
        )
    values: dict[str, float] = {}
    for option in options.split(","):
        key, _, value = option.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if key not in ("rtt_ms", "mbit", "cut_mb") or not 0 <= number < inf:
            raise BenchmarkError(f"network {text!r}: {option!r} is wrong; write {_FORM}")
        values[key] = number
    if name in PROFILES or not name or values.get("mbit") == 0:
        raise BenchmarkError(f"network {text!r} needs a name of its own and a rate; write {_FORM}")
    return Network(name, **values)
