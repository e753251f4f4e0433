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


def _provide_cache() -> None:
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~").expanduser() / ".cache")
    nearest = next(folder for folder in (home, *home.parents) if folder.exists())
    if os.access(Path(__file__).parent, os.W_OK) or os.access(nearest, os.W_OK):
        return
    folder = tempfile.mkdtemp(prefix="radiopaque-kernels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = folder


_provide_cache()
