"""What can be measured, by the name that results carry."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from benchmarks.case import Engine
from benchmarks.engines import compiled, crypten, crypten_stock, plaintext, spu

ENGINES: Mapping[str, Engine] = {
    "compiled-32": partial(compiled.measure, ring_bits=32),
    "compiled-64": partial(compiled.measure, ring_bits=64),
    "crypten": crypten.measure,
    "crypten-stock": crypten_stock.measure,
    "onnxruntime": plaintext.measure,
    "spu": spu.measure,
}
