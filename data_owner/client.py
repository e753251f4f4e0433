"""The data owner's client: from an image file to probabilities."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_owner import journal
from data_owner.artefacts import ArtefactCache, LocalModel, Offer, fetch_offer
from data_owner.dealer_audit import Audited
from data_owner.journal import Journal
from data_owner.preparing import Prepared
from data_owner.retry import Backoff
from data_owner.sessions import Answer, Sessions
from data_owner.submission import Done, Failure, Progress, Submission, Wish, preprocessing_of
from radiopaque.certificates import PeerIdentity, Role
from radiopaque.engine.devices import open_device
from radiopaque.engine.names import EngineName
from radiopaque.engine.warm_up import warm_up
from radiopaque.errors import ConfigError, RadiopaqueError, UnknownModelError
from radiopaque.files import open_store
from radiopaque.graph.plan import Plan
from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import Peer
from radiopaque.wire.v1 import services_pb2 as pb

if TYPE_CHECKING:
    from data_owner.report import InferenceReport
    from radiopaque.config import DataOwnerConfig


class Client:
    """One clinic's connection to its vendor and crypto provider. Use it as a context manager."""

    def __init__(self, config: DataOwnerConfig) -> None:
        self._device = open_device(config.device, config.threads)
        identity = config.tls.load(Role.DATA_OWNER)
        open_store(config.store)
        self._config = config
        self._cache = ArtefactCache(config.store / "models", self._device)
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
        try:
            self._sessions = Sessions(
                config.store,
                self._model_owner,
                self._crypto_provider,
                config.deadline_seconds,
                config.window_bytes,
                str(PeerIdentity(Role.DATA_OWNER, identity.name)),
            )
        except BaseException:
            self._model_owner.close()
            self._crypto_provider.close()
            raise
        self._stop_traces = _start_traces(config, PeerIdentity(Role.DATA_OWNER, identity.name))
        self._fetching = threading.Lock()
        self._model: LocalModel | None = None
        self.setup = Counters()
        """Traffic of fetching the model: plan, and F where it was not at hand."""

    @classmethod
    def from_config(cls, path: str | Path, engine: EngineName | None = None) -> Client:
        """A client from its TOML file; ``engine`` replaces the one that the file asks for.

        Raises ConfigError, AuthenticationError or StoreError.
        """
        from radiopaque.config import load_data_owner

        config = load_data_owner(Path(path))
        return cls(config if engine is None else config.model_copy(update={"engine": engine}))

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
        self._sessions.finish()
        self._model_owner.close()
        self._crypto_provider.close()
        self._sessions.close()
        self._stop_traces()

    def models(self) -> list[tuple[str, str, str]]:
        """(name, version, plan digest) of every model that the vendor offers."""
        return [(m.name, m.version, m.plan_digest.hex()) for m in self._list_models()]

    def _list_models(self) -> list[pb.ModelEntry]:
        reply = self._model_owner.call(
            "ListModels",
            pb.ListModelsRequest(),
            pb.ListModelsReply,
            Counters(),
            self._config.deadline_seconds,
        )
        return list(reply.models)

    def model(self) -> LocalModel:
        """The configured model, fetched and checked on first use."""
        with self._fetching:
            if self._model is None:
                offer = self._fetch_offer()
                self._check_engine(offer)
                if isinstance(offer.plan, Plan):
                    warm_up([offer.plan], self._device)
                self._model = self._cache.load(
                    offer, self._model_owner, self.setup, self._config.deadline_seconds
                )
                offered = {entry.artefact for entry in self._list_models()}
                self._sessions.discard_stale(offer.name, offered)
            return self._model

    def _check_engine(self, offer: Offer) -> None:
        """The engines do not promise the same: the clinic says which one it wants."""
        offered = EngineName.COMPILED if isinstance(offer.plan, Plan) else EngineName.CRYPTEN
        if offered == self._config.engine:
            return
        remedy = (
            "its results can be wrong (docs/crypten-engine.md); to accept that, set engine = "
            '"crypten" in the config or pass --engine crypten'
            if offered == EngineName.CRYPTEN
            else 'set engine = "compiled" in the config, or leave it out'
        )
        raise ConfigError(
            f"{offer.name} {offer.version} is offered for the {offered} engine, this clinic asks "
            f"for {self._config.engine}: {remedy}"
        )

    def _fetch_offer(self) -> Offer:
        config = self._config
        return fetch_offer(
            self._model_owner,
            config.model,
            config.version or "",
            self.setup,
            config.deadline_seconds,
            config.model_bytes,
        )

    def stock(self) -> int:
        """Sessions that are prepared for the configured model."""
        return self._sessions.stock(self.model())

    def prepare(self, count: int = 1) -> list[Prepared]:
        """Make material for ``count`` inferences ahead of time.

        Each is opened for the dealer audit with the probability ``audit_share`` of the
        configuration, and gone then. Raises DealerError where one is wrong.
        """
        with self._refetching():
            model, share = self.model(), self.audit_share
            return [self._sessions.prepare(model, share) for _ in range(count)]

    @property
    def audit_share(self) -> float:
        """Of what is prepared ahead of time, as configured."""
        return self._config.audit_share

    def audit(self, share: float) -> Audited:
        """Have the vendor check a random share of the stock for what the crypto provider dealt.

        The sessions that are opened for it are gone. Raises DealerError where one is wrong.
        """
        with self._refetching():
            return self._sessions.audit(self.model(), share)

    def infer_tensor(self, images: NDArray[np.floating]) -> Answer:
        """One inference on a preprocessed tensor of the plan's shape; prepares where needed.

        Raises TensorError before anything is sent.
        """
        with self._refetching():
            model = self.model()
            model.engine.check(images)
            with self._sessions.reserve(model, 1) as reserved:
                return self._sessions.infer(model, reserved[0], images)

    def infer(self, path: str | Path) -> InferenceReport:
        """One image file to a report."""
        return self.infer_many([path])[0]

    def infer_many(
        self, paths: Sequence[str | Path], progress: Progress | None = None
    ) -> list[InferenceReport]:
        """Image files to reports, in their order.

        A plan for several images at once is filled up with zeros. Raises ImageError; a file that
        cannot be used costs no session. Threads may call this at the same time.
        """
        wish = Wish(progress=progress or (lambda _: None))
        done: list[InferenceReport] = []
        for outcome in self.submit([Path(path) for path in paths], wish):
            if isinstance(outcome, Failure):
                raise outcome.error
            done.append(outcome)
        return done

    def journal(self, folder: Path | None = None) -> Journal:
        """The journal of a folder of reports, or the one in the store. Close it.

        Raises StoreError.
        """
        return Journal((folder or self._config.store) / journal.FILE)

    def submit(self, paths: Sequence[Path], wish: Wish) -> Iterator[InferenceReport | Failure]:
        """Image files to reports as they are done, in their order; then the error that ended it.

        What a dead peer, a lost connection or a timeout breaks off is tried again on fresh
        material, as ``retry`` in the configuration says. Images are taken in groups, of up to eight
        sessions; reports are made when the inferences of a group are over, and before the next one
        begins. The vendor sees how long that takes, and what the caller does meanwhile: see
        docs/protocol.md, section 10.6.
        """
        retry = self._config.retry
        backoff = Backoff(retry.attempts, retry.first_seconds, retry.longest_seconds)
        submission = Submission(self._sessions, self.model, replace(wish, backoff=backoff))
        with self._refetching():
            for model, outcomes in submission.run(paths):
                for outcome in outcomes:
                    yield outcome if isinstance(outcome, Failure) else _reported(model, outcome)

    @contextmanager
    def _refetching(self) -> Iterator[None]:
        """Asks the vendor anew next time where it does not host this artefact any more."""
        try:
            yield
        except UnknownModelError:
            with self._fetching:
                self._model = None
            raise


def _reported(model: LocalModel, done: Done) -> InferenceReport | Failure:
    """One that cannot be made does not keep the others from being made."""
    try:
        return _report(model.offer, done)
    except RadiopaqueError as error:
        return Failure(done.picture.path, error)


def _report(offer: Offer, done: Done) -> InferenceReport:
    from data_owner.preprocess import picture_png
    from data_owner.results import report

    answer = done.result.answer
    return report(
        offer,
        done.picture.name,
        answer,
        done.result.index,
        answer.prepared,
        done.picture.warnings,
        picture_png(done.picture.tensor, preprocessing_of(offer.plan)),
        done.result.created,
    )


def _start_traces(config: DataOwnerConfig, own: PeerIdentity) -> Callable[[], None]:
    """Traces of this process, where they are asked for; returns what ends them."""
    if config.traces is None:
        return lambda: None
    from radiopaque.operations import tracing

    return tracing.start(config.traces, own)
