"""CrypTen over our three parties: the same processes, certificates and messages as the compiled."""

from __future__ import annotations

from pathlib import Path

from benchmarks.case import Case, Inputs, Tell
from benchmarks.deployment import Hosted
from benchmarks.engines import parties
from benchmarks.errors import NotAvailableError
from benchmarks.record import Part
from radiopaque.engine.crypten.process import check_installed
from radiopaque.errors import ConfigError, ModelError
from radiopaque.gates import GateCost

_NAME = "compiled"


def measure(case: Case, inputs: Inputs, folder: Path, tell: Tell) -> Part:
    """See :class:`benchmarks.case.Engine`."""
    if case.device != "cpu":
        raise NotAvailableError("CrypTen is measured on the CPU alone")
    try:
        check_installed()
    except ConfigError as error:
        raise NotAvailableError(str(error)) from None
    tell("compiling, which runs the model once")
    try:
        hosted = _compile(case, inputs, folder)
    except ModelError as error:
        raise NotAvailableError(str(error)) from None
    return parties.measure(case, inputs, folder, tell, hosted)


def _compile(case: Case, inputs: Inputs, folder: Path) -> Hosted:
    from radiopaque.engine.crypten.compile import compile_crypten
    from radiopaque.engine.crypten.weights_file import write_compiled

    source = inputs.source
    compiled = compile_crypten(
        source.onnx,
        manifest=source.manifest,
        image=inputs.images[:1],
        batch=None if case.batch == 1 else case.batch,
    )
    plan = compiled.plan
    cost = plan.cost()
    write_compiled(folder / _NAME, plan, compiled.constants)
    return Hosted(
        plan.name,
        folder / _NAME,
        "crypten",
        GateCost(
            correction_bytes=cost.correction_bytes,
            to_model_owner_bytes=cost.to_model_owner_bytes,
            to_data_owner_bytes=cost.to_data_owner_bytes,
            round_trips=cost.round_trips,
        ),
        # a key, an exchange for each tuple, the result
        gates=["message"] * (len(plan.requests) + 2),
        timed=False,
        # in a round both send at once
        known={"one_way_delays": cost.round_trips},
    )
