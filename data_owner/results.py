"""From the network's outputs to probabilities and a report."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_owner.artefacts import Offer
from data_owner.preparing import Prepared
from data_owner.report import InferenceReport
from data_owner.sessions import Answer
from radiopaque.engine.crypten.plan import CryptenPlan
from radiopaque.engine.names import EngineName
from radiopaque.engine.plans import AnyPlan
from radiopaque.graph.plan import Plan, Task

IMPLAUSIBLE = 1000.0
"""Times the largest output that the vendor's check saw: nothing but a gross error reaches that."""


def probabilities(logits: NDArray[np.float64], task: Task) -> NDArray[np.float64]:
    """Softmax or sigmoid over the last axis, same shape; empty for raw outputs."""
    if task == "multiclass":
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
    if task == "multilabel":
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))
    return np.empty(0)


NO_SCORES = (
    "the vendor reveals labels alone: 1 says that the class applies, 0 that it does not; "
    "neither is a probability"
)


def report(
    offer: Offer,
    image: str,
    answer: Answer,
    index: int,
    prepared: Prepared | None,
    warnings: tuple[str, ...],
    picture_png: bytes,
    created: str,
) -> InferenceReport:
    """The report of image ``index`` of an answer."""
    plan = offer.plan
    logits = answer.outputs[index].reshape(-1)
    classes = plan.classes or tuple(f"output {i}" for i in range(logits.size))
    labels_only = isinstance(plan, Plan) and plan.labels_only
    use = plan.intended_use
    return InferenceReport(
        image=image,
        model=offer.name,
        version=offer.version,
        statement=use.statement if use else "",
        task=plan.task,
        classes=classes,
        probabilities=tuple(
            float(v) for v in (logits if labels_only else probabilities(logits, plan.task))
        ),
        logits=tuple(float(v) for v in logits),
        warnings=(
            *warnings,
            *((NO_SCORES,) if labels_only else ()),
            *_engine_warnings(plan, logits),
        ),
        online_seconds=answer.online_seconds,
        prepare_seconds=answer.prepare_seconds,
        offline_seconds=prepared.seconds if prepared else 0.0,
        round_trips=answer.round_trips,
        online_bytes=answer.online_bytes,
        offline_bytes=prepared.bytes if prepared else {},
        plan_digest=offer.id.plan_digest.hex(),
        session_id=answer.session.hex(),
        created=created,
        engine=EngineName.CRYPTEN if isinstance(plan, CryptenPlan) else EngineName.COMPILED,
        picture_png=picture_png,
    )


def _engine_warnings(plan: AnyPlan, logits: NDArray[np.float64]) -> tuple[str, ...]:
    """What must be said of every result of CrypTen's, and of one that cannot be right."""
    if not isinstance(plan, CryptenPlan):
        return ()
    warnings = [
        "computed under CrypTen, whose rounding fails now and then: of such results about "
        f"{plan.error_rate} holds a gross error, which need not show"
    ]
    largest = float(np.abs(logits).max())
    if largest > IMPLAUSIBLE * max(1.0, plan.largest_output):
        warnings.append(
            f"this result cannot be right: an output of {largest:.3g}, where the model's check saw "
            f"{plan.largest_output:.3g} at most; discard it"
        )
    return tuple(warnings)
