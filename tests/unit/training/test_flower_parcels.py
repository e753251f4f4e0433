"""Bytes in Flower messages: there and back, and what strangers could send instead."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    no_object_id_recompute,
)
from flwr.supercore.task_identity import TaskIdentity

from training.errors import RefusedMessageError
from training.flower import parcels
from training.flower.parcels import inflate, inventory, pack, unpack

PART = 64


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(parcels, "PART_BYTES", PART)
    monkeypatch.setattr(parcels, "OBJECT_BYTES", PART + 4096)
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


class Store(dict[str, bytes]):
    """Objects by name, as a SuperLink keeps them."""

    def __init__(self, content: RecordDict) -> None:
        message = Message(content, 2, "query")
        with no_object_id_recompute():
            self.root = message.object_id
            objects = get_all_nested_objects(message)
            super().__init__({name: thing.deflate() for name, thing in objects.items()})

    def put(self, content: bytes) -> str:
        name = hashlib.sha256(content).hexdigest()
        self[name] = content
        return name

    def fetch(self, name: str) -> bytes:
        if name not in self:
            raise RefusedMessageError("site", "an object was not announced")
        return self[name]


def received(store: Store, longest: int, root: str | None = None) -> bytes:
    names = inventory("site", root or store.root, store.fetch, longest)
    return unpack("site", inflate("site", names, store.fetch).content, longest)


def made_of(kind: str, children: list[str], body: bytes) -> bytes:
    return f"{kind} {','.join(children)} {len(body)}".encode() + b"\x00" + body


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 5 * PART])
@pytest.mark.parametrize("random", [True, False])
def test_parcels_arrive_as_they_were_packed(size: int, random: bool) -> None:
    payload = np.random.default_rng(size).bytes(size) if random else bytes(size)
    store = Store(pack(payload))
    assert received(store, size) == payload
    assert received(store, size + 1000) == payload


@pytest.mark.parametrize("size", [1, PART, 5 * PART])
def test_longer_ones_than_allowed_are_refused(size: int) -> None:
    store = Store(pack(bytes(range(size % 256)) * 0 + np.random.default_rng(1).bytes(size)))
    with pytest.raises(RefusedMessageError):
        received(store, size - 1)


def test_too_many_parts_are_refused_before_one_is_fetched() -> None:
    store = Store(pack(np.random.default_rng(1).bytes(5 * PART)))
    fetched: list[str] = []

    def fetch(name: str) -> bytes:
        fetched.append(name)
        return store.fetch(name)

    with pytest.raises(RefusedMessageError, match="1 to 4 parts"):
        inventory("site", store.root, fetch, 4 * PART)
    assert len(fetched) == 2


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"00001": ConfigRecord({"bytes": b"x"})},
        {"00000": ConfigRecord({"bytes": b"x"}), "00002": ConfigRecord({"bytes": b"y"})},
        {"00000": ConfigRecord({"bytes": "text"})},
        {"00000": ConfigRecord({"bytes": [b"x"]})},
        {"00000": ConfigRecord({"other": b"x"})},
        {"00000": ConfigRecord({"bytes": b"x", "more": b"y"})},
        {"00000": ConfigRecord({"bytes": b"x"}), "00001": ConfigRecord({"bytes": b"y"})},
        {"00000": ConfigRecord({"bytes": bytes(PART + 1)})},
        {"00000": MetricRecord({"bytes": 1})},
        {"00000": ArrayRecord({"bytes": Array(np.zeros(3))})},
    ],
)
def test_other_contents_are_refused(content: dict[str, object]) -> None:
    with pytest.raises(RefusedMessageError):
        received(Store(RecordDict(content)), 10 * PART)  # type: ignore[arg-type]


def test_an_array_that_would_grow_is_never_built() -> None:
    """One chunk of an array can be named a million times in its metadata."""
    store = Store(pack(b"x"))
    chunk = store.put(made_of("ArrayChunk", [], bytes(60)))
    metadata = {"dtype": "u1", "shape": [1], "stype": "x", "arraychunk_ids": [0] * 200}
    array = store.put(made_of("Array", [chunk], json.dumps(metadata).encode()))
    body = json.dumps({"00000": array}).encode()
    record = store.put(made_of("RecordDict", [array], body))
    message = store[store.root].replace(store[store.root].split(b" ")[1], record.encode())
    with pytest.raises(RefusedMessageError, match="cannot be read"):
        received(store, 10 * PART, store.put(message))


def test_one_part_under_many_names_is_no_more_than_allowed() -> None:
    store = Store(pack(bytes(PART)))
    part = next(name for name, content in store.items() if content.startswith(b"ConfigRecord"))
    body = json.dumps({f"{place:05d}": part for place in range(40)}).encode()
    record = store.put(made_of("RecordDict", [part], body))
    message = store[store.root].replace(store[store.root].split(b" ")[1], record.encode())
    root = store.put(message)
    assert received(store, 40 * PART, root) == bytes(40 * PART)
    with pytest.raises(RefusedMessageError):
        received(store, 39 * PART, root)


def test_objects_that_are_not_what_their_name_says_are_refused() -> None:
    for kind in (b"Message", b"RecordDict", b"ConfigRecord"):
        store = Store(pack(b"payload"))
        name = next(key for key, content in store.items() if content.startswith(kind))
        store[name] = store[name][:-1] + bytes([store[name][-1] ^ 1])
        with pytest.raises(RefusedMessageError, match="not the one announced"):
            received(store, 10)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"",
        lambda content: b"Message",
        lambda content: b"\x00",
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: b"Other" + content[7:],
        lambda content: content.replace(b"Message ", b"Message zz,", 1),
        lambda content: content.replace(b"Message ", b"Message  ", 1),
        lambda content: made_of("Message", [], b""),
        lambda content: made_of("Message", [content.split(b" ")[1].decode()] * 2, b""),
        lambda content: made_of("Message", [content.split(b" ")[1].decode()], b"\xff\xff"),
        lambda content: b"\xff\xfe \xff 3\x00abc",
        lambda content: bytes(PART + 5000),
    ],
)
def test_malformed_messages_are_refused(change: Callable[[bytes], bytes]) -> None:
    store = Store(pack(b"payload"))
    with pytest.raises(RefusedMessageError):
        received(store, 10, store.put(change(store[store.root])))


def test_what_was_not_announced_is_not_looked_for() -> None:
    store = Store(pack(b"payload"))
    part = next(name for name, content in store.items() if content.startswith(b"ConfigRecord"))
    del store[part]
    with pytest.raises(RefusedMessageError, match="not announced"):
        received(store, 10)
