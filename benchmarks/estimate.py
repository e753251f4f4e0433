"""How long cases will take: rates of a 2-core AMD EPYC (Zen 5), good to a factor of two."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.case import Case, Tell
from benchmarks.models import Choice, obtain
from benchmarks.tables import table
from radiopaque.gates import GateCost, plan_cost
from radiopaque.graph.compile import compile_model

_START_SECONDS = 12.0
_ONLINE_SECONDS = {"comparison": 3e-8, "multiply_add": 4e-11}
_OFFLINE_SECONDS = {"comparison": 1e-7, "multiply_add": 1e-10}
_CRYPTEN_SECONDS = {"comparison": 7e-6, "multiply_add": 1e-9}
_PLAINTEXT_SECONDS = {"comparison": 0.0, "multiply_add": 2e-11}
_RATES = {
    "onnxruntime": (_PLAINTEXT_SECONDS, {}),
    "crypten-stock": (_CRYPTEN_SECONDS, {}),
    "crypten": (_CRYPTEN_SECONDS, _CRYPTEN_SECONDS),
}
_COMPILED = (_ONLINE_SECONDS, _OFFLINE_SECONDS)


def seconds(case: Case, cost: GateCost) -> float:
    """What a case takes in all, its start and its first inference included."""
    online, offline = (
        rate.get("comparison", 0.0) * cost.comparisons
        + rate.get("multiply_add", 0.0) * cost.multiply_adds
        for rate in _RATES.get(case.engine, _COMPILED)
    )
    network = case.network
    moved = cost.correction_bytes + cost.offline_bytes
    moved += cost.to_model_owner_bytes + cost.to_data_owner_bytes
    transfer = moved * 8 / (network.mbit * 1e6) + cost.round_trips * network.rtt_ms / 1e3
    each = (online + offline + transfer) * case.batch
    return _START_SECONDS + (case.inferences + 1) * each


def describe(cases: Sequence[Case], tell: Tell) -> str:
    """A table of what would run, its predicted cost, and about how long it takes.

    Makes and compiles the models that it has not seen before.
    """
    costs: dict[Choice, GateCost] = {}
    rows = []
    total = 0.0
    for case in cases:
        if case.model not in costs:
            source = obtain(case.model, tell)
            costs[case.model] = plan_cost(compile_model(source.onnx, manifest=source.manifest).plan)
        cost = costs[case.model]
        took = seconds(case, cost)
        total += took
        online = cost.to_model_owner_bytes + cost.to_data_owner_bytes
        rows.append(
            [
                str(case.model),
                case.engine,
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
