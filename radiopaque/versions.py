"""Which versions of two parties work together, and how a caller and a server find out.

Parties of one protocol version work together, whatever their releases. Parties of two do not: they
would derive other streams, and compute something wrong without a sign of it. So every call states
the caller's protocol version and release as gRPC metadata, every reply begins with the server's,
and both sides compare before they use what came with it.

A party of release 0.1.0 states nothing; it counts as older than all others.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import radiopaque
from radiopaque.errors import VersionError
from radiopaque.prg import PROTOCOL_VERSION

PROTOCOL: Final = int(PROTOCOL_VERSION.rpartition(b"/")[2])
"""The number in the protocol version that all streams are derived with."""

_PROTOCOL_KEY: Final = "radiopaque-protocol"
_RELEASE_KEY: Final = "radiopaque-release"
_TIME_KEY: Final = "radiopaque-time"
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}")
_RELEASE: Final = re.compile(r"[0-9A-Za-z.+-]{1,50}")
_SECONDS: Final = re.compile(r"[0-9]{1,12}\.[0-9]{3}")

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Stated:
    """What a peer's metadata say; None where they say it not at all, twice or malformed.

    ``seconds`` is the peer's clock when it wrote them, since 1970.
    """

    protocol: int | None
    release: str | None
    seconds: float | None


def own() -> tuple[tuple[str, str], ...]:
    """What this party states with a call or a reply."""
    return (
        (_PROTOCOL_KEY, str(PROTOCOL)),
        (_RELEASE_KEY, radiopaque.__version__),
        (_TIME_KEY, f"{time.time():.3f}"),
    )


def stated(metadata: Metadata | None) -> Stated:
    """What a peer states. Other metadata do not matter."""
    found = list(metadata or ())
    protocol = _single(found, _PROTOCOL_KEY, _NUMBER)
    seconds = _single(found, _TIME_KEY, _SECONDS)
    return Stated(
        None if protocol is None else int(protocol),
        _single(found, _RELEASE_KEY, _RELEASE),
        None if seconds is None else float(seconds),
    )


def check(peer: Stated, peer_role: str, own_role: str) -> None:
    """Compare a peer's protocol version with this party's.

    Raises VersionError, which says who has to upgrade.
    """
    if peer.protocol == PROTOCOL:
        return
    peer_name, own_name = (role.replace("-", " ") for role in (peer_role, own_role))
    release = f"release {peer.release}" if peer.release else "an old release"
    theirs = "no protocol version" if peer.protocol is None else f"protocol {peer.protocol}"
    older = peer_name if (peer.protocol or 0) < PROTOCOL else own_name
    raise VersionError(
        f"the {peer_name} states {theirs} ({release}), the {own_name} speaks protocol {PROTOCOL} "
        f"(release {radiopaque.__version__}); upgrade the {older}"
    )


def _single(metadata: list[tuple[str, str | bytes]], key: str, form: re.Pattern[str]) -> str | None:
    values = [value for name, value in metadata if name == key]
    if len(values) != 1 or not isinstance(values[0], str) or not form.fullmatch(values[0]):
        return None
    return values[0]
