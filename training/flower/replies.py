"""What a site's reply begins with. Reasons are numbers: no text of a site reaches the coordinator,
and none of the coordinator's a site, except settings to be compared."""

from __future__ import annotations

from enum import IntEnum

END = b"\x00"
"""Instead of a question: the run is over, go home."""


class Status(IntEnum):
    """The first byte of a reply; only an ANSWER has more."""

    ANSWER = 0
    SPENT = 1
    DIVERGED = 2
    DISAGREES = 3
    REPEATED = 4
    REFUSED = 5
    FAILED = 6


REASONS = {
    Status.DIVERGED: "reports a loss or an update that is not a number",
    Status.DISAGREES: "has agreed to another run or other members; its screen says what differs",
    Status.REPEATED: "has been through this round, or this run, already; its screen says more",
    Status.REFUSED: "refused what the others sent; its screen says why",
    Status.FAILED: "could not take part; its screen says why",
}
