"""``radiopaque model-owner``: the vendor."""

from __future__ import annotations

from pathlib import Path

import typer


def register(application: typer.Typer) -> None:
    """Add the sub-commands."""
    group = typer.Typer(help="Host compiled models.")
    group.callback()(_group)
    group.command("serve")(_serve)
    application.add_typer(group, name="model-owner")


def _group() -> None:
    """The model owner (vendor)."""


def _serve(
    config: Path = typer.Option(help="TOML file; see: radiopaque config example model-owner"),
    as_json: bool = typer.Option(False, "--json", help="Announce and log as JSON lines."),
) -> None:
    """Serve until SIGTERM."""
    from model_owner.dealer import Dealer
    from model_owner.hosting import Hosted
    from model_owner.service import Limits, ModelOwner
    from radiopaque.certificates import Role
    from radiopaque.cli.serving import serve
    from radiopaque.config import load_model_owner
    from radiopaque.engine.devices import open_device
    from radiopaque.transport.grpc_client import Peer

    settings = load_model_owner(config)
    limits = settings.limits
    device = open_device(settings.device, settings.threads)
    identity = settings.tls.load(Role.MODEL_OWNER)
    models = ((model.path, model.name, model.version) for model in settings.models)
    hosted = Hosted.load(models, device)
    provider = settings.crypto_provider
    with Peer(Role.CRYPTO_PROVIDER, provider.address, identity, provider.server_name) as peer:
        party = ModelOwner(
            settings.store,
            hosted,
            Dealer(peer),
            Limits(
                limits.sessions_per_clinic,
                limits.concurrent_inferences,
                limits.material_bytes,
                limits.session_days * 86_400.0,
                limits.window_bytes,
            ),
        )
        try:
            serve(identity, party, settings, device, as_json=as_json)
        finally:
            party.close()
