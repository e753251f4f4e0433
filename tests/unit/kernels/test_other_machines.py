"""The ring kernels as they are compiled for machines that can do less than this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from llvmlite import binding

SSE2 = ("64bit", "sse", "sse2")
AVX2 = (*SSE2, "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "fma", "bmi", "bmi2")
AVX512 = (*AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
MACHINES = {
    "SSE2": ("x86-64", SSE2, 16),
    "AVX2": ("haswell", AVX2, 32),
    "AVX-512 without VNNI": ("skylake-avx512", AVX512, 64),
}


@pytest.mark.soak
@pytest.mark.parametrize("machine", MACHINES)
def test_the_kernels_are_exact_on(machine, tmp_path):
    name, features, vector_bytes = MACHINES[machine]
    host = binding.get_host_cpu_features()
    if not all(host.get(feature) for feature in features):
        pytest.skip(f"this machine cannot do {machine}")
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": name,
        "NUMBA_CPU_FEATURES": ",".join(f"+{feature}" for feature in features),
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    script = (
        "import sys, pytest; from radiopaque.kernels import tiles; "
        f"assert tiles.VECTOR_BYTES == {vector_bytes} and tiles.HAS_LIMBS; "
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    folder = Path(__file__).parent
    files = [str(folder / file) for file in ("test_convolution.py", "test_limbs.py")]
    subprocess.run(
        [sys.executable, "-c", script, "-q", "-x", "-p", "no:cacheprovider", *files],
        env=environment,
        cwd=folder.parents[2],
        check=True,
    )
