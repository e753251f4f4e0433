"""The decorator of the compiled loops.

Numba takes cached code for current while the file that defines the loop is unchanged. Loops also
have routines of other files compiled into them, so the name under which they are cached ends in a
digest of all of this package's files: after a change of any of them, everything is compiled anew.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from importlib.resources import files
from typing import Any

from numba import njit


def sources_digest() -> str:
    """64 bits, in hexadecimal digits, of the SHA-256 of this package's files."""
    digest = sha256()
    for file in sorted(files(__package__).iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            data = file.read_bytes()
            digest.update(f"{file.name} {len(data)}\n".encode() + data)
    return digest.hexdigest()[:16]


_DIGEST = sources_digest()


def compiled_loop(function: Callable[..., Any]) -> Any:
    """Numba's dispatcher of a loop that Python calls; it runs without the interpreter's lock."""
    function.__qualname__ += f"-{_DIGEST}"
    return njit(cache=True, nogil=True)(function)
