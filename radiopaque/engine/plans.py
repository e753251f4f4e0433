"""Plans of either engine: a plan's first field is its format, by which they are told apart."""

from __future__ import annotations

from typing import Final

from radiopaque.engine.crypten import encoding
from radiopaque.engine.crypten.plan import PLAN_FORMAT as CRYPTEN_FORMAT
from radiopaque.engine.crypten.plan import CryptenPlan
from radiopaque.errors import ConfigError
from radiopaque.graph.plan import Output, Plan
from radiopaque.wire import plans

AnyPlan = Plan | CryptenPlan

_CRYPTEN_START: Final = bytes([0x08, CRYPTEN_FORMAT])  # field 1, a varint


def decode_any(data: bytes) -> AnyPlan:
    """A checked plan from its bytes. Raises PlanError."""
    return encoding.decode_plan(data) if is_crypten(data) else plans.decode_plan(data)


def load_any(data: bytes, digest: bytes) -> AnyPlan:
    """A checked plan whose digest is the expected one. Raises PlanError, PlanDigestError."""
    plans.check_digest(data, digest)
    return decode_any(data)


def is_crypten(data: bytes) -> bool:
    """Whether these bytes begin like a plan for CrypTen."""
    return data.startswith(_CRYPTEN_START)


def check_revealed(plan: AnyPlan, model: str, output_bits: int | None, labels_only: bool) -> None:
    """Raises ConfigError where a plan reveals more than its vendor's policy allows.

    That is ``output_bits`` of each output (None: no bound), and with ``labels_only`` no score at
    all. ``model`` names it in the message.
    """
    problem = _revealing(plan, output_bits, labels_only)
    if problem is not None:
        raise ConfigError(
            f"model {model} {problem}; compile it again, or change the policy in the configuration"
        )


def _revealing(plan: AnyPlan, most: int | None, labels_only: bool) -> str | None:
    if not labels_only and most is None:
        return None
    if not isinstance(plan, Plan):
        return "is for the CrypTen engine, which reveals whole outputs"
    if labels_only and not plan.labels_only:
        return "reveals scores, the policy allows labels alone (compile --labels-only)"
    gate = plan.output_step.gate
    if most is not None and isinstance(gate, Output) and gate.bits > most:
        return (
            f"reveals {gate.bits} bits of each output, the policy allows {most} "
            f"(compile --output-bits {most})"
        )
    return None
