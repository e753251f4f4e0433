"""``radiopaque certs``: requests for a hospital's authority, and development certificates."""

from __future__ import annotations

from pathlib import Path

import typer

from radiopaque.certificates import (
    DEFAULT_HOSTS,
    Role,
    init_directory,
    issue,
    request,
    revoke,
)
from radiopaque.files import make_private_directory


def register(application: typer.Typer) -> None:
    """Add the sub-commands."""
    group = typer.Typer(
        help="Certificates: requests for an authority of your own, or ones for development."
    )
    group.command("init")(_init)
    group.command("issue")(_issue)
    group.command("request")(_request)
    group.command("revoke")(_revoke)
    application.add_typer(group, name="certs")


def _init(
    directory: Path = typer.Argument(help="Folder for the authority and the certificates."),
    host: list[str] = typer.Option(
        list(DEFAULT_HOSTS), help="DNS name or address of the serving parties; repeatable."
    ),
    force: bool = typer.Option(False, help="Replace what an earlier call made."),
) -> None:
    """Make an authority and one certificate for each role. For development, not for hospitals."""
    for role, files in init_directory(directory, host, force=force).items():
        print(f"{role}: {files.certificate}, {files.key}")


def _issue(
    directory: Path = typer.Argument(help="Folder of the authority (certs init)."),
    role: Role = typer.Argument(help="Role of the new certificate."),
    name: str = typer.Argument(help="Name of its holder, for example the clinic's."),
    output: Path = typer.Argument(help="Folder for the certificate and its key."),
    host: list[str] = typer.Option(list(DEFAULT_HOSTS), help="DNS name or address; repeatable."),
) -> None:
    """Issue one more certificate."""
    make_private_directory(output)
    files = issue(directory, role, name, host, output)
    print(f"{role}: {files.certificate}, {files.key}")


def _request(
    role: Role = typer.Argument(help="Role of the party."),
    name: str = typer.Argument(help="Name of the party, for example the clinic's."),
    output: Path = typer.Argument(help="Folder for the key and the request."),
    host: list[str] = typer.Option(
        [], help="DNS name or address that clients may check (server_name); repeatable."
    ),
) -> None:
    """Make a key, and a request (PKCS #10) for the authority that your organisation runs.

    The certificate that it issues must keep the URI urn:radiopaque:role:<role>, the names and the
    P-256 key of the request.
    """
    make_private_directory(output)
    made = request(output, role, name, host)
    print(f"{role}: send {made.request} to the authority; {made.key} stays here")


def _revoke(
    directory: Path = typer.Argument(help="Folder of the authority (certs init)."),
    certificate: Path = typer.Argument(help="The certificate that is to hold no more."),
    days: int = typer.Option(30, min=1, max=3650, help="How long the list is good for."),
) -> None:
    """Take back a development certificate: writes ca.crl, which the other parties name as `crl`."""
    print(f"revoked; the list is {revoke(directory, certificate, days)}")
