"""The rules of keys and randomness, each with a breach that its check notices.

Rules 8 and 11 of docs/protocol.md, section 9.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from crypto_provider.service import CryptoProvider
from radiopaque.certificates import Role
from radiopaque.engine import artefact as artefacts
from radiopaque.engine import crypto_provider, data_owner, model_owner
from radiopaque.errors import SessionStateError
from radiopaque.prg import SecretKey
from radiopaque.wire.frames import Frame
from radiopaque.wire.v1 import services_pb2
from tests.protocol import sessions
from tests.protocol.network import images, small_plan, small_weights
from tests.protocol.sessions import run_session

ROOT = Path(__file__).parents[2]
NOTICED = (AssertionError, pytest.fail.Exception)
PLAN = small_plan()


KEYS = {
    ("Register", "RegisterRequest", "key_b"),
    ("Reserve", "ReserveRequest", "key_d"),
    ("Deal", "DealRequest", "key_o"),
}
TO_CRYPTO_PROVIDER = {
    "RegisterRequest": {"plan", "plan_digest", "artefact", "key_b"},
    "ReserveRequest": {"session", "plan_digest", "artefact", "key_d", "epoch"},
    "DealRequest": {"session", "artefact", "key_o"},
}


def check_keys_only_go_to_the_crypto_provider(file: FileDescriptorProto) -> None:
    """Keys travel in its requests alone, and nothing else that is secret does."""
    messages = {message.name: message for message in file.message_type}
    services = {service.name: service for service in file.service}
    dealer = {
        (method.name, method.input_type.split(".")[-1], method.output_type.split(".")[-1])
        for method in services["CryptoProvider"].method
    }
    assert {(method, request) for method, request, _ in dealer} == {(m, r) for m, r, _ in KEYS}
    keys = {
        (message.name, field.name)
        for message in file.message_type
        for field in message.field
        if "key" in field.name or "secret" in field.name
    }
    assert keys == {(request, field) for _, request, field in KEYS}
    for request, expected in TO_CRYPTO_PROVIDER.items():
        assert {field.name for field in messages[request].field} == expected
    replies = {reply: {field.name for field in messages[reply].field} for _, _, reply in dealer}
    del replies["Frame"]
    assert replies == {"RegisterReply": set(), "ReserveReply": {"mark"}}


def test_keys_travel_to_the_crypto_provider_alone() -> None:
    def descriptor() -> FileDescriptorProto:
        return FileDescriptorProto.FromString(services_pb2.DESCRIPTOR.serialized_pb)

    check_keys_only_go_to_the_crypto_provider(descriptor())
    for message, name in (
        ("ReserveReply", "key_d"),
        ("PrepareReply", "key_o"),
        ("FetchPlanReply", "key_b"),
        ("DealRequest", "weights"),
        ("RegisterReply", "seed"),
    ):
        changed = descriptor()
        target = next(m for m in changed.message_type if m.name == message)
        target.field.add(name=name, number=99, type=FieldDescriptorProto.TYPE_BYTES)
        with pytest.raises(NOTICED):
            check_keys_only_go_to_the_crypto_provider(changed)


def check_draws_nothing(deal: Callable[[crypto_provider.DealInputs], Sequence[Frame]]) -> None:
    """Dealing is a function of the keys that the others made."""
    key = artefacts.ArtefactKey.generate(bytes(32))
    maps = artefacts.weight_mask_maps(PLAN, key)
    keys = SecretKey.generate(), SecretKey.generate()
    inputs = crypto_provider.DealInputs(PLAN, key.id, bytes(16), *keys, maps)

    def refuse(*_: object) -> bytes:
        raise AssertionError("the crypto provider drew randomness")

    with pytest.MonkeyPatch.context() as monkeypatch:
        for source in ("secrets.token_bytes", "secrets.randbits", "os.urandom", "random.random"):
            monkeypatch.setattr(source, refuse)
        monkeypatch.setattr(np.random, "default_rng", refuse)
        first = list(deal(inputs))
        assert first == list(deal(inputs))


def test_the_crypto_provider_draws_no_key() -> None:
    check_draws_nothing(lambda inputs: list(crypto_provider.deal(inputs)))

    def with_own_key(inputs: crypto_provider.DealInputs) -> list[Frame]:
        return list(crypto_provider.deal(replace(inputs, key_o=SecretKey.generate())))

    with pytest.raises(NOTICED):
        check_draws_nothing(with_own_key)
    for path in [*(ROOT / "crypto_provider").glob("*.py")]:
        assert not names_in(path.read_text()) & {"generate", "new_id", "token_bytes", "urandom"}


def names_in(source: str) -> set[str]:
    """Every name and attribute that a module mentions."""
    nodes = list(ast.walk(ast.parse(source)))
    imported = {
        part
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        for part in alias.name.split(".")
    }
    modules = {
        part
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for part in (node.module or "").split(".")
    }
    return (
        {node.id for node in nodes if isinstance(node, ast.Name)}
        | {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        | imported
        | modules
    )


def test_each_method_of_the_crypto_provider_serves_one_role() -> None:
    party = object.__new__(CryptoProvider)  # the table needs no store
    assert {name: handler.roles for name, handler in party.handlers().items()} == {
        "Register": {Role.MODEL_OWNER},
        "Reserve": {Role.DATA_OWNER},
        "Deal": {Role.MODEL_OWNER},
    }


def check_randomness(source: str) -> None:
    """No general-purpose generator: its output is predictable."""
    assert not names_in(source) & {"random", "rand", "randn", "RandomState", "default_rng"}


def test_protocol_code_uses_no_general_purpose_generator() -> None:
    folders = ["radiopaque", "crypto_provider", "model_owner", "data_owner"]
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 40
    for path in paths:
        check_randomness(path.read_text())
    for breach in ("import random", "from numpy.random import PCG64", "x = torch.rand(3)"):
        with pytest.raises(NOTICED):
            check_randomness(breach)


def test_keys_are_erased_when_a_run_is_ready() -> None:
    session = run_session(PLAN, small_weights(), images()["noise"])
    key_d, key_o = SecretKey(session.key_d), SecretKey(session.key_o)
    own = data_owner.SessionKey(session.artefact.id, session.session, key_d)
    data_owner.DataOwnerRun(PLAN, own, session.output_mask)
    material = sessions.material(PLAN, session.session, session.corrections, session.offline)
    model_owner.ModelOwnerRun(session.model, session.artefact.id, session.session, key_o, material)
    for key in (key_d, key_o):
        with pytest.raises(SessionStateError):
            key.reveal()
