"""Which checks each party needs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path

from radiopaque import config
from radiopaque.certificates import Role
from radiopaque.config import (
    CryptoProviderConfig,
    DataOwnerConfig,
    ModelOwnerConfig,
    PeerConfig,
    TlsConfig,
)
from radiopaque.engine.plans import check_revealed, decode_any
from radiopaque.engine.weights_file import PLAN_FILE, WEIGHTS_FILE, read_limited
from radiopaque.errors import ConfigError, WeightsFileError
from radiopaque.files import check_private
from radiopaque.ledger import State
from radiopaque.operations.doctor import ledgers, machine, network
from radiopaque.operations.doctor.findings import Finding, attempt, fine, warn
from radiopaque.operations.endpoint import read_metrics
from radiopaque.operations.snapshot import parse
from radiopaque.wire.plans import MAX_PLAN_BYTES

_Check = tuple[str, Callable[[], Iterator[Finding]]]


def examine(role: Role, path: Path, only: Collection[str] = ()) -> Iterator[Finding]:
    """The checks of the party whose configuration is at ``path``, one after the other.

    ``only`` names those that are made, else all are: certificate, store, disk, ledger, stock,
    kernels, models, open files, own port, metrics, model owner, model, crypto provider.
    """
    loaders: dict[Role, Callable[[Path], CryptoProviderConfig | ModelOwnerConfig | DataOwnerConfig]]
    loaders = {
        Role.CRYPTO_PROVIDER: config.load_crypto_provider,
        Role.MODEL_OWNER: config.load_model_owner,
        Role.DATA_OWNER: config.load_data_owner,
    }
    try:
        settings = loaders[role](path)
    except ConfigError as error:
        yield from attempt("configuration", partial(_raise, error))
        return
    yield fine("configuration", f"{path} is valid")
    checks = dict(_checks(role, settings))
    unknown = sorted(set(only) - set(checks))
    if unknown:
        raise ConfigError(
            f"there is no check {unknown[0]!r} of a {role}; choose among: {', '.join(checks)}"
        )
    for name, look in checks.items():
        if not only or name in only:
            yield from attempt(name, look)


def _checks(
    role: Role, settings: CryptoProviderConfig | ModelOwnerConfig | DataOwnerConfig
) -> Iterator[_Check]:
    tls, store = settings.tls, settings.store
    yield "certificate", partial(machine.certificates, tls, role)
    yield "store", partial(machine.store, store)
    yield "disk", partial(_disk, settings)
    yield "ledger", partial(ledgers.ledger, store, _database(settings))
    yield "stock", partial(_stock, settings)
    yield "kernels", machine.kernels
    if isinstance(settings, ModelOwnerConfig):
        yield "models", partial(_models, settings)
    if not isinstance(settings, DataOwnerConfig):
        yield "open files", machine.open_files
        yield "own port", partial(network.own_port, tls, role, settings.listen)
        yield "metrics", partial(_metrics, settings, role)
    if isinstance(settings, DataOwnerConfig):
        yield _peer(tls, role, Role.MODEL_OWNER, settings.model_owner)
        yield "model", partial(network.offer, settings)
    if not isinstance(settings, CryptoProviderConfig):
        yield _peer(tls, role, Role.CRYPTO_PROVIDER, settings.crypto_provider)


def _database(
    settings: CryptoProviderConfig | ModelOwnerConfig | DataOwnerConfig,
) -> str | None:
    return None if isinstance(settings, DataOwnerConfig) else settings.ledger.postgresql


def _peer(tls: TlsConfig, own: Role, role: Role, named: PeerConfig) -> _Check:
    look = partial(network.peer, tls, own, role, named.address, named.server_name)
    return role.replace("-", " "), look


def _disk(settings: CryptoProviderConfig | ModelOwnerConfig | DataOwnerConfig) -> Iterator[Finding]:
    wanted = 0
    if isinstance(settings, ModelOwnerConfig):
        used = ledgers.material_bytes(settings.store)
        wanted = max(0, settings.limits.material_bytes - used)
    yield from machine.disk(settings.store, wanted)


def _stock(
    settings: CryptoProviderConfig | ModelOwnerConfig | DataOwnerConfig,
) -> Iterator[Finding]:
    counts = ledgers.sessions(settings.store, _database(settings))
    if isinstance(settings, DataOwnerConfig):
        bound = counts.get(State.BOUND, 0)
        if bound:
            yield fine("stock", f"{bound} sessions are prepared")
        else:
            yield warn(
                "stock",
                "no session is prepared: the next image waits for one",
                "run: radiopaque data-owner prepare --count N",
            )
    elif isinstance(settings, CryptoProviderConfig):
        most = settings.limits.reserved_sessions
        yield from ledgers.stock(counts.get(State.RESERVED, 0), most, "wait to be dealt")
    else:
        used, most = ledgers.material_bytes(settings.store), settings.limits.material_bytes
        text = f"{counts.get(State.READY, 0)} sessions are prepared, {used / 1e9:.2f} GB"
        if used >= 0.9 * most:
            yield warn(
                "stock",
                f"{text} of at most {most / 1e9:.1f}",
                "raise material_bytes in [limits], or lower session_days",
            )
        else:
            yield fine("stock", text)


def _models(settings: ModelOwnerConfig) -> Iterator[Finding]:
    for model in settings.models:
        plan = decode_any(read_limited(model.path / PLAN_FILE, MAX_PLAN_BYTES))
        name, version = model.name or plan.name, model.version or plan.version
        weights = model.path / WEIGHTS_FILE
        if not weights.is_file():
            raise WeightsFileError(f"there is no {weights}; run radiopaque compile")
        check_private(weights)
        policy = settings.policy
        check_revealed(plan, f"{name} {version}", policy.output_bits, policy.labels_only)
        yield fine("models", f"{name} {version} in {model.path}")


def _metrics(settings: CryptoProviderConfig | ModelOwnerConfig, role: Role) -> Iterator[Finding]:
    if settings.metrics is None:
        yield warn("metrics", "none are served", 'set `metrics`, for example "127.0.0.1:7312"')
        return
    parse(read_metrics(settings.metrics, settings.tls, role))
    yield fine("metrics", f"served on {settings.metrics}")


def _raise(error: ConfigError) -> Iterator[Finding]:
    raise error
