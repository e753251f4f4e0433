"""``radiopaque certs``: development certificates."""

from __future__ import annotations

from pathlib import Path

import typer

from radiopaque.certificates import DEFAULT_HOSTS, Role, init_directory, issue
from radiopaque.files import make_private_directory


def register(application: typer.Typer) -> None:
    """Add the sub-commands."""
    group = typer.Typer(help="Make development certificates for the three roles.")
    group.command("init")(_init)
    group.command("issue")(_issue)
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
