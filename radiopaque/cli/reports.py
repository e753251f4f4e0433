"""The predicted cost of a plan, for people and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from radiopaque.engine.artefact import masked_weights_size
from radiopaque.gates import plan_cost
from radiopaque.graph.plan import Plan

if TYPE_CHECKING:
    from rich.console import Console

    from radiopaque.engine.crypten.compile import CompiledCrypten


_RUNTIME_BYTES = 200_000_000
"""What Python, the compiled kernels and gRPC take before any model is loaded."""


def cost_dict(plan: Plan) -> dict[str, Any]:
    """Payload bytes, counts and memory of one inference.

    Memory: W, F and the packed kernels' copy, one session's material, the largest values.
    """
    cost = plan_cost(plan)
    return {
        "comparisons": cost.comparisons,
        "truncations": cost.truncations,
        "multiply_adds": cost.multiply_adds,
        "round_trips": cost.round_trips,
        "online_bytes": {
            "data_owner_to_model_owner": cost.to_model_owner_bytes,
            "model_owner_to_data_owner": cost.to_data_owner_bytes,
        },
        "offline_bytes": {
            "crypto_provider_to_model_owner": cost.correction_bytes,
            "data_owner_to_model_owner": cost.offline_bytes,
        },
        "masked_weights_bytes": masked_weights_size(plan),
        "model_owner_memory_bytes": _RUNTIME_BYTES
        + 3 * masked_weights_size(plan)
        + cost.correction_bytes
        + cost.offline_bytes
        + 3 * largest_value_bytes(plan),
    }


def largest_value_bytes(plan: Plan) -> int:
    """Bytes of the largest value of a plan."""
    return max(step.size for step in plan.steps) * (plan.ring_bits // 8)


def print_cost(plan: Plan, console: Console) -> None:
    """The same as a few lines."""
    cost = cost_dict(plan)
    online, offline = cost["online_bytes"], cost["offline_bytes"]

    def megabytes(value: int) -> str:
        return f"{value / 1e6:.2f} MB"

    lines = (
        ("comparisons", f"{cost['comparisons']:,}"),
        ("truncations", f"{cost['truncations']:,}"),
        ("ring multiply-adds", f"{cost['multiply_adds']:,}"),
        ("round trips online", str(cost["round_trips"])),
        ("online, clinic to vendor", megabytes(online["data_owner_to_model_owner"])),
        ("online, vendor to clinic", megabytes(online["model_owner_to_data_owner"])),
        ("offline, dealer to vendor", megabytes(offline["crypto_provider_to_model_owner"])),
        ("offline, clinic to vendor", megabytes(offline["data_owner_to_model_owner"])),
        ("masked weights, once", megabytes(cost["masked_weights_bytes"])),
        ("vendor, one session, about", megabytes(cost["model_owner_memory_bytes"])),
    )
    console.print("[bold]Cost of one inference, before anything runs[/bold] (payload bytes)")
    for label, value in lines:
        console.print(f"  {label:<28} {value:>16}", highlight=False)


def crypten_dict(compiled: CompiledCrypten) -> dict[str, Any]:
    """What compiling for CrypTen saw, and payload bytes of one inference."""
    cost, report = compiled.plan.cost(), compiled.report
    return {
        "engine": "crypten",
        "name": compiled.plan.name,
        "version": compiled.plan.version,
        "operations": len(compiled.plan.program.operations),
        "largest_error": report.largest_error,
        "largest_output": report.largest_output,
        "truncations": report.truncations,
        "gross_errors": report.gross_errors,
        "error_rate": compiled.plan.error_rate,
        "cost": {
            "round_trips": cost.round_trips,
            "online_bytes": {
                "data_owner_to_model_owner": cost.to_model_owner_bytes,
                "model_owner_to_data_owner": cost.to_data_owner_bytes,
            },
            "offline_bytes": {"crypto_provider_to_model_owner": cost.correction_bytes},
        },
    }


def print_crypten(report: dict[str, Any]) -> None:
    """The same as a few lines."""
    cost = report["cost"]
    online = cost["online_bytes"]
    offline = cost["offline_bytes"]["crypto_provider_to_model_owner"]
    rows = (
        ("difference to onnxruntime", f"{report['largest_error']:.2g} on the image of the check"),
        ("values rounded share by share", f"{report['truncations']:,}"),
        ("inferences with a gross error", f"about {report['error_rate']}"),
        ("round trips online", str(cost["round_trips"])),
        ("online, clinic to vendor", f"{online['data_owner_to_model_owner'] / 1e6:.2f} MB"),
        ("online, vendor to clinic", f"{online['model_owner_to_data_owner'] / 1e6:.2f} MB"),
        ("offline, dealer to vendor", f"{offline / 1e6:.2f} MB"),
    )
    print(f"{report['name']} {report['version']} for CrypTen, {report['operations']} operations")
    for label, value in rows:
        print(f"  {label:<30} {value}")
