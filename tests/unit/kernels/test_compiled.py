"""What is compiled and cached is that of the sources as they are, for the features in use."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

from radiopaque.kernels import bits, comparison, compiled, linear_loops, window_loops

PACKAGE = Path(compiled.__file__).parents[1]
X86 = platform.machine().lower() in ("x86_64", "amd64")


def run(script: str, **environment: str) -> str:
    """What the script prints, in a process with these variables as well."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_change_of_any_file_changes_the_digest(tmp_path, monkeypatch):
    copy = tmp_path / "kernels"
    shutil.copytree(PACKAGE / "kernels", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(compiled, "files", lambda _: copy)
    digests = [compiled.sources_digest()]
    names = sorted(path.name for path in copy.glob("*.py"))
    assert {"tiles.py", "window_loops.py", "linear_loops.py"} < set(names)
    for name in names:
        with (copy / name).open("a") as file:
            file.write("\n")
        digests.append(compiled.sources_digest())
    (copy / "tiles.py").rename(copy / "others.py")
    digests.append(compiled.sources_digest())
    assert len(set(digests)) == len(digests)
    (copy / "notes.txt").write_text("no source")
    assert compiled.sources_digest() == digests[-1]


@pytest.mark.parametrize("module", [bits, comparison, linear_loops, window_loops])
def test_everything_cached_goes_by_the_digest(module):
    source = Path(module.__file__).read_text()
    assert "cache=True" not in source
    names = [
        value.py_func.__qualname__
        for value in vars(module).values()
        if isinstance(value, Dispatcher) and value.__module__ == module.__name__
    ]
    cached = [name for name in names if name.endswith(f"-{compiled.sources_digest()}")]
    assert len(cached) == source.count("@compiled_loop\n") > 0


@pytest.mark.soak
def test_a_changed_tile_is_compiled_anew(tmp_path):
    """The tile's file is not that of the loop that it is compiled into."""
    copy = tmp_path / "radiopaque"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import numpy as np, radiopaque\n"
        "from radiopaque.graph.plan import Convolution\n"
        "from radiopaque.kernels.convolution import PackedConvolution\n"
        f"assert radiopaque.__file__.startswith({str(tmp_path)!r})\n"
        "x = np.full((1, 1, 1, 1), 5, np.uint32)\n"
        "print(PackedConvolution(x + np.uint32(2), Convolution(1, (1, 1)))(x))"
    )
    cache = str(tmp_path / "cache")
    assert run(script, NUMBA_CACHE_DIR=cache) == "[[[[35]]]]"
    tiles = copy / "kernels" / "tiles.py"
    product = "product = builder.mul(factor"
    assert tiles.read_text().count(product) == 1
    tiles.write_text(tiles.read_text().replace(product, "product = builder.add(factor"))
    assert run(script, NUMBA_CACHE_DIR=cache) == "[[[[12]]]]"


FEATURES = (
    "from radiopaque.kernels import tiles; print(tiles.VECTOR_BYTES, *sorted(tiles.FEATURES))"
)


@pytest.mark.skipif(not X86, reason="AVX is of x86")
@pytest.mark.parametrize(
    ("settings", "vector_bytes"),
    [
        ({"NUMBA_ENABLE_AVX": "0"}, 16),
        ({"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse,+sse2,-avx2"}, 16),
        ({"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+sse2,+avx,+avx2"}, 32),
    ],
    ids=["AVX off", "SSE2", "AVX2"],
)
def test_features_are_those_that_numba_compiles_for(settings, vector_bytes):
    width, *features = run(FEATURES, **settings).split()
    assert int(width) == vector_bytes
    assert "sse2" in features
    assert any(name.startswith("avx") for name in features) == (vector_bytes > 16)


@pytest.mark.soak
@pytest.mark.skipif(not X86, reason="AVX is of x86")
def test_kernels_compile_where_numba_leaves_avx_out(tmp_path):
    script = (
        "import numpy as np\n"
        "from radiopaque.kernels.convolution import PackedMatrix, warm_up\n"
        "warm_up(np.uint32)\n"
        "x = np.arange(12, dtype=np.uint32).reshape(3, 4)\n"
        "assert (PackedMatrix(x.T.copy())(x) == x @ x.T).all()\n"
        "print('exact')"
    )
    assert run(script, NUMBA_ENABLE_AVX="0", NUMBA_CACHE_DIR=str(tmp_path)) == "exact"
