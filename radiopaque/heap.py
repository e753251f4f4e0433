"""What becomes of the memory of a party's process, while it runs and when it crashes."""

from __future__ import annotations

import ctypes
import resource

# names and numbers of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_MMAP_THRESHOLD = 32 << 20
_LARGEST_TRIM_THRESHOLD = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Let the C library keep what a session frees for the next one, in one heap for all threads.

    Otherwise it goes back to the system, which has to clear every page that it hands out again; and
    threads that come and go leave heaps of their own behind. A party holds what its sessions take
    at most, either way, and up to 2 GiB between sessions. Call it before threads are started; it
    does nothing without glibc.
    """
    try:
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    except OSError:  # a statically linked interpreter
        return
    if set_option is not None:
        set_option(_M_ARENA_MAX, 1)
        set_option(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        set_option(_M_TRIM_THRESHOLD, _LARGEST_TRIM_THRESHOLD)


def leave_no_core_dump() -> None:
    """Have the kernel write no core file of this process, with the keys and images in its memory.

    A system that hands cores to a program (``|`` in ``kernel.core_pattern``) does so all the same;
    that is the operator's to turn off.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
