"""What a run is, which all members agree on, and what a site decides for itself."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.config import PrivacySettings, TrainingSettings, load_settings
from training.errors import SettingsError
from training.flower.members import Members, Name, canonical, problems_of
from training.secagg import default_threshold

PROTOCOL = 1
# Decided by each member for itself, or not at all across machines.
_NOT_AGREED = {"threads", "output", "privacy"}
_FEDERATION_KEYS = {"sites", "threshold"}
_MOST_DIFFERENCES = 20


class SiteFile(BaseModel):
    """A site's own file. Nothing of it is sent to anybody; paths are relative to its folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Name
    keys: Path
    members: Path
    run: Path
    data: Path
    state: Path
    proxy: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """Of the hospital, through which the coordinator is reached; TLS goes through it unbroken."""
    threads: Annotated[int, Field(ge=1, le=256)] = 2
    privacy: PrivacySettings | None = None


def load_site(path: Path) -> SiteFile:
    """Read a site's own file.

    Raises:
        SettingsError: it is missing, not TOML, or a key is unknown or wrong; names each.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        site = SiteFile.model_validate(values)
    except FileNotFoundError as error:
        raise SettingsError(f"there is no file {path}; pass a TOML file as --config") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read as TOML: {error}") from error
    except ValidationError as error:
        raise SettingsError(f"{path}: {problems_of(error)}") from error
    if site.privacy is not None and site.privacy.sites:
        raise SettingsError(f"{path}: [privacy.sites] has no effect in the file of one site")
    folder = path.absolute().parent
    absolute = {key: folder / getattr(site, key) for key in _paths()}
    privacy = site.privacy and site.privacy.model_copy(
        update={"budget_folder": folder / site.privacy.budget_folder}
    )
    return site.model_copy(update={**absolute, "privacy": privacy})


def load_run(path: Path, members: Members) -> TrainingSettings:
    """Read the run that all members agree on: a configuration of training without what is local.

    Raises:
        SettingsError: it is wrong, or says what has no effect across machines.
    """
    run = load_settings(path)
    problems: list[str] = []
    if run.mode != "federated":
        problems.append('set mode = "federated"')
    if run.privacy is not None:
        problems.append("[privacy] belongs in the file of each site, which decides it alone")
    if "validation_fraction" in run.data.model_fields_set:
        problems.append("data.validation_fraction has no effect: no site gives up images")
    federation = run.federation_or_default()
    extra = sorted(federation.model_fields_set - _FEDERATION_KEYS)
    if extra:
        problems.append(f"federation.{', federation.'.join(extra)}: no effect across machines")
    if federation.sites != len(members.sites):
        problems.append(f"set federation.sites = {len(members.sites)}, as the members are")
    if problems:
        raise SettingsError(f"{path}: {'; '.join(problems)}")
    return run


def settings_of(site: SiteFile, run: TrainingSettings) -> TrainingSettings:
    """The run as one site trains it: with its own privacy and its own number of threads.

    Raises:
        SettingsError: the run has settings that private training cannot follow.
    """
    values = run.model_dump(exclude_unset=True, exclude=_NOT_AGREED)
    values["threads"] = site.threads
    if site.privacy is not None:
        values["privacy"] = site.privacy.model_dump(exclude_unset=True)
    try:
        return TrainingSettings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(
            f"the run {site.run} cannot be followed with the [privacy] of site {site.name!r}: "
            f"{problems_of(error)}. Ask the others for another run file, or train without privacy"
        ) from error


def threshold_of(run: TrainingSettings) -> int:
    """How many sites must stay to the end of a round."""
    federation = run.federation_or_default()
    return federation.threshold or default_threshold(federation.sites)


def agreement(members: Members, run: TrainingSettings) -> bytes:
    """What all members must have alike, as JSON; its digest stands for the run."""
    settings = run.model_dump(mode="json", exclude=_NOT_AGREED)
    return canonical({"protocol": PROTOCOL, "members": members.digest(), "run": settings})


def differences(own: bytes, other: bytes) -> list[str]:
    """What differs between two agreements, for the eyes of an operator. `other` is not trusted."""
    try:
        theirs = dict(_leaves(json.loads(other)))
    except (ValueError, RecursionError):
        return ["the coordinator's agreement cannot be read"]
    ours = dict(_leaves(json.loads(own)))
    return [
        f"{key}: here {ours.get(key, 'nothing')}, coordinator {theirs.get(key, 'nothing')}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ][:_MOST_DIFFERENCES]


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        # Escaped and cut: nothing that arrives may steer a terminal or fill a screen.
        yield ascii(path)[1:-1][:100], json.dumps(value)[:100]


def _paths() -> tuple[str, ...]:
    return tuple(name for name, field in SiteFile.model_fields.items() if field.annotation is Path)
