"""The plain site step: flat vectors, kept features, learning rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")

import torch

from tests.unit.training.pictures import read, settings_of
from training import federated
from training.data import labels_of
from training.errors import (
    SettingsError,
)
from training.features import FeatureStore, features_of
from training.local import LocalSite, _batches, rate_at, steps_of_pass
from training.site import (
    applied,
    flatten,
    load_weights,
    shared_names,
    unflatten,
    weights_of,
)

torch.set_num_threads(1)


def test_flat_vectors_go_back_into_the_network(folder: Path) -> None:
    model = federated.build_network(settings_of())
    weights, names = weights_of(model), shared_names(model)
    assert len(names) == len(set(names))
    assert sum(name.endswith("running_var") for name in names) == 20
    flat = flatten(weights, names)
    back = unflatten(flat, weights, names)
    assert all(torch.equal(back[name], weights[name]) for name in names)
    moved = applied(weights, np.ones_like(flat), names)
    load_weights(model, moved)
    assert np.array_equal(flatten(weights_of(model), names), flat + 1)
    with pytest.raises(SettingsError, match="shape"):
        unflatten(flat[:-1], weights, names)
    with pytest.raises(SettingsError, match="do not belong"):
        load_weights(model, {"other": torch.zeros(1)})
    with pytest.raises(SettingsError, match="has shape"):
        load_weights(model, {**weights, names[0]: torch.zeros(1)})


def test_frozen_norms_are_not_shared() -> None:
    model = federated.build_network(
        settings_of(model={"name": "efficientnet-lite0", "options": {"pretrained": False}})
    )
    assert shared_names(model) == ("head.linear.weight", "head.linear.bias")


def test_kept_features_train_like_the_network_itself(folder: Path) -> None:
    model = {"name": "efficientnet-lite0", "options": {"pretrained": False}}
    still = settings_of(model=model)
    # Noise of no visible size switches the keeping of features off.
    moving = settings_of(model=model, augmentation={"noise": 1e-30})
    updates = []
    for settings in (still, moving):
        network = federated.build_network(settings)
        site = federated.build_sites(settings, read(folder, settings).training)[0]
        site.begin(0, 1)
        updates.append(site.step(network, weights_of(network)).delta)
        assert (site._features is None) == (settings is moving)  # type: ignore[attr-defined]
    assert np.abs(updates[0]).max() > 0
    assert np.abs(updates[0] - updates[1]).max() <= 1e-6


def test_the_learning_rate() -> None:
    settings = settings_of(
        training={"learning_rate": 0.1, "warm_up": 0.2, "schedule": "cosine"}
    ).training
    rates = [rate_at(progress, settings) for progress in (0.1, 0.2, 0.6, 1.0)]
    assert rates == pytest.approx([0.05, 0.1, 0.05, 0.0], abs=1e-12)
    constant = settings.model_copy(update={"schedule": "constant"})
    assert rate_at(0.9, constant) == 0.1


def test_stored_features_are_those_of_the_same_base_and_image(folder: Path) -> None:
    def features(store: FeatureStore, images: Any, **options: Any) -> tuple[Any, int]:
        settings = settings_of(
            model={"name": "efficientnet-lite0", "options": {"pretrained": False, **options}}
        )
        computed = 0

        def prepare(part: Any) -> Any:
            nonlocal computed
            computed += len(part)
            return part.float() / 255.0

        found = features_of(federated.build_network(settings), images, prepare, store=store)
        return found, computed

    images = torch.from_numpy(read(folder, settings_of()).training.images[:6])
    store = FeatureStore()
    whole, computed = features(store, images)
    assert computed == 6
    turned, computed = features(store, images.flip(0))
    assert computed == 0
    assert torch.equal(turned, whole.flip(0))
    assert features(store, images + 1)[1] == 6
    for other in ({"activation": "relu"}, {"taps": [5]}, {"taps": [2, 5]}):
        fresh, computed = features(store, images, **other)
        assert computed == 6
        assert torch.equal(fresh, features(FeatureStore(), images, **other)[0])


@pytest.mark.parametrize(
    ("images", "size", "steps"),
    [(64, 32, 2), (65, 32, 2), (66, 32, 3), (31, 32, 1), (1, 32, 1), (5, 1, 5), (33, 32, 1)],
)
def test_every_image_comes_once_and_none_alone(images: int, size: int, steps: int) -> None:
    batches = _batches(torch.randperm(images), size)
    assert len(batches) == steps == steps_of_pass(images, size)
    assert sorted(torch.cat(batches).tolist()) == list(range(images))
    assert size == 1 or images == 1 or min(map(len, batches)) > 1


def test_a_site_whose_images_leave_one_over_is_trained_on(folder: Path) -> None:
    settings = settings_of(training={"batch_size": 4, "local_steps": 0})
    cohort = read(folder, settings).training
    site = LocalSite("odd", cohort.images[:13], labels_of(cohort.samples[:13]), 3, settings)
    network = federated.build_network(settings)
    site.begin(0, 1)
    assert np.isfinite(site.step(network, weights_of(network)).delta).all()


def test_a_network_that_does_not_take_the_images_is_refused() -> None:
    with pytest.raises(SettingsError, match="does not take grey images of 32 pixels"):
        federated.build_network(settings_of(model={"options": {"width": 2, "channels": 3}}))
