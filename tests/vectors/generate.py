"""Writes the known-answer vectors from the production code: ``python -m tests.vectors.generate``.

Every file is a function of fixed keys and names alone, so that running this again without a change
of the protocol changes nothing. A difference is a change of the protocol: it needs a new protocol
version, and both implementations (radiopaque and tests/reference) must agree on it.

========================  ==========================================================================
``streams.json``          every role and quantity; lengths around the borders of blocks and pieces
``bits.json``             packed values of many widths; strings that must not be unpacked
``frames.json``           frames of every kind; bytes that are no frame
``plans.json``            encoded plans; bytes that are no plan, with a piece of the error's text
``messages.json``         one frame of a session changed, and the error that ends the session
``gate_*.json``           each gate, k = 32 and 64: plan, keys, weights, image; then the plan's
                          bytes and digest, F, corrections, offline message, online payloads and
                          result
``network.json``          convolution with ReLU, max-pooling by tournament, fully connected layer
========================  ==========================================================================

Values of weights, constants, images and results are signed stored integers in row-major order; byte
strings are in hexadecimal; maps are by gate. In what is bad, ``error`` is a class of
:mod:`radiopaque.errors`, and the name says the defect.
"""

from __future__ import annotations

from typing import Any

from tests.vectors import basics
from tests.vectors.cases import FILES
from tests.vectors.forms import FOLDER, dump
from tests.vectors.messages import messages
from tests.vectors.plan_forms import plans
from tests.vectors.production import produce


def contents() -> dict[str, Any]:
    """Every file's content by name."""
    files: dict[str, Any] = {
        "streams": basics.streams(),
        "bits": basics.packings(),
        "frames": basics.frames(),
        "plans": plans(),
        "messages": messages(),
    }
    for name, make in FILES.items():
        files[name] = [case | {"outputs": produce(case["inputs"])} for case in make()]
    return files


def main() -> None:
    """Write all files."""
    for name, content in contents().items():
        path = FOLDER / f"{name}.json"
        path.write_text(dump(content) + "\n")
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
