"""The connection to PostgreSQL: what protects it, and how long it is waited for."""

from __future__ import annotations

import datetime
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from radiopaque.errors import ConfigError, StoreError
from radiopaque.ledger import MODEL_OWNER, Ledger, State
from tests.unit.ledger.test_postgresql import Server, new, psycopg, server

from radiopaque.ledger import conninfo as addresses  # isort: skip
from radiopaque.ledger import postgresql  # isort: skip
from radiopaque.ledger.postgresql import PostgresqlDatabase  # isort: skip

__all__ = ["server"]
BOUND = 3.0
SLACK = 20.0
"""For a loaded machine. Nothing that is stopped here goes on before it is over."""


@pytest.mark.parametrize(
    "conninfo",
    [
        "host=127.0.0.1 port=1 user=radiopaque password=hunter two dbname=x",
        "host=127.0.0.1 port=1 user=r password='hunter2",
        "postgresql://radiopaque:hunter2@db:54x32/radio",
        "postgresql://radiopaque:p%zzhunter2@db/radio",
        "postgresql://radiopaque:hunter@2@db/radio",
        "postgresql://radiopaque:hunter2/@db/radio",
        "postgresql://radiopaque:1/hunter2@127.0.0.1/radio",
        "host=127.0.0.1 password=hunter2%00 hunter\0two",
    ],
)
def test_what_does_not_parse_is_not_quoted(conninfo: str) -> None:
    with pytest.raises(ConfigError, match=r"\[ledger\] postgresql is not what libpq takes") as told:
        PostgresqlDatabase(conninfo, "a")
    for part in ("hunter", "two", "54x32", "zz"):
        assert part not in str(told.value)
    assert told.value.__cause__ is None


@pytest.mark.parametrize("how", ["in the configuration", "in the environment"])
def test_another_machine_is_not_spoken_to_without_tls(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    conninfo = "dbname=ledger user=ledger"
    if how == "in the environment":
        monkeypatch.setenv("PGHOST", "db.example")
        monkeypatch.setenv("PGSSLMODE", "require")
    else:
        conninfo += " host=db.example sslmode=require"
    monkeypatch.setattr(psycopg.Connection, "connect", None)
    with pytest.raises(ConfigError, match="add sslmode=verify-full"):
        PostgresqlDatabase(conninfo, "a")


def test_a_connection_that_turns_out_to_lead_elsewhere(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name of this machine that leads to another one."""
    conninfo = server.database().replace("127.0.0.1", "localhost")
    monkeypatch.setattr(addresses, "is_local", lambda name: name in ("", "localhost"))
    with pytest.raises(ConfigError, match="on another machine and not under TLS"):
        PostgresqlDatabase(conninfo, "a")


def certificate(folder: Path, name: str) -> None:
    """One for 127.0.0.1 that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address(name))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    (folder / f"{name}.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = folder / f"{name}.key"
    private.touch(0o600)
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    owner = (folder / "data").stat().st_uid
    os.chown(private, owner, -1)


@contextmanager
def serving(server: Server, *settings: str) -> Iterator[None]:
    server.stop()
    try:
        server.start(*settings)
        yield
    finally:
        server.stop()
        server.start()


def test_another_machine_is_spoken_to_under_tls(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("127.0.0.1", "127.0.0.2"):
        certificate(server.folder, name)
    plain = server.database()
    conninfo = f"{plain} sslmode=verify-full sslrootcert={server.folder}/127.0.0.1.crt"
    monkeypatch.setattr(addresses, "is_local", lambda name: False)
    with pytest.raises(StoreError, match="does not support SSL"):
        PostgresqlDatabase(conninfo, "a")

    def under(name: str) -> Any:
        files = (
            f"ssl_cert_file={server.folder}/{name}.crt",
            f"ssl_key_file={server.folder}/{name}.key",
        )
        return serving(server, "ssl=on", *files)

    with under("127.0.0.1"):
        with pytest.raises(ConfigError, match="add sslmode=verify-full"):
            PostgresqlDatabase(plain, "a")
        with Ledger(PostgresqlDatabase(conninfo, "a"), MODEL_OWNER) as ledger:
            session = new(ledger)
            assert ledger.get(session).state is State.PREPARING
            with ledger._database.transaction() as connection:
                version = connection.execute(
                    "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
                ).fetchone()
            assert version == ("TLSv1.3",)
        with pytest.raises(StoreError, match="certificate verify failed"):
            PostgresqlDatabase(conninfo.replace("127.0.0.1.crt", "127.0.0.2.crt"), "a")
    with under("127.0.0.2"), pytest.raises(StoreError, match="does not match host name"):
        PostgresqlDatabase(conninfo.replace("127.0.0.1.crt", "127.0.0.2.crt"), "a")


@contextmanager
def silent(server: Server) -> Iterator[None]:
    """Its kernel still acknowledges what comes."""
    stopped = server.processes()
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in stopped:
            os.kill(process, signal.SIGCONT)


def found_again(ledger: Ledger, session: bytes) -> State:
    """A session's state, when the server has let go of the connection that was given up."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return ledger.get(session).state
        except StoreError:
            if time.monotonic() > deadline:
                raise


def test_a_silent_server_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """By all that wait for it, whether it is connected to or not; afterwards it serves again."""
    monkeypatch.setattr(postgresql, "_CALL_SECONDS", BOUND)
    ledger = Ledger(PostgresqlDatabase(server.database(), "a"), MODEL_OWNER)
    session = new(ledger)
    errors: list[Exception] = []

    def use() -> None:
        try:
            ledger.advance(session, State.PREPARING, State.READY)
        except Exception as error:
            errors.append(error)

    with silent(server):
        began = time.monotonic()
        for rounds in (1, 2):
            waiting = [threading.Thread(target=use, daemon=True) for _ in range(3)]
            for thread in waiting:
                thread.start()
            for thread in waiting:
                thread.join(began + rounds * (BOUND + SLACK) - time.monotonic())
            assert [type(error) for error in errors] == [StoreError] * 3 * rounds
    assert any("no answer in 3 s" in str(error) for error in errors)
    assert any("busy for 3 s" in str(error) for error in errors)
    monkeypatch.undo()
    assert found_again(ledger, session) is State.PREPARING
    ledger.advance(session, State.PREPARING, State.READY)
    ledger.close()


def test_a_silent_commit_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What became of it is not known; the session serves once either way."""
    monkeypatch.setattr(postgresql, "_CALL_SECONDS", BOUND)
    ledger = Ledger(PostgresqlDatabase(server.database(), "a"), MODEL_OWNER)
    session = new(ledger)
    ledger.advance(session, State.PREPARING, State.READY)
    with ExitStack() as later:
        too_long = threading.Timer(BOUND + SLACK, later.close)
        too_long.start()
        later.callback(too_long.cancel)

        def change() -> None:
            with ledger._database.transaction() as connection:
                connection.execute(
                    "UPDATE session SET state = ?, secret = NULL WHERE id = ?",
                    (State.STARTED, session),
                )
                later.enter_context(silent(server))

        with pytest.raises(StoreError, match="no answer in 3 s"):
            change()
    monkeypatch.undo()
    assert found_again(ledger, session) in (State.READY, State.STARTED)
    ledger.burn(session)
    ledger.close()


def test_a_silent_replica_holds_nobody_up(server: Server) -> None:
    """The server ends what it left in the middle, and sees that its machine is gone."""
    ledger = Ledger(PostgresqlDatabase(server.database(), "a"), MODEL_OWNER)
    with ledger._database.transaction() as connection:
        shown = {
            name: connection.execute(f"SHOW {name}").fetchone()[0]
            for name in (
                "statement_timeout",
                "idle_in_transaction_session_timeout",
                "tcp_keepalives_idle",
                "tcp_keepalives_interval",
                "tcp_keepalives_count",
            )
        }
    assert list(shown.values()) == ["15s", "15s", "10", "5", "3"]
    ledger.close()
