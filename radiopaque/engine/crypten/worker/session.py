"""One inference in the worker process, as either rank, or the trace that the compiler needs."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radiopaque.engine.crypten.encoding import decode_plan
from radiopaque.engine.crypten.pipe import Pipe, Record
from radiopaque.engine.crypten.plan import CryptenPlan
from radiopaque.engine.crypten.process import MAX_SETUP_BYTES, Job, Setup
from radiopaque.engine.crypten.tuples import (
    Halves,
    Request,
    data_owner_half,
    model_owner_half,
)
from radiopaque.engine.crypten.worker.communicator import TwoPartyCommunicator
from radiopaque.engine.crypten.worker.compatibility import crypten, install, torch
from radiopaque.engine.crypten.worker.interpreter import evaluate
from radiopaque.engine.crypten.worker.memory import bound
from radiopaque.engine.crypten.worker.provider import PlannedProvider
from radiopaque.engine.crypten.worker.sources import of_rank
from radiopaque.engine.crypten.worker.trace import trace
from radiopaque.graph.plan import Shape
from radiopaque.prg import KEY_BYTES, SecretKey, Streams

Floats = NDArray[np.float32]
_FLOAT_BYTES = 4


class PipeWire:
    """The other rank, through the party's pipe."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def send(self, number: int, data: memoryview) -> None:
        """Bytes to the other rank."""
        self._pipe.write(Record.SEND, number, data)

    def receive(self, number: int, size: int) -> bytearray:
        """So many bytes from the other rank."""
        self._pipe.begin(Record.RECEIVE, number, size)
        return self._pipe.pull(size)


def run(pipe: Pipe) -> None:
    """Do what the party's SETUP record says; one job, then the process ends."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    pipe.write(Record.READY)
    setup = Setup.decode(pipe.expect(Record.SETUP, MAX_SETUP_BYTES))
    plan = decode_plan(setup.plan)
    if setup.job is not Job.TRACE:
        bound(plan)  # somebody else's
    shapes = [shape for _, shape in plan.program.constant_shapes()]
    image = plan.program.input_shape
    with crypten.no_grad(), torch.no_grad():
        if setup.job is Job.TRACE:
            *constants, image_array = _arrays(pipe, [*shapes, image])
            report = trace(plan.program, image_array, constants)
            pipe.write(Record.RESULT, 0, json.dumps(report).encode())
        elif setup.job is Job.MODEL_OWNER:
            constants = _arrays(pipe, shapes)
            _serve(pipe, plan, setup, None, constants)
            pipe.write(Record.RESULT)
        else:
            (image_array,) = _arrays(pipe, [image])
            logits = _serve(pipe, plan, setup, image_array, None)
            pipe.write(Record.RESULT, 0, logits.astype("<f8").data.cast("B"))


def _arrays(pipe: Pipe, shapes: Sequence[Shape]) -> list[Floats]:
    """The ARRAY records that follow, float32, in this order and of these shapes."""
    arrays = []
    for shape in shapes:
        data = pipe.expect(Record.ARRAY, _FLOAT_BYTES * prod(shape))
        arrays.append(np.frombuffer(data, "<f4").reshape(shape))
    return arrays


def _serve(
    pipe: Pipe,
    plan: CryptenPlan,
    setup: Setup,
    image: Floats | None,
    constants: Sequence[Floats] | None,
) -> NDArray[np.float64]:
    """The inference at one rank; the outputs at rank 1, nothing at rank 0."""
    rank = int(setup.job)
    wire = PipeWire(pipe)
    common = _common_key(rank, wire)
    digest, session = setup.plan_digest, setup.session
    role = "data-owner" if rank else "model-owner"
    own = Streams(setup.key, digest, session, role)  # type: ignore[arg-type]
    provider = PlannedProvider(plan.requests, _drawer(pipe, own, rank))
    install(
        TwoPartyCommunicator(rank, wire),
        provider,
        of_rank(rank, own, Streams(common, digest, session, "both")),
    )
    inputs = encrypt(plan, image, constants)
    output = evaluate(plan.program, *inputs).get_plain_text(dst=1)
    provider.finish()
    setup.key.erase()
    common.erase()
    return np.empty(0) if output is None else np.asarray(output.numpy(), np.float64)


def encrypt(
    plan: CryptenPlan, image: Floats | None, constants: Sequence[Floats] | None
) -> tuple[Any, Mapping[int, Any]]:
    """Secret-share the image (from rank 1) and the constants (from rank 0); None: the other's."""
    program = plan.program
    known = iter(constants or ())

    def shared(array: Floats | None, shape: Shape, source: int) -> Any:
        tensor = torch.zeros(shape) if array is None else torch.from_numpy(array)
        return crypten.cryptensor(tensor, src=source)

    picture = shared(image, program.input_shape, 1)
    return picture, {
        number: shared(next(known, None), shape, 0) for number, shape in program.constant_shapes()
    }


def _common_key(rank: int, wire: PipeWire) -> SecretKey:
    """The key of the streams that both ranks know; the data owner draws it."""
    if rank == 0:
        return SecretKey(wire.receive(0, KEY_BYTES))
    key = secrets.token_bytes(KEY_BYTES)
    wire.send(0, memoryview(key))
    return SecretKey(key)


def _drawer(pipe: Pipe, own: Streams, rank: int) -> Callable[[int, Request], Halves]:
    """This rank's half of a tuple: streams alone, or streams and what was dealt."""

    def of_data_owner(number: int, request: Request) -> Halves:
        return data_owner_half(request, number, own)

    def of_model_owner(number: int, request: Request) -> Halves:
        pipe.begin(Record.MATERIAL, number, request.correction_bytes)
        return model_owner_half(request, number, own, pipe.pull(request.correction_bytes))

    return of_data_owner if rank else of_model_owner
