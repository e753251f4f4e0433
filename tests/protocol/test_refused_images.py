"""Whether a clinic refuses an image does not depend on the image, whatever plan a vendor made.

A refused image is one that does not come, which its vendor sees. So every party refuses a plan
whose input cannot hold each picture, to the last unit (docs/protocol.md, section 10.6).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from data_owner.images import GreyImage, ImageMeta
from data_owner.preprocess import preprocess
from radiopaque.engine.crypten.plan import LARGEST_INPUT, validate
from radiopaque.engine.crypten.runs import check_images
from radiopaque.engine.data_owner import encode_images
from radiopaque.errors import PlanError, TensorError
from radiopaque.graph import plan as p
from radiopaque.graph.validate import validate_plan
from tests.unit.crypten.test_plan import PLAN

SIDE = 4


def plan_of(mean: float, std: float, bits: int, limit: int) -> p.Plan:
    """Reveals an image of this preprocessing, at 2**bits units."""
    shape = (1, 1, SIDE, SIDE)
    spec = p.Preprocessing(1, SIDE, SIDE, "stretch", "bilinear", (mean,), (std,))
    steps = (
        p.Step(p.Input(), (), shape, bits, limit=limit),
        p.Step(p.Reshape(), (0,), (1, SIDE * SIDE), bits, limit=1),
        p.Step(p.Output(2, 60), (1,), (1, SIDE * SIDE), bits),
    )
    return p.Plan(64, "one", "1", steps, preprocessing=spec)


def least(mean: float, std: float, bits: int) -> p.Plan:
    """The plan with the least limit that is accepted."""
    low, high = 0, 1 << 60
    while high - low > 1:
        middle = (low + high) // 2
        try:
            validate_plan(plan_of(mean, std, bits, middle))
            high = middle
        except PlanError:
            low = middle
    return plan_of(mean, std, bits, high)


def pictures() -> Iterator[np.ndarray]:
    generator = np.random.default_rng(3)
    for level in (0.0, 1.0, 0.5):
        yield np.full((SIDE, SIDE), level, np.float32)
    yield generator.integers(0, 2, (SIDE, SIDE)).astype(np.float32)
    for size in (SIDE, SIDE + 3):
        yield generator.uniform(0, 1, (size, size)).astype(np.float32)


def send_all(plan: p.Plan) -> None:
    assert plan.preprocessing is not None
    for pixels in pictures():
        image = GreyImage(pixels, ImageMeta("dicom"))
        encode_images(plan, preprocess(image, plan.preprocessing)[np.newaxis])


SPECS = [
    (0.5, 0.25, 20),
    (0.485, 0.229, 40),
    (0.0, 0.7, 44),
    (0.3, 1e-7, 12),
    # a mean that float32 rounds by 0.03, where pixels become one of 17 numbers
    (999999.97, 1.0, 10),
    (-999999.97, 3.0, 30),
]


@pytest.mark.parametrize(("mean", "std", "bits"), SPECS)
def test_no_picture_is_refused(mean: float, std: float, bits: int) -> None:
    plan = least(mean, std, bits)
    send_all(plan)
    input_step = replace(plan.input_step, limit=plan.input_step.limit - 1)
    with pytest.raises(TensorError, match="more than"):
        send_all(replace(plan, steps=(input_step, *plan.steps[1:])))


def test_no_picture_is_refused_under_crypten() -> None:
    within, beyond = (
        p.Preprocessing(1, SIDE, SIDE, "fit", "bilinear", (0.0,), (1 / most,))
        for most in (LARGEST_INPUT, LARGEST_INPUT + 0.01)
    )
    validate(replace(PLAN, preprocessing=within))
    white = GreyImage(np.ones((SIDE, SIDE), np.float32), ImageMeta("dicom"))
    check_images(PLAN, preprocess(white, within)[np.newaxis])
    with pytest.raises(TensorError, match="over 32768"):
        check_images(PLAN, preprocess(white, beyond)[np.newaxis])
    with pytest.raises(PlanError, match=r"preprocessing can reach 3.277e\+04, over 32768"):
        validate(replace(PLAN, preprocessing=beyond))


@pytest.mark.parametrize("std", [1e-46, 1e-300, float("nan")])
def test_a_deviation_that_makes_no_numbers_is_refused(std: float) -> None:
    with pytest.raises(PlanError):
        validate_plan(plan_of(0.5, std, 0, 1 << 60))
