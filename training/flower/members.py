"""Who takes part: one file that every member keeps, with the public keys that each of them pins."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from training.errors import SettingsError
from training.secagg.context import KEY_BYTES, MAX_SITES

NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
Name = Annotated[str, Field(pattern=NAME)]
_FINGERPRINT_DIGITS = 40


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CoordinatorEntry(_Section):
    """Where the coordinator is reached, and the TLS certificate (PEM) that it must show."""

    address: str
    certificate: str

    @field_validator("address")
    @classmethod
    def _address(cls, value: str) -> str:
        split_address(value)
        return value

    @field_validator("certificate")
    @classmethod
    def _certificate(cls, value: str) -> str:
        certificate = x509.load_pem_x509_certificate(value.encode())
        return certificate.public_bytes(Encoding.PEM).decode().strip()


class SiteEntry(_Section):
    """Public keys of a site: Ed25519 (hexadecimal) for its messages, P-384 (DER, base64) for TLS.

    `identity` signs the messages of secure aggregation, `node` is Flower's node authentication.
    """

    identity: str
    node: str

    @field_validator("identity")
    @classmethod
    def _identity(cls, value: str) -> str:
        if len(bytes.fromhex(value)) != KEY_BYTES:
            raise ValueError(f"an identity has {2 * KEY_BYTES} hexadecimal digits")
        return value.lower()

    @field_validator("node")
    @classmethod
    def _node(cls, value: str) -> str:
        try:
            key = load_der_public_key(base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError, UnsupportedAlgorithm) as error:
            raise ValueError("a node key is a public key, DER in base64") from error
        if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
            raise ValueError("a node key lies on the curve P-384")
        return value


class Members(_Section):
    """The whole file."""

    version: Literal[1]
    name: Name
    coordinator: CoordinatorEntry
    sites: dict[Name, SiteEntry]

    @model_validator(mode="after")
    def _check(self) -> Members:
        if not 3 <= len(self.sites) <= MAX_SITES:
            raise ValueError(
                f"there are {len(self.sites)} sites; secure aggregation needs 3 to {MAX_SITES}"
            )
        for kind in ("identity", "node"):
            keys = [getattr(entry, kind) for entry in self.sites.values()]
            if len(set(keys)) != len(keys):
                raise ValueError(f"two sites have the same {kind} key; every site makes its own")
        return self

    def pins(self) -> dict[str, bytes]:
        """The Ed25519 keys by site."""
        return {name: bytes.fromhex(entry.identity) for name, entry in self.sites.items()}

    def node_keys(self) -> dict[str, bytes]:
        """The P-384 keys by site, DER."""
        return {name: base64.b64decode(entry.node) for name, entry in self.sites.items()}

    def digest(self) -> str:
        """SHA-256, hexadecimal, of everything in the file."""
        return hashlib.sha256(canonical(self.model_dump(mode="json"))).hexdigest()

    def fingerprint(self) -> str:
        """The first 160 bits of the digest, in groups that can be read out on the telephone."""
        digits = self.digest()[:_FINGERPRINT_DIGITS]
        return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def canonical(value: Mapping[str, Any]) -> bytes:
    """JSON that is the same wherever it is made."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`, or of `[IPv6]:port`.

    Raises:
        ValueError: it is neither.
    """
    host, separator, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    named = re.fullmatch(r"[0-9A-Fa-f:.]+" if bracketed else r"[0-9A-Za-z._-]+", host)
    if (
        not separator
        or named is None
        or not re.fullmatch("[0-9]{1,5}", port)
        or not (0 < int(port) < 65536)
    ):
        raise ValueError(f"{address!r} is not an address; write host:port, or [IPv6]:port")
    return host, int(port)


def load_members(path: Path) -> Members:
    """Read the file of members.

    Raises:
        SettingsError: it is missing, not TOML, or something in it is wrong.
    """
    return _validated(str(path), _read(path))


def assemble(name: str, paths: Iterable[Path]) -> Members:
    """Make the list out of what each member sent: files that `radiopaque federation keys` wrote.

    Raises:
        SettingsError: a file is not such a file, a site is named twice, or somebody is missing.
    """
    coordinators: list[Any] = []
    sites: dict[str, Any] = {}
    for path in paths:
        content = _read(path)
        if set(content) == {"coordinator"}:
            coordinators.append(content["coordinator"])
        elif set(content) == {"sites"} and isinstance(content["sites"], dict):
            for site, entry in content["sites"].items():
                if site in sites:
                    raise SettingsError(f"{path}: a site {site!r} is in the list already")
                sites[site] = entry
        else:
            raise SettingsError(
                f"{path} is not what a member sends: that is the file NAME.public.toml made by "
                "radiopaque federation keys"
            )
    if len(coordinators) != 1:
        raise SettingsError(
            f"{len(coordinators)} coordinators are given; name exactly one coordinator.public.toml"
        )
    content = {"version": 1, "name": name, "coordinator": coordinators[0], "sites": sites}
    return _validated("the list", content)


def to_toml(members: Members) -> str:
    """The file, as text."""
    return (
        "# The members of a federation. Everybody keeps the same file, and compares by telephone\n"
        "# the fingerprint that `radiopaque federation show` prints.\n"
        f'version = 1\nname = "{members.name}"\n\n'
        + coordinator_toml(members.coordinator.address, members.coordinator.certificate)
        + "".join(
            "\n" + site_toml(name, entry.identity, entry.node)
            for name, entry in sorted(members.sites.items())
        )
    )


def coordinator_toml(address: str, certificate: str) -> str:
    """The coordinator's part of the file."""
    return f'[coordinator]\naddress = "{address}"\ncertificate = """\n{certificate.strip()}\n"""\n'


def site_toml(name: str, identity: str, node: str) -> str:
    """A site's part of the file."""
    return f'[sites.{name}]\nidentity = "{identity}"\nnode = "{node}"\n'


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(f"there is no file {path}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read as TOML: {error}") from error


def _validated(source: str, content: dict[str, Any]) -> Members:
    try:
        return Members.model_validate(content)
    except ValidationError as error:
        raise SettingsError(f"{source}: {problems_of(error)}") from error


def problems_of(error: ValidationError) -> str:
    """All problems that validation found, in one line."""
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'file'}: {problem['msg']}"
        for problem in error.errors()
    )
