"""Dealing for CrypTen at the crypto provider: nobody who is gone keeps it busy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crypto_provider.service import CryptoProvider
from radiopaque.certificates import PeerIdentity, Role
from radiopaque.config import MODEL_BYTES
from radiopaque.engine.crypten import dealing
from radiopaque.engine.crypten.encoding import encode_plan
from radiopaque.engine.crypten.plan import CryptenPlan
from radiopaque.engine.crypten.program import Operation, Program
from radiopaque.engine.crypten.tuples import Request, TupleKind
from radiopaque.errors import ConnectionLostError
from radiopaque.graph.plan import plan_digest
from radiopaque.kernels.matmul import PackedMatrix
from radiopaque.ledger import State
from radiopaque.transport.admission import Call
from radiopaque.wire.v1 import services_pb2 as pb

SESSION, ARTEFACT = bytes(range(16)), bytes(16)
PROGRAM = Program((Operation("input", (), (1, 3)), Operation("relu", (0,), (1, 3))))
REQUESTS = (Request(TupleKind.SQUARE, (3,)), Request(TupleKind.MATRIX_PRODUCT, (100, 2), (2, 2)))
VENDOR = PeerIdentity(Role.MODEL_OWNER, "vendor")
CLINIC = PeerIdentity(Role.DATA_OWNER, "clinic")


def test_a_call_that_ends_while_a_tuple_is_dealt_ends_the_dealing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the tuple, and the session is burnt."""
    plan = encode_plan(CryptenPlan("model", "1", PROGRAM, REQUESTS))
    digest = plan_digest(plan)
    call = Call(VENDOR, 10.0)
    multiply, multiplied = PackedMatrix.__call__, []

    def multiplying(matrix: Any, *arguments: Any) -> Any:
        multiplied.append(matrix)
        if len(multiplied) == 3:
            call.cancellation.cancel()
        return multiply(matrix, *arguments)

    provider = CryptoProvider(
        tmp_path,
        most_models=1,
        model_bytes=MODEL_BYTES,
        most_reserved=1,
        most_reserved_per_clinic=1,
        reservation_seconds=60.0,
        concurrent_deals=1,
    )
    try:
        registered = pb.RegisterRequest(
            plan=plan, plan_digest=digest, artefact=ARTEFACT, key_b=bytes(range(32))
        )
        provider.register(registered, Call(VENDOR, 10.0))
        reserved = pb.ReserveRequest(
            session=SESSION,
            artefact=ARTEFACT,
            plan_digest=digest,
            key_d=bytes(range(32)),
            epoch=bytes(16),
        )
        provider.reserve(reserved, Call(CLINIC, 10.0))
        monkeypatch.setattr(dealing, "PIECE", 4)
        monkeypatch.setattr(PackedMatrix, "__call__", multiplying)
        asked = pb.DealRequest(session=SESSION, artefact=ARTEFACT, key_o=bytes(range(32)))
        frames = provider.deal(asked, call)
        assert next(frames).gate == 0
        with pytest.raises(ConnectionLostError):
            next(frames)
        assert len(multiplied) == 3
        assert provider.stock().sessions == {State.RESERVED: 0, State.DEALT: 0}
    finally:
        provider.close()
