"""The data owner's client: from an image file to probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_owner.artefacts import ArtefactCache, LocalModel, Offer, fetch_offer
from data_owner.sessions import Answer, Prepared, Sessions
from radiopaque.certificates import Role, load_identity
from radiopaque.engine.warm_up import warm_up
from radiopaque.errors import PlanError
from radiopaque.files import make_private_directory
from radiopaque.graph.plan import Plan, Preprocessing
from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import Peer
from radiopaque.wire.v1 import services_pb2 as pb

if TYPE_CHECKING:
    from data_owner.report import InferenceReport
    from radiopaque.config import DataOwnerConfig

Progress = Callable[[str], None]
"""Told in one line what is being done."""


class Client:
    """One clinic's connection to its vendor and crypto provider. Use it as a context manager."""

    def __init__(self, config: DataOwnerConfig) -> None:
        identity = load_identity(
            config.tls.certificate, config.tls.key, config.tls.ca, Role.DATA_OWNER
        )
        make_private_directory(config.store)
        self._config = config
        self._model_owner = Peer(
            Role.MODEL_OWNER,
            config.model_owner.address,
            identity,
            config.model_owner.server_name,
        )
        self._crypto_provider = Peer(
            Role.CRYPTO_PROVIDER,
            config.crypto_provider.address,
            identity,
            config.crypto_provider.server_name,
        )
        self._cache = ArtefactCache(config.store / "models")
        self._sessions = Sessions(
            config.store, self._model_owner, self._crypto_provider, config.deadline_seconds
        )
        self._model: LocalModel | None = None
        self.setup = Counters()
        """Traffic of fetching the model: plan, and F where it was not at hand."""

    @classmethod
    def from_config(cls, path: str | Path) -> Client:
        """A client from its TOML file. Raises ConfigError, AuthenticationError or StoreError."""
        from radiopaque.config import load_data_owner

        return cls(load_data_owner(Path(path)))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close both connections and the ledger."""
        self._model_owner.close()
        self._crypto_provider.close()
        self._sessions.close()

    def models(self) -> list[tuple[str, str, str]]:
        """(name, version, plan digest) of every model that the vendor offers."""
        reply = self._model_owner.call(
            "ListModels",
            pb.ListModelsRequest(),
            pb.ListModelsReply,
            Counters(),
            self._config.deadline_seconds,
        )
        return [(m.name, m.version, m.plan_digest.hex()) for m in reply.models]

    def model(self) -> LocalModel:
        """The configured model, fetched and checked on first use."""
        if self._model is None:
            offer = self._fetch_offer()
            warm_up([offer.plan])
            self._model = self._cache.load(
                offer, self._model_owner, self.setup, self._config.deadline_seconds
            )
        return self._model

    def _fetch_offer(self) -> Offer:
        config = self._config
        return fetch_offer(
            self._model_owner,
            config.model,
            config.version or "",
            self.setup,
            config.deadline_seconds,
        )

    def stock(self) -> int:
        """Sessions that are prepared for the configured model."""
        return self._sessions.stock(self.model())

    def prepare(self, count: int = 1) -> list[Prepared]:
        """Make material for ``count`` inferences ahead of time."""
        model = self.model()
        return [self._sessions.prepare(model) for _ in range(count)]

    def infer_tensor(self, images: NDArray[np.floating]) -> Answer:
        """One inference on a preprocessed tensor of the plan's shape; prepares if needed."""
        model = self.model()
        if not self._sessions.stock(model):
            self._sessions.prepare(model)
        return self._sessions.infer(model, images)

    def infer(self, path: str | Path) -> InferenceReport:
        """One image file to a report."""
        return self.infer_many([path])[0]

    def infer_many(
        self, paths: Sequence[str | Path], progress: Progress | None = None
    ) -> list[InferenceReport]:
        """Image files to reports, in their order.

        A plan for several images at once is filled up with black ones. Raises ImageError before
        any session is used for the images concerned.
        """
        plan = self.model().offer.plan
        spec = preprocessing_of(plan)
        reports: list[InferenceReport] = []
        for start in range(0, len(paths), plan.batch):
            chosen = [Path(path) for path in paths[start : start + plan.batch]]
            reports += self._infer_batch(plan, spec, chosen, progress or (lambda _: None))
        return reports

    def _infer_batch(
        self, plan: Plan, spec: Preprocessing, paths: Sequence[Path], progress: Progress
    ) -> list[InferenceReport]:
        from data_owner.images import read_image
        from data_owner.intended_use import check
        from data_owner.preprocess import picture_png, preprocess
        from data_owner.results import report

        images = [read_image(path) for path in paths]
        tensors = [preprocess(image, spec) for image in images]
        use = plan.intended_use
        warnings = [tuple(check(image.meta, use)) if use else () for image in images]
        filler = np.zeros_like(tensors[0])
        batch = np.stack([*tensors, *[filler] * (plan.batch - len(tensors))])
        prepared: Prepared | None = None
        if not self._sessions.stock(self.model()):
            progress("preparing a session (no image needed for this part)")
            prepared = self._sessions.prepare(self.model())
        progress(f"secure inference of {', '.join(path.name for path in paths)}")
        answer = self._sessions.infer(self.model(), batch)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return [
            report(
                self.model().offer,
                path.name,
                answer,
                index,
                prepared,
                warnings[index],
                picture_png(tensors[index], spec),
                created,
            )
            for index, path in enumerate(paths)
        ]


def preprocessing_of(plan: Plan) -> Preprocessing:
    """The plan's preprocessing. Raises PlanError for a plan that does not take images."""
    if plan.preprocessing is None:
        raise PlanError(
            f"model {plan.name} states no preprocessing for images; "
            "the vendor must compile it with a manifest, or call infer_tensor"
        )
    return plan.preprocessing
