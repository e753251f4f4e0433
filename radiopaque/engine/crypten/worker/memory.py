"""How much memory a worker may take, from its plan.

The plan's rules count what CrypTen and torch are known to hold. This is for what they may hold
besides: the operating system then refuses it to the worker, before it is short itself.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path
from typing import Final

from radiopaque.engine.crypten.plan import CryptenPlan
from radiopaque.engine.crypten.program import live_elements, unfolded_elements
from radiopaque.engine.crypten.tuples import WORD

LIBRARIES_BYTES: Final = 2 << 30
"""What torch reserves whatever it computes, and more."""
COPIES: Final = 16
"""Of the plan's values and of its largest tuple; networks were seen to take 5."""


def most_bytes(plan: CryptenPlan) -> int:
    """Bytes of private memory that a worker may have."""
    largest = max((request.dealing_words for request in plan.requests), default=0)
    words = live_elements(plan.program) + unfolded_elements(plan.program) + largest
    return LIBRARIES_BYTES + COPIES * WORD * words


def bound(plan: CryptenPlan) -> None:
    """Have the operating system refuse this process more. Not undone: a worker has one job."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = most_bytes(plan)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    # where memory is short all the same, this process ends, not the party's
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
