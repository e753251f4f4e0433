"""The three halves as three threads and as three processes that pass nothing but frames."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radiopaque.engine.data_owner import DataOwnerRun
from radiopaque.engine.material import RegionReader
from radiopaque.errors import MessageOrderError, SessionStateError, TensorError
from radiopaque.transport.memory import connect
from radiopaque.wire.frames import Kind
from tests.protocol.parties import DEADLINE_SECONDS, Public, run_threads
from tests.vectors.forms import load
from tests.vectors.production import FixedSession, Recorder, stored_result

ROOT = Path(__file__).parents[2]
NETWORKS = {case["name"]: case for case in load("network")}
ROLES = ("crypto-provider", "model-owner", "data-owner")


def public_part(case: dict[str, Any]) -> dict[str, str]:
    """What every party knows."""
    return {
        "plan_bytes": case["outputs"]["plan_bytes"],
        "artefact": case["inputs"]["keys"]["artefact"],
        "session": case["inputs"]["keys"]["session"],
    }


def private_part(case: dict[str, Any], role: str) -> dict[str, Any]:
    """What one party knows besides."""
    inputs, keys = case["inputs"], case["inputs"]["keys"]
    if role == "model-owner":
        own = {name: keys[name] for name in ("key_b", "key_o")}
        return own | {"weights": inputs["weights"], "constants": inputs["constants"]}
    if role == "data-owner":
        return {"key_d": keys["key_d"], "image": inputs["image"]}
    return {}


@pytest.mark.parametrize("name", NETWORKS)
def test_three_threads_reproduce_the_vector(name: str) -> None:
    case = NETWORKS[name]
    fixed = FixedSession(case["inputs"])
    public = Public(*(bytes.fromhex(value) for value in public_part(case).values()))
    keys = {n: bytes.fromhex(case["inputs"]["keys"][n]) for n in ("key_b", "key_d", "key_o")}
    result = run_threads(public, fixed.weights, fixed.images, keys)
    assert result == case["outputs"]["result"]


def test_fresh_keys_change_every_message_but_not_the_result() -> None:
    """Only the rounding coins move the result; nothing that is sent is the same twice."""
    case = NETWORKS["network_32"]
    sizes = {name: len(value) // 2 for name, value in case["inputs"]["keys"].items()}
    results, transcripts = [], []
    for _ in range(2):
        keys = {name: secrets.token_hex(size) for name, size in sizes.items()}
        fixed = FixedSession(case["inputs"] | {"keys": keys})
        result, channel = fixed.infer()
        frames = [*channel.sent, *channel.received, *fixed.correction_frames()]
        results.append(np.array(result).reshape(fixed.plan.output_step.shape))
        transcripts.append([bytes(frame.payload) for frame in frames])
    for one, other in zip(*transcripts, strict=True):
        assert len(one) == len(other)
        if len(one) >= 12:  # shorter ones may agree by chance
            assert one != other
    # an activation moves by one unit at most, the maximum of several no further, and each of the
    # two results is half an output unit off
    (last,) = (gate for gate, shape in fixed.plan.weight_shapes() if len(shape) == 2)
    activations = np.abs(fixed.weights.linear[last].view(np.int32)).sum(axis=0)
    unit = 1 << fixed.plan.output_step.gate.position  # type: ignore[union-attr]
    assert (np.abs(results[0] - results[1]) <= activations + unit).all()


def test_three_processes_reproduce_the_vector() -> None:
    case = NETWORKS["network_32"]
    data_provider, provider_data = socket.socketpair()
    model_provider, provider_model = socket.socketpair()
    data_model, model_data = socket.socketpair()
    ends = {
        "crypto-provider": (provider_data, provider_model),
        "model-owner": (model_provider, model_data),
        "data-owner": (data_provider, data_model),
    }
    running = {}
    for role in ROLES:
        descriptors = [end.fileno() for end in ends[role]]
        running[role] = subprocess.Popen(
            [sys.executable, "-m", "tests.protocol.party_process", role, *map(str, descriptors)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=descriptors,
        )
        for end in ends[role]:
            end.close()  # the process alone holds it, so that its death is seen by its peers
    try:
        for role, process in running.items():
            assert process.stdin is not None
            process.stdin.write(json.dumps(public_part(case) | private_part(case, role)))
            process.stdin.close()
            process.stdin = None
        printed = {role: p.communicate(timeout=DEADLINE_SECONDS) for role, p in running.items()}
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    assert {role: p.returncode for role, p in running.items()} == dict.fromkeys(ROLES, 0), printed
    assert json.loads(printed["data-owner"][0])["result"] == case["outputs"]["result"]
    assert printed["crypto-provider"][0] == printed["model-owner"][0] == ""


def test_keys_are_erased_and_sessions_run_once() -> None:
    case = NETWORKS["network_32"]
    fixed = FixedSession(case["inputs"])
    message = fixed.offline_message()
    own = fixed.own_key()
    serving = fixed.serving()
    asking = DataOwnerRun(fixed.plan, own, message.output_mask)
    with pytest.raises(SessionStateError, match="erased"):
        own.key_d.reveal()
    first = connect(serving.run)
    assert stored_result(asking, fixed.images, first) == case["outputs"]["result"]
    again = Recorder(connect(serving.run))
    with pytest.raises(SessionStateError, match="already run"):
        asking.infer(fixed.images, again)
    assert again.sent == []
    with pytest.raises(SessionStateError, match="already run"):
        again.receive()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda x: x[:1], "shape"),
        (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 7, np.nan, x), "NaN"),
        (lambda x: x * 2, "compiled for"),
    ],
)
def test_a_bad_tensor_is_refused_before_anything_is_sent(spoil: Any, says: str) -> None:
    """And the session stays usable: nothing of it was spent."""
    case = NETWORKS["network_32"]
    fixed = FixedSession(case["inputs"])
    asking = fixed.asking()
    channel = Recorder(connect(fixed.serving().run))
    with pytest.raises(TensorError, match=says):
        asking.infer(spoil(fixed.images), channel)
    assert channel.sent == []
    assert stored_result(asking, fixed.images, channel) == case["outputs"]["result"]


def test_offline_message_and_corrections_must_be_complete() -> None:
    fixed = FixedSession(NETWORKS["network_32"]["inputs"])
    for kind, frames in (
        (Kind.OFFLINE, list(fixed.offline_message().frames())),
        (Kind.CORRECTION, fixed.correction_frames()),
    ):
        assert len(frames) > 1
        with pytest.raises(MessageOrderError, match="ended before"):
            reader_of(fixed, kind, frames[:-1])
        with pytest.raises(MessageOrderError, match="after the message was complete"):
            reader_of(fixed, kind, [*frames, frames[-1]])
        with pytest.raises(MessageOrderError, match="expected"):
            reader_of(fixed, kind, frames[::-1])


def reader_of(fixed: FixedSession, kind: Kind, frames: list[Any]) -> None:
    """Read frames as the model owner does."""
    reader = RegionReader(fixed.plan, fixed.session, kind)
    for frame in frames:
        reader.accept(frame)
    reader.finish()
