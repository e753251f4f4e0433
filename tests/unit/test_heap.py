"""What is freed stays in the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROBE = """
import ctypes
import resource
import threading
import numpy as np
from radiopaque.heap import keep_freed_memory
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of one size
{call}

def session():
    blocks = [np.ones(3 << 20, np.uint8) for _ in range(40)]
    del blocks

for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=session)
    thread.start()
    thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str) -> int:
    """Pages that the third of three sessions, in a thread of its own, has to ask the system for.

    Each session takes 120 MB, 30,000 pages.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(call=call)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_what_a_session_frees_serves_the_next_one() -> None:
    assert faults("") > 10_000
    assert faults("keep_freed_memory()") < 5_000
