"""What a plan is predicted to cost is what its messages take, byte for byte."""

from __future__ import annotations

from typing import Any

import pytest

from radiopaque.gates import halves, plan_cost, sites
from radiopaque.gates.base import GateCost
from tests.vectors.cases import FILES
from tests.vectors.forms import load, plan_from_json

CASES = {case["name"]: case for file in FILES for case in load(file)}


def payload_bytes(messages: list[dict[str, Any]]) -> int:
    """Without headers."""
    return sum(len(message["payload"]) // 2 for message in messages)


@pytest.mark.parametrize("name", CASES)
def test_cost_is_what_the_vector_shows(name: str) -> None:
    case = CASES[name]
    outputs = case["outputs"]
    cost = plan_cost(plan_from_json(case["inputs"]["plan"]))
    replies = outputs["model_owner_to_data_owner"]
    assert cost.correction_bytes == sum(len(v) // 2 for v in outputs["corrections"].values())
    assert cost.offline_bytes == sum(len(v) // 2 for v in outputs["offline"].values())
    assert cost.to_model_owner_bytes == payload_bytes(outputs["data_owner_to_model_owner"])
    assert cost.to_data_owner_bytes == payload_bytes(replies)
    assert cost.round_trips == len({(m["gate"], m["kind"]) for m in replies})


def test_work_is_counted_by_gate() -> None:
    plan = plan_from_json(CASES["network_32"]["inputs"]["plan"])
    cost = plan_cost(plan)
    # [2, 2, 5, 5] by [3, 2, 3, 3] with 4 x 4 windows; then [2, 12] by [12, 3]
    assert cost.multiply_adds == 2 * 3 * 16 * 2 * 9 + 2 * 12 * 3
    # ReLU of [2, 3, 4, 4]; maxima of halves along both axes
    assert cost.comparisons == 96 + 48 + 24
    assert cost.truncations == 0
    total = GateCost()
    for site in sites(plan):
        total += halves(site.step.gate).cost(site)
    assert total == cost
