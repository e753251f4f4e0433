"""How long cases will take: rates of a 2-core AMD EPYC (Zen 5), good to a factor of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.case import Case, Tell
from benchmarks.engines.compiled import weight_bytes
from benchmarks.models import Choice, obtain
from benchmarks.tables import engine_name, table
from radiopaque.gates import GateCost, plan_cost
from radiopaque.graph.compile import compile_model
from radiopaque.graph.plan import Plan


@dataclass(frozen=True)
class _Rates:
    """Seconds: to start and end, of any inference, of one with so much in it; for the weights."""

    start: float
    inference: float
    comparison: float
    multiply_add: float
    weight_byte: float = 0.0


_RATES = {
    "onnxruntime": _Rates(1.0, 0.0, 0.0, 9e-12),
    "crypten-stock": _Rates(5.0, 0.3, 3e-6, 5e-10),
    "crypten": _Rates(8.0, 2.0, 5e-6, 1e-9),
    "spu": _Rates(5.0, 2.7, 8e-6, 0.0),
}
_COMPILED = _Rates(4.0, 0.0, 1.2e-7, 3.2e-11, 5e-8)


def seconds(case: Case, cost: GateCost, weights: int) -> float:
    """What a case takes in all, its start and its first inference included."""
    rates, network = _RATES.get(case.engine, _COMPILED), case.network
    moved = cost.correction_bytes + cost.offline_bytes
    moved += cost.to_model_owner_bytes + cost.to_data_owner_bytes
    byte = 8 / (network.mbit * 1e6)
    each = rates.comparison * cost.comparisons + rates.multiply_add * cost.multiply_adds
    # the plan is that of the 32-bit ring
    words = 2 if case.engine == "compiled-64" else 1
    each = rates.inference + words * (each + moved * byte) * case.batch
    each += cost.round_trips * network.rtt_ms / 1e3
    start = rates.start + words * (rates.weight_byte + byte) * weights
    return start + (case.inferences + 1) * each


def describe(cases: Sequence[Case], tell: Tell) -> str:
    """A table of what would run, its predicted cost, and about how long it takes.

    Makes and compiles the models that it has not seen before.
    """
    plans: dict[Choice, Plan] = {}
    rows = []
    total = 0.0
    for case in cases:
        if case.model not in plans:
            source = obtain(case.model, tell)
            plans[case.model] = compile_model(source.onnx, manifest=source.manifest).plan
        plan = plans[case.model]
        cost = plan_cost(plan)
        took = seconds(case, cost, weight_bytes(plan))
        total += took
        online = cost.to_model_owner_bytes + cost.to_data_owner_bytes
        rows.append(
            [
                str(case.model),
                engine_name(case.record()),
                case.network.name,
                f"{cost.comparisons / 1e6:.3g} M",
                f"{cost.multiply_adds / 1e9:.3g} G",
                f"{online / 1e6:,.1f}",
                f"{(cost.correction_bytes + cost.offline_bytes) / 1e6:,.1f}",
                str(cost.round_trips),
                f"{took:.0f} s",
            ]
        )
    head = ["model", "engine", "network", "comparisons", "multiply-adds"]
    head += ["online MB", "offline MB", "round trips", "takes about"]
    return (
        "Predicted for the compiled engine with k = 32, one inference; the time is for all "
        "inferences of a case.\n\n"
        f"{table(head, rows)}\n\nAbout {total / 60:.0f} minutes in all.\n"
    )
