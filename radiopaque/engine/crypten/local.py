"""All three parties of a CrypTen inference on one machine, without a network: for tests.

Two worker processes, the dealer in this one, and the same messages and counters as over gRPC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radiopaque.engine.artefact import ArtefactId
from radiopaque.engine.crypten.compile import CompiledCrypten
from radiopaque.engine.crypten.dealing import deal
from radiopaque.engine.crypten.encoding import encode_plan
from radiopaque.engine.crypten.process import Worker
from radiopaque.engine.crypten.runs import DataOwnerCrypten, ModelOwnerCrypten
from radiopaque.engine.material import RegionReader, regions
from radiopaque.graph.plan import plan_digest
from radiopaque.prg import SecretKey, new_id
from radiopaque.transport.channel import Channel, Counters
from radiopaque.transport.memory import connect
from radiopaque.wire.frames import Kind


@dataclass(frozen=True)
class LocalResult:
    """Outputs, in the shape of the program's result, and the clinic's traffic."""

    outputs: NDArray[np.float64] = field(repr=False)
    counters: Counters


def infer(
    compiled: CompiledCrypten, images: NDArray[np.floating], seconds: float = 600.0
) -> LocalResult:
    """One inference from dealing to the decoded outputs."""
    plan = compiled.plan
    encoded = encode_plan(plan)
    digest, session = plan_digest(encoded), new_id()
    key_d, key_o = SecretKey.generate(), SecretKey.generate()
    dealer_keys = SecretKey(key_d.reveal()), SecretKey(key_o.reveal())
    frames = deal(plan, ArtefactId(digest, new_id()), session, *dealer_keys)
    reader = RegionReader(plan, session, Kind.CORRECTION)
    dealt: Any = regions(plan, Kind.CORRECTION, (reader.accept(frame) for frame in frames))
    with Worker(seconds) as owner, Worker(seconds) as clinic:
        owner.wait_ready()
        clinic.wait_ready()
        numbers = [number for number, _ in plan.program.constant_shapes()]
        constants = [compiled.constants[number] for number in numbers]
        serving = ModelOwnerCrypten(owner, encoded, digest, constants, session, key_o)
        asking = DataOwnerCrypten(clinic, plan, encoded, digest, session, key_d)
        channel: Channel = connect(lambda other: serving.run(other, dealt), seconds)
        try:
            outputs = asking.infer(images, channel)
        finally:
            channel.close()
    return LocalResult(outputs, channel.counters)
