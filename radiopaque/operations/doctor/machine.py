"""Checks of what lies on this machine: certificates, keys, folders, disk, compiled kernels."""

from __future__ import annotations

import os
import resource
import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from radiopaque.certificates import Role
from radiopaque.config import TlsConfig
from radiopaque.operations.doctor.findings import Finding, fail, fine, warn

_RENEW: Final = timedelta(days=30)
_RENEW_AUTHORITY: Final = timedelta(days=90)
_LEAST_FREE: Final = 1 << 30
_MOST_FILES: Final = 200_000
_LEAST_OPEN: Final = 4096


def certificates(tls: TlsConfig, role: Role) -> Iterator[Finding]:
    """The party's own pair, its authorities and their ends. Raises what loading them raises."""
    identity = tls.load(role)
    yield fine("certificate", f"{identity.role} {identity.name!r}, issued by a trusted authority")
    yield ends("certificate end", identity.not_after, _RENEW, "issue a new one; no restart needed")
    for authority in x509.load_pem_x509_certificates(identity.authorities):
        name = authority.subject.rfc4514_string()
        yield ends(
            f"authority end ({name})",
            authority.not_valid_after_utc,
            _RENEW_AUTHORITY,
            "plan its replacement: add the new authority to `ca` of all parties first",
        )
    yield from _key(tls.key)
    if tls.crl is None:
        yield warn("revocation", "no revocation list is configured", "set `crl` in [tls]")
    else:
        yield fine("revocation", f"lists of {tls.crl} are in force")


def ends(check: str, end: datetime, notice: timedelta, remedy: str) -> Finding:
    """How long something still holds, with ``notice`` to renew it."""
    left = end - datetime.now(UTC)
    text = f"ends on {end:%Y-%m-%d}, in {left.days} days"
    if left <= timedelta(0):
        return fail(check, f"ended on {end:%Y-%m-%d %H:%M} UTC", remedy)
    return warn(check, text, remedy) if left < notice else fine(check, text)


def _key(key: Path) -> Iterator[Finding]:
    """Its mode was checked when it was loaded; here its owner and its folder."""
    found, folder = key.stat(), key.parent.stat()
    if found.st_uid != os.getuid():
        yield warn(
            "key",
            f"{key} belongs to user {found.st_uid}, this is user {os.getuid()}",
            "run the doctor as the party's user, and let the key be its own",
        )
    elif folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield fail(
            "key", f"others may replace files in {key.parent}", f"run: chmod go-w {key.parent}"
        )
    else:
        mode = stat.S_IMODE(found.st_mode)
        yield fine("key", f"{key.name} is readable by its owner alone (mode {mode:o})")


def store(path: Path) -> Iterator[Finding]:
    """The store and everything in it must be closed to other users."""
    if not path.exists():
        yield warn("store", f"{path} does not exist", "it is made when the party is first used")
        return
    opened: list[Path] = []
    count = 0
    for folder, names, files in os.walk(path):
        for name in (".", *names, *files):
            one = Path(folder) / name
            count += 1
            try:
                if one.lstat().st_mode & 0o077 and not one.is_symlink():
                    opened.append(one)
            except FileNotFoundError:  # sessions end while this looks
                continue
        if count > _MOST_FILES:
            break
    if opened:
        yield fail(
            "store",
            f"{len(opened)} of {count} entries are open to other users, the first is {opened[0]}",
            f"run: chmod -R go-rwx {path}",
        )
    else:
        yield fine("store", f"{path} and its {count} entries are closed to other users")


def disk(path: Path, wanted: int) -> Iterator[Finding]:
    """Free space for a store that may grow by ``wanted`` bytes."""
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / 1e9:.1f} GB free"
    if free < _LEAST_FREE:
        yield fail("disk", text, "free some space: a ledger that cannot be written stops the party")
    elif free < wanted:
        yield warn(
            "disk",
            f"{text}, prepared material may still grow by {wanted / 1e9:.1f} GB",
            "free some space, or lower material_bytes in [limits]",
        )
    else:
        yield fine("disk", text)


def open_files() -> Iterator[Finding]:
    """What a server that is started from here may open: connections take half of it at most."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        yield fine("open files", "as many as the system has")
    elif most < _LEAST_OPEN:
        yield warn(
            "open files",
            f"a process of this user may have {most} open; connections take half of them at most",
            "raise the hard limit of the party's service: LimitNOFILE, or ulimit -Hn",
        )
    else:
        yield fine("open files", f"a process of this user may have {most} open")


def kernels() -> Iterator[Finding]:
    """Compiled loops are kept on disk, else every start compiles them for some 20 seconds."""
    from radiopaque.kernels import bits
    from radiopaque.kernels.compiled import sources_digest

    dispatcher = next(one for one in vars(bits).values() if hasattr(one, "_cache"))
    folder = Path(dispatcher._cache.cache_path)
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        yield warn(
            "kernels",
            f"the folder of compiled kernels, {folder}, cannot be written",
            "set NUMBA_CACHE_DIR to a folder of the party's user",
        )
        return
    count = len(list(folder.glob(f"*{sources_digest()}*.nbc")))
    if count:
        yield fine("kernels", f"{count} kernels of this version are compiled, in {folder}")
    else:
        yield warn(
            "kernels",
            f"no kernel of this version is compiled in {folder}",
            "the first start compiles them, which takes some 20 seconds",
        )
