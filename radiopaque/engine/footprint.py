"""The memory that a model takes, from its plan alone: a few bytes of plan can ask for gigabytes."""

from __future__ import annotations

from math import prod

from radiopaque.engine.crypten.plan import CryptenPlan
from radiopaque.engine.crypten.program import live_elements as live_in_program
from radiopaque.engine.crypten.tuples import WORD
from radiopaque.engine.material import region_size
from radiopaque.engine.plans import AnyPlan
from radiopaque.errors import PlanError
from radiopaque.gates import sites
from radiopaque.graph.plan import Plan
from radiopaque.graph.validate import live_elements, packed_weights
from radiopaque.wire.frames import Kind


def footprint(plan: AnyPlan) -> int:
    """About the bytes that a party takes to load a model and to prepare one session of it.

    Its weights as the kernels hold them, the values that exist at one time, and the work on its
    largest gate. The material of a session that runs is counted by ``window_bytes``.
    """
    if isinstance(plan, CryptenPlan):
        dealing = max((request.dealing_words for request in plan.requests), default=0)
        return WORD * (live_in_program(plan.program) + dealing)
    word = plan.ring_bits // 8
    loading = max((prod(shape) for _, shape in plan.weight_shapes()), default=0)
    # a gate's correction, or result, and what it is made from
    work = 2 * max(
        max(region_size(site, Kind.CORRECTION), word * site.step.size) for site in sites(plan)
    )
    return weights_bytes(plan) + max(word * loading, word * live_elements(plan) + work)


def weights_bytes(plan: Plan) -> int:
    """Bytes of a model's weights, or their masks, as the kernels hold them."""
    return plan.ring_bits // 8 * packed_weights(plan)


def check_footprint(plan: AnyPlan, most: int, party: str) -> None:
    """Raises PlanError for a model that takes more than ``most`` bytes at ``party``."""
    found = footprint(plan)
    if found > most:
        raise PlanError(
            f"the model takes about {found} bytes of memory at the {party}, over its limit "
            f"model_bytes of {most}; the {party} can raise it in its configuration"
        )
