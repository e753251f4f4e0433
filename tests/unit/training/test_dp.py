"""Private steps: what an image contributes is bounded, the noise is as accounted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("torch")
pytest.importorskip("opacus")

import torch
from torch import nn

from training.accounting import Steps, prv_epsilon, rdp_epsilon
from training.budget import Allowance, Budget
from training.dp import PrivacySettings, PrivateSite, clipped_sum
from training.errors import BudgetSpentError, DivergedError, SettingsError
from training.networks import build
from training.noise import SecureSource
from training.resnet import ResNet18
from training.site import flatten, shared_names, weights_of

GRID = 2.0**-24
KEY = bytes(range(32))
LOOSE = Allowance(1e6, 1e-5, "rdp")
SETTINGS = PrivacySettings(noise_multiplier=1.0, clip_norm=0.5, sample_rate=0.5, physical_batch=4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks run faster on one thread than on several that other work competes with."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data(count: int = 12, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(count, 1, size, size, generator=generator)
    return images, torch.arange(count) % 3


def small() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def site(settings: PrivacySettings, budget: Budget | None = None) -> PrivateSite:
    images, labels = data()
    budget = Budget("a", LOOSE, None) if budget is None else budget
    return PrivateSite("a", images, labels, settings, budget, SecureSource(KEY))


def one_gradient(model: nn.Module, image: torch.Tensor, label: torch.Tensor) -> np.ndarray:
    model.zero_grad()
    nn.functional.cross_entropy(model(image[None]), label[None]).backward()
    grads = [value.grad.reshape(-1) for value in model.parameters() if value.grad is not None]
    flat: np.ndarray = torch.cat(grads).double().numpy()
    return flat


def test_the_sum_is_that_of_gradients_clipped_one_by_one() -> None:
    model, (images, labels) = small(), data()
    expected = np.zeros(0)
    norms = []
    for image, label in zip(images, labels, strict=True):
        gradient = one_gradient(model, image, label)
        norms.append(np.linalg.norm(gradient))
        clipped = gradient * min(1.0, SETTINGS.clip_norm / norms[-1])
        expected = clipped if not len(expected) else expected + clipped
    found = clipped_sum(model, images.unsqueeze(1), labels, SETTINGS)
    assert max(norms) > SETTINGS.clip_norm
    assert np.abs(found * SETTINGS.clip_norm * GRID - expected).max() < 1e-5
    # With a bound that nothing exceeds, the sum is the plain gradient of the sum of losses.
    loose = replace(SETTINGS, clip_norm=100.0)
    found = clipped_sum(model, images.unsqueeze(1), labels, loose)
    model.zero_grad()
    nn.functional.cross_entropy(model(images), labels, reduction="sum").backward()
    grads = [value.grad for value in model.parameters()]
    plain = torch.cat([grad.reshape(-1) for grad in grads if grad is not None])
    assert np.abs(found * 100.0 * GRID - plain.numpy()).max() < 1e-3


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_one_image_more_moves_the_sum_by_no_more_than_the_clip_norm(scale: float) -> None:
    model, (images, labels) = small(), data()
    views = (images * scale).unsqueeze(1)
    whole, moved = clipped_sum(model, views, labels, SETTINGS), False
    for left_out in range(len(labels)):
        kept = [index for index in range(len(labels)) if index != left_out]
        rest = clipped_sum(model, views[kept], labels[kept], SETTINGS)
        # Exact integers: no tolerance.
        assert sum(int(value) ** 2 for value in whole - rest) <= 2**48
        moved |= bool((whole != rest).any())
    assert moved


def test_views_are_averaged_before_clipping() -> None:
    model, (images, labels) = small(), data(4)
    views = torch.stack([images, -images], dim=1)
    found = clipped_sum(model, views, labels, replace(SETTINGS, clip_norm=1e3))
    both = [
        clipped_sum(model, part.unsqueeze(1), labels, replace(SETTINGS, clip_norm=1e3))
        for part in (images, -images)
    ]
    assert np.abs(found - (both[0] + both[1]) / 2).max() < 1e4
    whole = clipped_sum(model, views, labels, SETTINGS)
    rest = clipped_sum(model, views[1:], labels[1:], SETTINGS)
    assert sum(int(value) ** 2 for value in whole - rest) <= 2**48


def test_physical_batches_do_not_change_the_sum() -> None:
    model, (images, labels) = small(), data()
    sums = [
        clipped_sum(model, images.unsqueeze(1), labels, replace(SETTINGS, physical_batch=size))
        for size in (1, 5, 100)
    ]
    # float32 sums in another order, in grid units of 2**-24.
    assert max(np.abs(sums[0] - other).max() for other in sums) < 100


def test_the_noise_has_the_deviation_that_is_accounted() -> None:
    settings = replace(SETTINGS, noise_multiplier=3.0, learning_rate=1.0, sample_rate=0.5)
    # Images of zeros, whose gradient for the first layer is zero: what moves it is noise alone.
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(1, 500, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18_000, 3))
    images, labels = torch.zeros(12, 1, 8, 8), torch.arange(12) % 3
    private = PrivateSite("a", images, labels, settings, Budget("a", LOOSE, None))
    noise = private.step(model, weights_of(model)).delta[:4500]
    deviation = 3.0 * settings.clip_norm / (0.5 * 12)
    assert stats.kstest(noise / deviation, "norm").pvalue > 1e-4


def test_the_learning_rate_falls_over_the_last_rounds() -> None:
    private, start = site(replace(SETTINGS, decay=0.5, noise_multiplier=50.0)), weights_of(small())
    lengths = []
    for number in (0, 5, 8, 9):
        private.begin(number, 10)
        lengths.append(float(np.linalg.norm(private.step(small(), start).delta)))
    # Noise of 500 coordinates has a length that is known to a few per cent.
    assert lengths[1] / lengths[0] == pytest.approx(1.0, rel=0.25)
    assert lengths[2] / lengths[0] == pytest.approx(0.4, rel=0.25)
    assert lengths[3] / lengths[0] == pytest.approx(0.2, rel=0.25)


def test_every_step_has_its_own_noise_and_batch() -> None:
    start = weights_of(small())
    private = site(SETTINGS)
    first, second = (private.step(small(), start).delta for _ in range(2))
    assert (first != second).mean() > 0.99


def test_an_update_without_images_drawn_is_noise_and_not_an_error() -> None:
    private = site(replace(SETTINGS, sample_rate=1e-9, learning_rate=1e-9))
    update = private.step(small(), weights_of(small()))
    assert update.samples == 12
    assert np.isfinite(update.delta).all()


def test_with_little_noise_it_learns_and_the_update_is_the_change() -> None:
    settings = replace(
        SETTINGS, noise_multiplier=0.01, steps=60, sample_rate=0.9, learning_rate=0.5, momentum=0.5
    )
    model, start = small(), weights_of(small())
    update = site(settings).step(model, start)
    images, labels = data()
    with torch.inference_mode():
        assert (model(images).argmax(dim=1) == labels).all()
    names = shared_names(model)
    assert np.array_equal(update.delta, flatten(weights_of(model), names) - flatten(start, names))


def test_metrics_are_what_the_accountants_say_and_nothing_of_the_images() -> None:
    private = site(replace(SETTINGS, steps=3))
    start = weights_of(small())
    private.step(small(), start)
    metrics = private.step(small(), start).metrics
    history = (Steps(1.0, 0.5, 6),)
    assert metrics == {
        "epsilon_prv": prv_epsilon(history, 1e-5),
        "epsilon_rdp": rdp_epsilon(history, 1e-5),
        "private_steps": 6.0,
        "learning_rate": SETTINGS.learning_rate,
    }


def test_a_spent_budget_stops_the_site_before_the_step() -> None:
    budget = Budget("a", Allowance(6.0, 1e-5, "rdp"), None)
    private, start = site(SETTINGS, budget), weights_of(small())
    taken = 0
    while budget.affords(Steps(1.0, 0.5, 1)):
        private.step(small(), start)
        taken += 1
    assert budget.spent().steps == taken > 0
    model = small()
    with pytest.raises(BudgetSpentError, match="'a'"):
        private.step(model, start)
    assert all(torch.equal(value, start[name]) for name, value in weights_of(model).items())


def test_head_training_computes_features_once_and_equals_training_through_the_body(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, labels = data(6, 32)
    settings = replace(SETTINGS, steps=2)
    deltas = []
    for through_the_body in (False, True):
        torch.manual_seed(1)
        model = build("efficientnet-lite0", pretrained=False, taps=[2])
        if through_the_body:
            monkeypatch.setattr("training.dp.trains_head_only", lambda model: False)
        budget = Budget("a", LOOSE, None)
        private = PrivateSite("a", images, labels, settings, budget, SecureSource(KEY))
        deltas.append(private.step(model, weights_of(model)).delta)
    assert deltas[0].shape == (24 * 3 + 3,)
    assert np.abs(deltas[0] - deltas[1]).max() < 1e-4
    assert np.abs(deltas[0]).max() > 1e-2


def test_all_of_a_standardised_network_can_be_trained() -> None:
    model = build("resnet18", width=2, normalisation="standardised")
    images, labels = data(4, 32)
    private = PrivateSite("a", images, labels, SETTINGS, Budget("a", LOOSE, None))
    assert np.abs(private.step(model, weights_of(model)).delta).max() > 0.0


def test_batch_norm_that_trains_is_refused_before_anything_is_spent() -> None:
    budget = Budget("a", LOOSE, None)
    model = ResNet18(width=2)
    with pytest.raises(SettingsError, match="mixes the images"):
        site(SETTINGS, budget).step(model, weights_of(model))
    plain = nn.Sequential(nn.BatchNorm2d(1, affine=False, track_running_stats=False), small())
    with pytest.raises(SettingsError, match="mixes the images"):
        site(SETTINGS, budget).step(plain, weights_of(plain))
    assert budget.history == ()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
def test_an_image_whose_gradient_is_not_finite_adds_nothing(value: float) -> None:
    model, (images, labels) = small(), data()
    others = [0, 1, 2, *range(4, 12)]
    rest = clipped_sum(model, images[others].unsqueeze(1), labels[others], SETTINGS)
    images[3] = value
    whole = clipped_sum(model, images.unsqueeze(1), labels, replace(SETTINGS, physical_batch=12))
    assert np.abs(whole - rest).max() < 100  # float32 sums in another order, as above
    assert not clipped_sum(model, images[3:4].unsqueeze(1), labels[3:4], SETTINGS).any()


def test_weights_chosen_by_the_coordinator_do_not_make_one_image_an_error() -> None:
    """Whether a site answers would be a bit about an image, told without noise."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    weights = {name: torch.zeros_like(value) for name, value in weights_of(model).items()}
    weights["1.weight"][1, 0] = 2e38
    images, labels = torch.zeros(20, 1, 2, 2), torch.zeros(20, dtype=torch.int64)
    images[7, 0, 0, 0] = 3.0
    settings = replace(SETTINGS, sample_rate=1.0, steps=2)
    private = PrivateSite("a", images, labels, settings, Budget("a", LOOSE, None))
    assert np.isfinite(private.step(model, weights).delta).all()


def test_weights_that_are_not_finite_after_the_noise_are_not_sent() -> None:
    private = site(replace(SETTINGS, learning_rate=1e38, steps=2, weight_decay=1.0))
    with pytest.raises(DivergedError, match=r"site 'a'.*not finite"):
        private.step(small(), weights_of(small()))


def test_nothing_to_train_and_nothing_to_train_on_are_refused() -> None:
    frozen = small().requires_grad_(False)
    with pytest.raises(SettingsError, match="unfreeze"):
        clipped_sum(frozen, data()[0].unsqueeze(1), data()[1], SETTINGS)
    with pytest.raises(SettingsError, match="0 images"):
        PrivateSite(
            "a", torch.zeros(0, 1, 8, 8), torch.zeros(0), SETTINGS, Budget("a", LOOSE, None)
        )
    with pytest.raises(SettingsError, match="11 labels"):
        PrivateSite("a", data()[0], data()[1][:11], SETTINGS, Budget("a", LOOSE, None))


@pytest.mark.parametrize(
    "change",
    [
        {"clip_norm": 0.0},
        {"clip_norm": float("nan")},
        {"noise_multiplier": -1.0},
        {"sample_rate": 0.0},
        {"steps": 0},
        {"decay": 1.5},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"learning_rate": float("inf")},
        {"physical_batch": 0},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        replace(SETTINGS, **change)
