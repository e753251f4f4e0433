"""``radiopaque crypto-provider``: the trusted dealer."""

from __future__ import annotations

from pathlib import Path

import typer


def register(application: typer.Typer) -> None:
    """Add the sub-commands."""
    group = typer.Typer(help="Deal correlated randomness.")
    group.callback()(_group)
    group.command("serve")(_serve)
    application.add_typer(group, name="crypto-provider")


def _group() -> None:
    """The crypto provider (trusted dealer)."""


def _serve(
    config: Path = typer.Option(help="TOML file; see: radiopaque config example crypto-provider"),
    as_json: bool = typer.Option(False, "--json", help="Announce and log as JSON lines."),
) -> None:
    """Serve until SIGTERM."""
    from crypto_provider.service import CryptoProvider
    from radiopaque.certificates import Role
    from radiopaque.cli.serving import serve
    from radiopaque.config import load_crypto_provider
    from radiopaque.engine.devices import open_device
    from radiopaque.ledger import CRYPTO_PROVIDER, open_ledger

    settings = load_crypto_provider(config)
    device = open_device(settings.device, settings.threads)
    identity = settings.tls.load(Role.CRYPTO_PROVIDER)
    limits = settings.limits
    kept = settings.ledger
    ledger = open_ledger(settings.store, CRYPTO_PROVIDER, kept.postgresql, kept.replica)
    party = CryptoProvider(
        settings.store,
        most_models=limits.models,
        model_bytes=limits.model_bytes,
        most_reserved=limits.reserved_sessions,
        most_reserved_per_clinic=limits.reserved_per_clinic,
        reservation_seconds=limits.reservation_seconds,
        concurrent_deals=limits.concurrent_deals,
        device=device,
        ledger=ledger,
    )
    try:
        serve(identity, party, settings, device, as_json=as_json)
    finally:
        party.close()
