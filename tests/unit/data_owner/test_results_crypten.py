"""What a result under CrypTen says about itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from data_owner.artefacts import Offer
from data_owner.report import InferenceReport
from data_owner.results import report
from data_owner.sessions import Answer
from radiopaque.engine.artefact import ArtefactId
from radiopaque.engine.plans import AnyPlan
from radiopaque.engine.warm_up import miniature
from tests.unit.crypten.test_plan import PLAN


def made(plan: AnyPlan, outputs: list[float]) -> InferenceReport:
    offer = Offer("model", "1", plan, ArtefactId(bytes(32), bytes(16)), bytes(32))
    answer = Answer(bytes(16), np.array([outputs]), 1.0, 1.0, 3, {})
    return report(offer, "x.png", answer, 0, None, ("young",), b"", "2026-01-01T00:00:00+00:00")


def test_every_result_says_how_often_it_is_wrong() -> None:
    plan = replace(PLAN, gross_errors=1 / 10_943)
    found = made(plan, [0.5] * 8)
    assert found.engine == "crypten"
    assert found.warnings[0] == "young"
    assert len(found.warnings) == 2
    assert "about one in 11,000 holds a gross error" in found.warnings[1]


def test_a_result_that_cannot_be_right_says_so() -> None:
    """2^32 is what one gross error adds in real units; the check saw 3.5 at most."""
    assert "cannot be right" in made(PLAN, [0.5] * 7 + [-(2.0**32)]).warnings[-1]
    assert "cannot be right" not in made(PLAN, [0.5] * 7 + [35.0]).warnings[-1]


def test_the_compiled_engine_has_nothing_to_warn_of() -> None:
    found = made(miniature(32, 18), [1e9, 0.0])
    assert (found.engine, found.warnings) == ("compiled", ("young",))
