"""``radiopaque model-owner``: the vendor."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def register(application: typer.Typer) -> None:
    """Add the sub-commands."""
    group = typer.Typer(help="Host compiled models.")
    group.callback()(_group)
    group.command("serve")(_serve)
    group.command("roll-back")(_roll_back)
    application.add_typer(group, name="model-owner")


def _group() -> None:
    """The model owner (vendor)."""


def _serve(
    config: Path = typer.Option(help="TOML file; see: radiopaque config example model-owner"),
    as_json: bool = typer.Option(False, "--json", help="Announce and log as JSON lines."),
) -> None:
    """Serve until SIGTERM."""
    from model_owner.admission import Limits
    from model_owner.dealer import Dealer
    from model_owner.hosting import Hosted
    from model_owner.policy import Rules
    from model_owner.rollback import Newest
    from model_owner.service import ModelOwner
    from radiopaque.certificates import Role
    from radiopaque.cli.serving import serve
    from radiopaque.config import load_model_owner
    from radiopaque.engine.devices import open_device
    from radiopaque.ledger import MODEL_OWNER, open_ledger
    from radiopaque.transport.grpc_client import Peer

    settings = load_model_owner(config)
    limits, policy = settings.limits, settings.policy
    device = open_device(settings.device, settings.threads)
    identity = settings.tls.load(Role.MODEL_OWNER)
    models = ((model.path, model.name, model.version) for model in settings.models)
    hosted = Hosted.load(models, device, Newest(settings.store).versions)
    provider = settings.crypto_provider
    kept = settings.ledger
    ledger = open_ledger(settings.store, MODEL_OWNER, kept.postgresql, kept.replica)
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
                limits.sessions,
            ),
            ledger=ledger,
            rules=Rules(
                policy.clinics,
                policy.images,
                policy.period_hours * 3600,
                policy.output_bits,
                policy.labels_only,
            ),
        )
        try:
            serve(identity, party, settings, device, as_json=as_json)
        finally:
            party.close()


def _roll_back(
    name: str = typer.Argument(help="Name of a hosted model."),
    version: str = typer.Argument(help="The newest version of it to serve from now on."),
    config: Path = typer.Option(help="TOML file; see: radiopaque config example model-owner"),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Serve nothing newer than a version, at once and without a restart; sessions under way finish.

    The same with a newer version takes it back. With --json: {"model", "served", "withdrawn"}.
    """
    from model_owner.rollback import roll_back
    from radiopaque.config import load_model_owner

    settings = load_model_owner(config)
    models = ((model.path, model.name, model.version) for model in settings.models)
    served, withdrawn = roll_back(settings.store, models, name, version)
    if as_json:
        print(json.dumps({"model": name, "served": served, "withdrawn": withdrawn}))
    else:
        gone = f"; withdrawn: {', '.join(withdrawn)}" if withdrawn else ""
        print(f"{name}: {', '.join(served)} served{gone}")
