"""Prepared sessions on disk: sealed, each payload under a nonce of its own, damage noticed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from model_owner.material import MaterialStore, MaterialWriter
from radiopaque.engine.material import region_frames, region_sizes
from radiopaque.engine.warm_up import miniature
from radiopaque.errors import MessageOrderError, MessageSizeError, ProtocolError, StoreError
from radiopaque.graph.plan import Plan
from radiopaque.prg import SecretKey, new_id
from radiopaque.wire.frames import Frame, Kind

PLAN = miniature(32, 18)
KINDS = (Kind.CORRECTION, Kind.OFFLINE)


def frames(plan: Plan, session: bytes, kind: Kind, value: int) -> list[Frame]:
    return [
        frame
        for gate, size in region_sizes(plan, kind).items()
        for frame in region_frames(session, gate, kind, np.full(size, value, np.uint8))
    ]


def write(writer: MaterialWriter, message: list[Frame]) -> None:
    with writer:
        for frame in message:
            writer.accept(frame)
        writer.finish()


def store_session(store: MaterialStore, session: bytes, key: SecretKey, value: int = 0) -> None:
    for kind in KINDS:
        write(store.writer(PLAN, session, kind, key), frames(PLAN, session, kind, value))


def read(store: MaterialStore, session: bytes, key: SecretKey) -> None:
    material = store.load(PLAN, session, key)
    for message in (material.corrections, material.offline):
        for _ in message:
            pass


@pytest.fixture
def store(tmp_path: Path) -> MaterialStore:
    return MaterialStore(tmp_path / "material")


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "material").iterdir())


def test_what_is_stored_is_loaded_and_sealed_on_disk(store: MaterialStore, tmp_path: Path) -> None:
    session, key = new_id(), SecretKey.generate()
    store_session(store, session, key, value=0xA5)
    material = store.load(PLAN, session, key)
    for message, kind in ((material.corrections, KINDS[0]), (material.offline, KINDS[1])):
        regions = dict(message)
        assert {gate: region.size for gate, region in regions.items()} == region_sizes(PLAN, kind)
        assert all((region == 0xA5).all() for region in regions.values())
    assert len(files(tmp_path)) == 2
    assert store.size() == sum(path.stat().st_size for path in files(tmp_path))
    for path in files(tmp_path):
        assert path.stat().st_mode & 0o777 == 0o600
        assert b"\xa5" * 8 not in path.read_bytes()


def test_no_two_payloads_are_sealed_under_one_nonce(store: MaterialStore, tmp_path: Path) -> None:
    """Zeros are stored, so what is on disk is the keystream: no part of it may come twice."""
    store_session(store, new_id(), SecretKey.generate())
    seen: set[bytes] = set()
    for path, kind in zip(files(tmp_path), KINDS, strict=True):
        assert path.suffix == f".{kind.name.lower()}"
        data = path.read_bytes()
        position = 0
        for size in region_sizes(PLAN, kind).values():
            start = data[position : position + min(size, 16)]
            assert not any(start.startswith(one) or one.startswith(start) for one in seen)
            seen.add(start)
            position += size + 16
        assert position == len(data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "missing", "swapped"])
def test_damage_is_noticed(store: MaterialStore, tmp_path: Path, kind: Kind, damage: str) -> None:
    session, key = new_id(), SecretKey.generate()
    store_session(store, session, key)
    path = tmp_path / "material" / f"{session.hex()}.{kind.name.lower()}"
    data = path.read_bytes()
    if damage == "flipped":
        path.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    elif damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "longer":
        path.write_bytes(data + b"\0")
    elif damage == "missing":
        path.unlink()
    else:
        other = new_id()
        store_session(store, other, key)
        path.write_bytes((path.parent / f"{other.hex()}{path.suffix}").read_bytes())
    with pytest.raises(StoreError, match=r"missing or damaged.*prepare another"):
        read(store, session, key)
    if damage in ("cut", "longer", "missing"):
        # no gate is served before this is known
        with pytest.raises(StoreError):
            store.load(PLAN, session, key)


def test_another_key_opens_nothing(store: MaterialStore) -> None:
    session = new_id()
    store_session(store, session, SecretKey.generate())
    with pytest.raises(StoreError, match="damaged"):
        read(store, session, SecretKey.generate())


@pytest.mark.parametrize("fault", ["repeated", "missing", "more", "short", "session", "kind"])
def test_a_message_with_a_fault_leaves_no_file(
    store: MaterialStore, tmp_path: Path, fault: str
) -> None:
    session = new_id()
    good = frames(PLAN, session, Kind.OFFLINE, 0)
    first = good[0]
    bad: list[Frame] = {
        "repeated": [first, *good],
        "missing": good[:-1],
        "more": [*good, good[-1]],
        "short": [Frame(session, first.gate, first.kind, 0, bytes(first.payload)[:-1])],
        "session": [Frame(new_id(), first.gate, first.kind, 0, first.payload)],
        "kind": [Frame(session, first.gate, Kind.CORRECTION, 0, first.payload)],
    }[fault]
    expected = MessageSizeError if fault == "short" else MessageOrderError
    writer = store.writer(PLAN, session, Kind.OFFLINE, SecretKey.generate())
    with pytest.raises(ProtocolError) as caught:
        write(writer, bad)
    assert type(caught.value) is expected
    assert files(tmp_path) == []


def test_disk_space_is_taken_before_the_first_frame(store: MaterialStore, tmp_path: Path) -> None:
    for kind in KINDS:
        with store.writer(PLAN, new_id(), kind, SecretKey.generate()):
            (found,) = (tmp_path / "material").glob(f"*.{kind.name.lower()}")
            sizes = region_sizes(PLAN, kind).values()
            assert found.stat().st_size > sum(sizes)
            assert found.stat().st_blocks * 512 >= found.stat().st_size


@pytest.mark.parametrize("call", ["posix_fallocate", "write"])
def test_a_full_disk_is_a_typed_error(
    store: MaterialStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"model_owner.material.os.{call}", full)
    session = new_id()
    with pytest.raises(StoreError, match=r"No space left.*free some space"):
        write(
            store.writer(PLAN, session, Kind.OFFLINE, SecretKey.generate()),
            frames(PLAN, session, Kind.OFFLINE, 0),
        )
    assert files(tmp_path) == []


def test_a_write_that_the_system_cuts_short_is_continued(
    store: MaterialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.write
    monkeypatch.setattr("model_owner.material.os.write", lambda fd, data: whole(fd, data[:100]))
    session, key = new_id(), SecretKey.generate()
    store_session(store, session, key, value=0xA5)
    material = store.load(PLAN, session, key)
    for message in (material.corrections, material.offline):
        assert all((region == 0xA5).all() for _, region in message)


def test_sessions_and_deleting(store: MaterialStore, tmp_path: Path) -> None:
    kept, dropped, key = new_id(), new_id(), SecretKey.generate()
    store_session(store, kept, key)
    store_session(store, dropped, key)
    notes = tmp_path / "material" / "notes.txt"
    notes.touch()
    assert store.sessions() == {kept, dropped}
    notes.unlink()
    store.delete(dropped)
    assert {path.stem for path in files(tmp_path)} == {kept.hex()}
    store.delete(kept)
    store.delete(kept)
    assert files(tmp_path) == []
