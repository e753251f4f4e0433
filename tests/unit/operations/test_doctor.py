"""Each check of the doctor on something that is wrong, and on the same thing right."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import ssl
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from radiopaque import versions
from radiopaque.certificates import CertificateFiles, Role, init_directory
from radiopaque.config import TlsConfig
from radiopaque.ledger import MODEL_OWNER, Ledger, State
from radiopaque.operations.doctor import ledgers, machine, network
from radiopaque.operations.doctor.findings import Finding, Level, attempt
from radiopaque.operations.doctor.run import examine
from radiopaque.prg import new_id
from radiopaque.transport.grpc_client import PeerHealth
from radiopaque.versions import PROTOCOL, Stated
from tests.unit.operations.test_metrics import tls_of


def found(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {one.check: one for one in findings}


def only(findings: Iterator[Finding]) -> Finding:
    (one,) = findings
    if one.level is not Level.PASS:
        assert one.remedy
    return one


@pytest.fixture
def tls(certificate_files: dict[Role, CertificateFiles]) -> TlsConfig:
    return tls_of(certificate_files[Role.MODEL_OWNER])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with a ledger and a session in each state that a model owner has."""
    path = tmp_path / "store"
    with Ledger(path / ledgers.FILE, MODEL_OWNER) as ledger:
        for steps in range(4):
            session = new_id()
            ledger.create(session, artefact=bytes(16), peer="clinic", secret=bytes(64))
            for old, new in (
                (State.PREPARING, State.READY),
                (State.READY, State.STARTED),
                (State.STARTED, State.BURNT),
            )[:steps]:
                if new is State.BURNT:
                    ledger.burn(session)
                else:
                    ledger.advance(session, old, new)
    return path


def test_good_certificates(tls: TlsConfig) -> None:
    checks = found(machine.certificates(tls, Role.MODEL_OWNER))
    levels = {name.partition(" (")[0]: one.level for name, one in checks.items()}
    assert levels == {
        "certificate": Level.PASS,
        "certificate end": Level.PASS,
        "authority end": Level.PASS,
        "key": Level.PASS,
        "revocation": Level.WARN,
    }


def test_certificates_that_cannot_be_used(tls: TlsConfig, tmp_path: Path) -> None:
    open_key = tmp_path / "open.key"
    open_key.write_bytes(tls.key.read_bytes())
    open_key.chmod(0o640)
    wrong = tls.model_copy(update={"key": open_key})
    one = only(attempt("certificate", lambda: machine.certificates(wrong, Role.MODEL_OWNER)))
    assert one.level is Level.FAIL
    assert one.remedy == f"run: chmod 600 {open_key}"
    one = only(attempt("certificate", lambda: machine.certificates(tls, Role.DATA_OWNER)))
    assert (one.level, "for the role model-owner" in one.text) == (Level.FAIL, True)


@pytest.mark.parametrize(
    ("days", "level"), [(-1, Level.FAIL), (5, Level.WARN), (29, Level.WARN), (31, Level.PASS)]
)
def test_ends_of_certificates(days: int, level: Level) -> None:
    end = datetime.now(UTC) + timedelta(days=days, minutes=1)
    assert machine.ends("x", end, timedelta(days=30), "renew").level is level


def test_a_folder_where_others_may_replace_the_key(tls: TlsConfig, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    key = folder / "own.key"
    key.write_bytes(tls.key.read_bytes())
    key.chmod(0o600)
    moved = tls.model_copy(update={"key": key})
    assert found(machine.certificates(moved, Role.MODEL_OWNER))["key"].level is Level.PASS
    folder.chmod(0o775)
    one = found(machine.certificates(moved, Role.MODEL_OWNER))["key"]
    assert (one.level, one.remedy) == (Level.FAIL, f"run: chmod go-w {folder}")


def test_stores(store: Path) -> None:
    assert only(machine.store(store)).level is Level.PASS
    (store / ledgers.FILE).chmod(0o644)
    one = only(machine.store(store))
    assert (one.level, one.remedy) == (Level.FAIL, f"run: chmod -R go-rwx {store}")
    assert str(store / ledgers.FILE) in one.text
    assert only(machine.store(store / "none")).level is Level.WARN


@pytest.mark.parametrize(
    ("free", "wanted", "level"),
    [
        (100 << 20, 0, Level.FAIL),
        (5 << 30, 6 << 30, Level.WARN),
        (5 << 30, 4 << 30, Level.PASS),
    ],
)
def test_disks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, wanted: int, level: Level
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 0, free))
    assert only(machine.disk(tmp_path / "not" / "yet", wanted)).level is level


def test_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(machine.kernels()).level is Level.PASS
    from radiopaque.kernels import bits

    class Cache:
        cache_path = str(tmp_path)

    class Dispatcher:
        _cache = Cache()

    for name, one in list(vars(bits).items()):
        if hasattr(one, "_cache"):
            monkeypatch.setattr(bits, name, Dispatcher())
    assert "20 seconds" in only(machine.kernels()).remedy
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "NUMBA_CACHE_DIR" in only(machine.kernels()).remedy


def test_good_ledgers(store: Path) -> None:
    assert only(ledgers.ledger(store)).level is Level.PASS
    assert only(ledgers.ledger(store / "none")).level is Level.WARN
    # opened once more, a party burns what was under way; here nobody has
    assert ledgers.sessions(store) == {State.PREPARING: 1, State.READY: 1, State.STARTED: 1}
    assert ledgers.sessions(store / "none") == {}


def test_a_ledger_is_examined_while_a_party_uses_it(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "_WAIT_SECONDS", 0.1)
    with closing(sqlite3.connect(store / ledgers.FILE, isolation_level=None)) as changing:
        changing.execute("BEGIN IMMEDIATE")
        assert only(ledgers.ledger(store)).level is Level.PASS
        assert ledgers.sessions(store)[State.READY] == 1
    with Ledger(store / ledgers.FILE, MODEL_OWNER) as ledger:
        assert only(ledgers.ledger(store)).level is Level.PASS
        ledger.create(new_id(), artefact=bytes(16), peer="clinic")
    assert ledgers.sessions(store)[State.PREPARING] == 1


@pytest.mark.parametrize("state", [State.BURNT, State.STARTED])
def test_a_used_session_that_kept_its_key(store: Path, state: State) -> None:
    with sqlite3.connect(store / ledgers.FILE) as connection:
        connection.execute("UPDATE session SET secret = x'00' WHERE state = ?", (state,))
    one = only(ledgers.ledger(store))
    assert (one.level, one.text[:10]) == (Level.FAIL, "1 sessions")
    assert "SECURITY.md" in one.remedy


def test_a_clock_that_went_back(store: Path) -> None:
    with sqlite3.connect(store / ledgers.FILE) as connection:
        connection.execute("UPDATE session SET created = ?", (time.time() + 3600,))
    assert "the clock went back" in only(ledgers.ledger(store)).text


@pytest.mark.parametrize("table", ["sqlite_master", "session", "mark"])
def test_damaged_ledgers(store: Path, table: str) -> None:
    """Also where nothing that the other checks read is hit."""
    path = store / ledgers.FILE
    with sqlite3.connect(path) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        size = connection.execute("PRAGMA page_size").fetchone()[0]
        page = (connection.execute(query, (table,)).fetchone() or (1,))[0]
    place = size * (page - 1)
    data = bytearray(path.read_bytes())
    data[place : place + 2000] = b"\xff" * 2000
    path.write_bytes(data)
    one = only(ledgers.ledger(store))
    assert (one.level, "restore no copy" in one.remedy) == (Level.FAIL, True)


def test_a_ledger_of_another_release(store: Path) -> None:
    with sqlite3.connect(store / ledgers.FILE) as connection:
        connection.execute("PRAGMA user_version = 999")
    one = only(ledgers.ledger(store))
    assert (one.level, "format 999" in one.text) == (Level.FAIL, True)
    assert "prepared anew" in one.remedy


def test_a_ledger_that_cannot_be_written(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # root writes everywhere
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != store)
    one = only(ledgers.ledger(store))
    assert (one.level, one.remedy) == (Level.FAIL, "let the party's user own its store")


def test_stock_near_its_limit() -> None:
    assert only(ledgers.stock(89, 100, "wait")).level is Level.PASS
    assert only(ledgers.stock(90, 100, "wait")).level is Level.WARN


def health(clock: float | None = 0.0, version: Stated | None = None) -> PeerHealth:
    return PeerHealth(True, version or Stated(PROTOCOL, "0.1.0", 0.0), clock, 0.1)


@pytest.mark.parametrize(
    ("version", "level", "remedy"),
    [
        (Stated(PROTOCOL, "9.9.9", None), Level.PASS, ""),
        (Stated(PROTOCOL - 1, "0.0.1", None), Level.FAIL, "upgrade the model owner"),
        (Stated(None, None, None), Level.FAIL, "upgrade the model owner"),
        (Stated(PROTOCOL + 1, "9.9.9", None), Level.FAIL, "upgrade the data owner"),
    ],
)
def test_versions(version: Stated, level: Level, remedy: str) -> None:
    answered = health(version=version)
    (one,) = network._version("model owner", answered, Role.DATA_OWNER, Role.MODEL_OWNER)
    assert (one.level, one.remedy) == (level, remedy)


@pytest.mark.parametrize(
    ("skew", "level"),
    [
        (0.0, Level.PASS),
        (-2.04, Level.PASS),  # within what the round trip leaves open
        (2.1, Level.WARN),
        (-59.0, Level.WARN),
        (61.0, Level.FAIL),
        (-3600.0, Level.FAIL),
    ],
)
def test_clocks(skew: float, level: Level) -> None:
    assert only(network._clock("model owner", health(skew))).level is level


@pytest.fixture
def lenient(tls: TlsConfig) -> Iterator[str]:
    """A server with the right certificate that accepts TLS 1.2."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    listener = socket.create_server(("127.0.0.1", 0))
    stopping = threading.Event()

    def serve() -> None:
        while not stopping.is_set():
            try:
                plain, _ = listener.accept()
                with plain, context.wrap_socket(plain, server_side=True) as secure:
                    secure.recv(1)
            except OSError:
                continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    stopping.set()
    listener.close()


def test_old_tls(lenient: str, tls: TlsConfig) -> None:
    one = network._oldest_tls("model owner", tls.load(Role.MODEL_OWNER), lenient)
    assert (one.level, one.text) == (Level.FAIL, "accepts TLS 1.2")
    end = network._certificate_end("model owner", tls, lenient, Role.MODEL_OWNER.server_name)
    assert end.level is Level.PASS
    wrong = network._certificate_end("x", tls, lenient, Role.CRYPTO_PROVIDER.server_name)
    assert (wrong.level, wrong.text[:12]) == (Level.FAIL, "no handshake")


def test_old_tls_under_a_certificate_of_nobody(
    lenient: str, tls: TlsConfig, tmp_path: Path
) -> None:
    """What the server shows is looked at after the version was agreed on."""
    files = init_directory(tmp_path / "other")[Role.MODEL_OWNER]
    other = TlsConfig.model_construct(
        certificate=files.certificate, key=files.key, ca=files.ca
    ).load(Role.MODEL_OWNER)
    assert network._oldest_tls("model owner", other, lenient).text == "accepts TLS 1.2"


def test_nobody_is_asked_for_old_tls(tls: TlsConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    one = network._oldest_tls("model owner", tls.load(Role.MODEL_OWNER), address)
    assert (one.level, one.text[:15]) == (Level.FAIL, "cannot be asked")


def test_a_name_that_nobody_knows(tls: TlsConfig) -> None:
    address = "vendor.invalid:7302"
    checks = (
        network._oldest_tls("model owner", tls.load(Role.MODEL_OWNER), address),
        network._certificate_end("model owner", tls, address, Role.MODEL_OWNER.server_name),
    )
    for one in checks:
        assert one.level is Level.FAIL
        assert "name service" in one.remedy


def test_a_configuration_that_is_wrong(tmp_path: Path) -> None:
    config = tmp_path / "party.toml"
    config.write_text("stor = 1\n")
    one = only(examine(Role.DATA_OWNER, config))
    assert one.level is Level.FAIL
    assert "stor is not a known key" in one.text


def test_clocks_and_versions_of_a_real_peer(
    monkeypatch: pytest.MonkeyPatch, identities: Any, tls: TlsConfig
) -> None:
    from tests.unit.transport.conftest import Host

    host = Host(identities)
    try:
        own, role = Role.DATA_OWNER, Role.MODEL_OWNER
        clinic = tls_of_clinic(tls)
        checks = found(network.peer(clinic, own, role, host.address, None))
        assert {one.level for one in checks.values()} == {Level.PASS}
        assert set(checks) == {
            "model owner",
            *(f"model owner: {what}" for what in ("version", "clock", "TLS", "certificate end")),
        }
        ahead = (("radiopaque-protocol", "1"), ("radiopaque-time", f"{time.time() + 600:.3f}"))
        monkeypatch.setattr(versions, "own", lambda: ahead)
        checks = found(network.peer(clinic, own, role, host.address, None))
        assert checks["model owner: version"].level is Level.FAIL
        assert checks["model owner: clock"].level is Level.FAIL
        assert "ahead" in checks["model owner: clock"].text
    finally:
        host.close()


def tls_of_clinic(tls: TlsConfig) -> TlsConfig:
    folder = tls.ca.parent
    files = {"certificate": folder / "data-owner.crt", "key": folder / "data-owner.key"}
    return tls.model_copy(update=files)
