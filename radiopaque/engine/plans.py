"""Plans of either engine: a plan's first field is its format, by which they are told apart."""

from __future__ import annotations

from typing import Final

from radiopaque.engine.crypten import encoding
from radiopaque.engine.crypten.plan import PLAN_FORMAT as CRYPTEN_FORMAT
from radiopaque.engine.crypten.plan import CryptenPlan
from radiopaque.graph.plan import Plan
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
