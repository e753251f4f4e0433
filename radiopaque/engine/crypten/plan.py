"""The public plan of a model under CrypTen: program, tuples, and what the clinic must know.

It takes the place of :class:`radiopaque.graph.plan.Plan`; the attributes that reports and
preprocessing read have the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, log10, prod
from typing import Final

from radiopaque.engine.crypten import program as programs
from radiopaque.engine.crypten import tuples
from radiopaque.engine.crypten.program import Program
from radiopaque.engine.crypten.tuples import Request
from radiopaque.errors import PlanError
from radiopaque.graph.plan import IntendedUse, Preprocessing, Task
from radiopaque.graph.preprocessing import reachable
from radiopaque.graph.validate import check_description
from radiopaque.prg import KEY_BYTES

PLAN_FORMAT: Final = 6
"""What a plan of this kind begins with, a number of its own; see :mod:`radiopaque.graph.plan`."""
MAX_REQUESTS: Final = 100_000
LEAST_ERRORS: Final = 2.0**-64
"""Expected gross errors, unless there are none: a value of one unit, truncated once."""
LARGEST_INPUT: Final = 1 << 15
"""In absolute value; 16 fraction bits and a product by a weight stay far from 2^63."""


@dataclass(frozen=True)
class CryptenCost:
    """Payload bytes and round trips of one inference, before anything runs."""

    round_trips: int
    to_model_owner_bytes: int
    to_data_owner_bytes: int
    correction_bytes: int


@dataclass(frozen=True)
class CryptenPlan:
    """A model for CrypTen without its weights.

    ``gross_errors`` is how many values the compiler expects to be truncated grossly wrong in one
    inference: CrypTen truncates each party's share for itself, and that fails with a probability
    that grows with the value. ``largest_output`` is the largest output in absolute value that the
    compiler saw.
    """

    name: str
    version: str
    program: Program
    requests: tuple[Request, ...]
    classes: tuple[str, ...] = ()
    task: Task = "raw"
    preprocessing: Preprocessing | None = None
    intended_use: IntendedUse | None = None
    gross_errors: float = 0.0
    largest_output: float = 0.0

    @property
    def batch(self) -> int:
        """Images in one inference."""
        return self.program.input_shape[0]

    @property
    def error_rate(self) -> str:
        """In how many inferences one gross error is to be expected, in words."""
        if self.gross_errors == 0:
            return "none"
        if self.gross_errors > 0.5:
            return "most of them"
        every = 1.0 / self.gross_errors
        digits = 1 - int(log10(every))  # two significant ones
        return f"one in {int(round(every, digits)):,}"

    def correction_sizes(self) -> Mapping[int, int]:
        """Bytes of every request's correction, by number."""
        return {number: r.correction_bytes for number, r in enumerate(self.requests)}

    def cost(self) -> CryptenCost:
        """The prediction: a key, one exchange for each request, and the result."""
        opened = sum(request.opened_bytes for request in self.requests)
        result = tuples.WORD * prod(self.program.output_shape)
        return CryptenCost(
            len(self.requests) + 1,
            KEY_BYTES + opened,
            opened + result,
            sum(request.correction_bytes for request in self.requests),
        )


def validate(plan: CryptenPlan) -> None:
    """Raise PlanError for a plan that breaks a rule."""
    programs.validate(plan.program)
    if len(plan.requests) > MAX_REQUESTS:
        raise PlanError(f"a plan has at most {MAX_REQUESTS} tuples, not {len(plan.requests)}")
    tuples.validate(plan.requests)
    if not plan.program.input_shape or not plan.program.output_shape:
        raise PlanError("the image and the result must have a batch dimension")
    for value in (plan.gross_errors, plan.largest_output):
        if not isfinite(value) or value < 0:
            raise PlanError(f"the plan states {value} where a positive number is due")
    if 0 < plan.gross_errors < LEAST_ERRORS:
        raise PlanError(
            f"the plan expects {plan.gross_errors} gross errors, which no truncation gives; "
            "compile the model again"
        )
    check_description(plan, plan.program.input_shape, plan.program.output_shape)
    # every image must fit, or the vendor would learn which images were refused here
    reach = max(map(abs, reachable(plan.preprocessing))) if plan.preprocessing else 0.0
    if not reach <= LARGEST_INPUT:
        raise PlanError(f"preprocessing can reach {reach:.4g}, over {LARGEST_INPUT}")
