"""Features by a frozen base: computed once for a run, or once for several runs in one process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from training.progress import Watch, unwatched
from training.site import shared_names

_BATCH = 32


class FeatureStore:
    """Features, float [d], by what decides them: the image, and all of the network but its head.

    Lives in memory, in one process, for runs on the same images.
    """

    def __init__(self) -> None:
        self._rows: dict[bytes, Tensor] = {}

    def get(self, keys: list[bytes]) -> list[Tensor | None]:
        """The rows of some keys; None where there is none."""
        return [self._rows.get(key) for key in keys]

    def put(self, keys: list[bytes], rows: Tensor) -> None:
        """Keep `rows`, float [n, d], under `keys`."""
        for key, row in zip(keys, rows, strict=True):
            self._rows[key] = row.clone()


def trains_head_only(model: nn.Module) -> bool:
    """Whether all that is trained lies in `head`, behind a method `features`."""
    return hasattr(model, "features") and all(
        name.startswith("head.") for name in shared_names(model)
    )


def features_of(
    model: nn.Module,
    images: Tensor,
    prepare: Callable[[Tensor], Tensor],
    *,
    store: FeatureStore | None = None,
    watch: Watch = unwatched,
    what: str = "features",
) -> Tensor:
    """Features, float [n, d], of images [n, c, h, w], by a network that has `features`.

    `prepare` makes of a few images what the network takes. With a store, only those are computed
    that are not in it, and added.
    """
    store = FeatureStore() if store is None else store
    features = getattr(model, "features")  # noqa: B009 (nn.Module types it as a tensor)
    keys = _keys(model, images)
    missing = [number for number, row in enumerate(store.get(keys)) if row is None]
    model.eval()
    with torch.no_grad():
        for start in range(0, len(missing), _BATCH):
            chosen = missing[start : start + _BATCH]
            store.put([keys[number] for number in chosen], features(prepare(images[chosen])))
            watch(what, start + len(chosen), len(missing))
    return torch.stack([row for row in store.get(keys) if row is not None])


def _keys(model: nn.Module, images: Tensor) -> list[bytes]:
    base = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        if not name.startswith("head."):
            base.update(tensor.detach().cpu().contiguous().numpy().data)
    prefix = base.digest()
    return [
        hashlib.sha256(
            prefix + str(tuple(image.shape)).encode() + image.contiguous().numpy().data
        ).digest()
        for image in images
    ]
