"""What a connection to PostgreSQL has to be: on this machine, or under TLS with a checked name.

Keys travel on it. libpq by itself takes plain text from a server that offers no TLS, and checks
nobody's certificate. Errors here quote nothing: a password may stand in the wrong place.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final

from radiopaque.errors import ConfigError

_URI: Final = re.compile(r"postgres(?:ql)?://([^@/?#]*@)?[^@]*")
_UNDER_TLS: Final = {
    "sslmode": "verify-full",
    "ssl_min_protocol_version": "TLSv1.3",
    "gssencmode": "disable",
}


def check_text(conninfo: str) -> None:
    """Refuse an address out of which libpq would take parts of a password for something else.

    Raises ConfigError.
    """
    if re.match("postgres(ql)?://", conninfo) and not _URI.fullmatch(conninfo):
        raise malformed()


def malformed() -> ConfigError:
    return ConfigError(
        "[ledger] postgresql is not what libpq takes; write host=… dbname=… user=… "
        "sslmode=verify-full, put values with spaces in single quotes, percent-encode what is "
        "special in postgresql://…, and leave passwords to ~/.pgpass"
    )


def protection(parameters: Mapping[str, str]) -> Mapping[str, str]:
    """What to connect with besides ``parameters``, those of libpq with its defaults.

    Raises ConfigError where the server may be on another machine, and not under ``verify-full``.
    """
    if parameters.get("service"):
        raise ConfigError(
            "[ledger] postgresql names a service; write its parameters themselves, which can then "
            "be checked: host=… dbname=… user=… sslmode=verify-full"
        )
    ports = parameters.get("port") or ""
    if not re.fullmatch(r"[0-9, ]*", ports):
        raise malformed()
    names = [parameters.get(key) or "" for key in ("host", "hostaddr")]
    if all(is_local(name) for one in names for name in one.split(",")):
        return {}
    if parameters.get("sslmode") != _UNDER_TLS["sslmode"]:
        raise ConfigError(
            "[ledger] postgresql may be on another machine, and keys of sessions travel there: add "
            "sslmode=verify-full, and sslrootcert=FILE with the authority that signed the server's "
            "certificate (without TLS: a Unix socket, host=/var/run/postgresql, or 127.0.0.1)"
        )
    return _UNDER_TLS


def is_local(name: str) -> bool:
    """Whether a name or an address of libpq is this machine: loopback, or a Unix socket."""
    if name in ("", "localhost") or name.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
