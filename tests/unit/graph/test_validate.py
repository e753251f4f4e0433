"""Every rule of a plan is broken once, and the refusal says which rule and where."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from typing import Any

import pytest

from radiopaque.errors import PlanError
from radiopaque.graph import plan as p
from radiopaque.graph import validate
from radiopaque.graph.validate import validate_plan
from tests.unit.graph.broken_plans import (
    RULES,
    full,
    network,
    pictured,
    simple,
    stepwise,
    with_step,
)
from tests.vectors.plan_forms import full_plan


def test_the_plans_that_are_broken_are_good() -> None:
    validate_plan(network())
    validate_plan(full_plan())
    validate_plan(full())
    validate_plan(simple())
    validate_plan(pictured((1, 1, 1, p.MAX_SIDE)))
    validate_plan(pictured((1, 2, p.MAX_SIDE, p.MAX_SIDE // 4)))
    validate_plan(pictured((1024, 1, 1, 1)))
    validate_plan(simple(shape=(1, 1 << 18)))
    validate_plan(stepwise(3))


@pytest.mark.parametrize("name", RULES)
def test_rule(name: str) -> None:
    make, says = RULES[name]
    with pytest.raises(PlanError) as caught:
        validate_plan(make())
    assert type(caught.value) is PlanError
    assert says in str(caught.value)


def test_every_refusal_is_provoked() -> None:
    """No rule without a test: each message of the module is the text of some refusal above."""
    shown = []
    for make, _ in RULES.values():
        with pytest.raises(PlanError) as caught:
            validate_plan(make())
        shown.append(str(caught.value))
    constants = []
    for node in ast.walk(ast.parse(inspect.getsource(validate))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id == "_require":
            constants.append(_fixed_parts(node.args[1]))
        elif node.func.id == "PlanError" and not isinstance(node.args[0], ast.Name):
            constants.append(_fixed_parts(node.args[0]))
    assert len(constants) > 50
    for parts in constants:
        assert any(all(part in text for part in parts) for text in shown), parts


def _fixed_parts(message: ast.expr) -> list[str]:
    if isinstance(message, ast.Constant):
        return [str(message.value)]
    assert isinstance(message, ast.JoinedStr)
    return [str(part.value) for part in message.values if isinstance(part, ast.Constant)]


@pytest.mark.parametrize(
    ("number", "changes"),
    [
        (1, {"limit": (1 << 31) - (1 << 13)}),
        (9, {"limit": 1 << 18}),
        (10, {"shift": 17}),
        (15, {"limit": (1 << 29) - 513}),
        (0, {"limit": (1 << 31) - 1}),
        (3, {"fraction_bits": 62}),
        (3, {"divisor": (1 << 32) - 1}),
        (6, {"coefficients": (-(1 << 63), (1 << 63) - 1)}),
        (7, {"value": -(1 << 63)}),
        (16, {"bits": 22}),
        (12, {"limit": 0}),
    ],
)
def test_the_last_value_that_a_rule_allows(number: int, changes: dict[str, Any]) -> None:
    validate_plan(stepwise(number, **changes))


@pytest.mark.parametrize("compared", range(1, 32))
def test_only_three_widths_are_compared(compared: int) -> None:
    plan = stepwise(2, opened_bits=compared + 1, shift=0)
    plan = with_step(plan, 1, dataclasses.replace(plan.steps[1], limit=1))
    if compared in (18, 24, 30):
        validate_plan(plan)
    else:
        with pytest.raises(PlanError, match=f"{compared} compared bits"):
            validate_plan(plan)


def test_a_large_value_is_refused_without_taking_memory() -> None:
    """Extents are multiplied as integers; nothing is allocated for them."""
    huge = p.Step(p.Input(), (), (1 << 28,) * 8, 0, limit=1)
    plan = p.Plan(32, "x", "1", (huge, p.Step(p.Output(8, 0), (0,), huge.shape, 0)))
    with pytest.raises(PlanError, match="elements are over"):
        validate_plan(plan)
