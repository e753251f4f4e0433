"""Inner loops, exact in Z_2^32 and Z_2^64, compiled with Numba and cached on disk.

The compiled code is cached beside the package, or in the user's cache folder where the package is
read-only. A service account may have neither; then it is cached for the life of the process, in a
folder of its own: cached code is executed, so it must not lie where others can write. Setting
``NUMBA_CACHE_DIR`` to a folder of the service avoids compiling at every start.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from radiopaque.errors import ConfigError


def _provide_cache() -> None:
    """Raises ConfigError where ``NUMBA_CACHE_DIR`` is a folder that others can write to."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given:
        if not _ours(Path(given)):
            raise ConfigError(
                f"others may write to {given} (NUMBA_CACHE_DIR), and what lies there is executed; "
                "give the party a folder of its own: chmod 700"
            )
        return
    # whoever may write there may change the package itself
    if os.access(Path(__file__).parent, os.W_OK):
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~").expanduser() / ".cache")
    nearest = next(folder for folder in (home, *home.parents) if folder.exists())
    if os.access(nearest, os.W_OK) and _ours(home / "numba"):
        return
    folder = tempfile.mkdtemp(prefix="radiopaque-kernels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = folder


def _ours(folder: Path) -> bool:
    """Whether nobody but this user and root can write to a folder, or will when it is made."""
    try:
        status = next(one for one in (folder, *folder.parents) if one.exists()).stat()
    except OSError:
        return False
    group_is_ours = status.st_gid == status.st_uid  # a group of the user's own, as Debian has them
    writable = status.st_mode & (0o002 if group_is_ours else 0o022)
    return status.st_uid in (os.geteuid(), 0) and not writable


_provide_cache()
