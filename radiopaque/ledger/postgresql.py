"""A ledger in PostgreSQL, which several replicas of one server share.

Needs the extra ``postgresql``. One connection a replica, found again after it was lost. A commit
waits for the disk (``synchronous_commit``; a server with ``fsync`` off is refused) and for the
server that takes writes: a standby that lags behind is not spoken to. Each replica has a name of
its own, and a lock in the database that keeps another process from taking the same one.

PostgreSQL keeps old versions of a row until it is vacuumed, and in its write-ahead log and backups:
an erased key is not overwritten at once, as it is in an embedded ledger. Encrypt those disks.

A server may also be silent: stopped, cut off, waiting for its disk. Each use of the ledger ends
after ``_CALL_SECONDS``, here, whatever the server does; the connection is then given up, and what
was under way may or may not have happened. The server drops what a silent replica left in the
middle, and lets go of its name.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from radiopaque.errors import ConfigError, StoreError
from radiopaque.ledger import conninfo as addresses
from radiopaque.ledger.databases import FORMAT, SCHEMA, AlreadyKnownError, Cursor

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
except ImportError:
    raise ConfigError(
        "a ledger in PostgreSQL needs the extra postgresql: pip install 'radiopaque[postgresql]'"
    ) from None

_LOCKS: Final = 0x52504C47
"""Of the locks that hold the names of replicas."""
_NAME_MILLISECONDS: Final = 2000
"""How long to wait for a name that another process holds."""
_CALL_SECONDS: Final = 15.0
"""The longest that one use of the ledger may take, waiting for its turn included."""
_SETTINGS: Final = (
    "-c synchronous_commit=on -c default_transaction_isolation=read\\ committed "
    f"-c statement_timeout={_CALL_SECONDS:.0f}s "
    f"-c idle_in_transaction_session_timeout={_CALL_SECONDS:.0f}s "
    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
)


class _Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that is waited for until ``deadline``, and closed then."""

    deadline = float("inf")

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **keywords: Any) -> Any:
        return super().wait(self._until_deadline(gen), *args, **keywords)

    def _until_deadline(self, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        try:
            awaited = next(steps)
            while True:
                came = yield awaited
                if time.monotonic() > self.deadline:
                    self.close()
                    raise psycopg.OperationalError(f"no answer in {_CALL_SECONDS:g} s")
                awaited = steps.send(came)
        except StopIteration as end:
            return end.value


class PostgresqlDatabase:
    """The database of ``conninfo`` (see libpq), in the hands of the replica ``holder``."""

    row_lock = " FOR UPDATE"

    def __init__(self, conninfo: str, holder: str) -> None:
        """Raises ConfigError where keys would travel unprotected."""
        self.holder = holder
        self._conninfo = _protected(conninfo)
        self._mutex = threading.Lock()
        self._closed = False
        self._connection: _Connection | None = None
        with self._turn() as connection:
            info = connection.info
            self.name = f"ledger {info.dbname} at {info.host}:{info.port}"

    def make(self, epoch: bytes, party: str) -> None:
        with self.transaction() as connection:
            # of replicas that start together, one makes the tables
            connection.execute("SELECT pg_advisory_xact_lock(?)", (_LOCKS,))
            found = connection.execute("SELECT to_regclass('party') IS NOT NULL").fetchone()[0]
            if not found:
                schema = SCHEMA.format(blob="BYTEA", real="DOUBLE PRECISION", suffix="")
                for statement in filter(str.strip, schema.split(";")):
                    connection.execute(statement)
                connection.execute("INSERT INTO party VALUES (?, ?, ?)", (party, FORMAT, epoch))

    def close(self) -> None:
        """Let go of the replica's name. Closing again does nothing."""
        with self._mutex:
            self._closed = True
            if self._connection is not None:
                self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[_Statements]:
        with self._turn() as connection, connection.transaction():
            yield _Statements(connection)

    @contextmanager
    def _turn(self) -> Iterator[_Connection]:
        """The connection, for one thread at a time."""
        deadline = time.monotonic() + _CALL_SECONDS
        if not self._mutex.acquire(timeout=_CALL_SECONDS):
            raise StoreError(
                f"the ledger in PostgreSQL was busy for {_CALL_SECONDS:g} s; check the server"
            )
        try:
            with self._reported():
                yield self._connected(deadline)
        finally:
            self._mutex.release()

    def _connected(self, deadline: float) -> _Connection:
        if self._closed:
            raise StoreError("the ledger is closed")
        if self._connection is None or self._connection.closed:
            connection = _Connection.connect(
                self._conninfo,
                autocommit=True,
                options=_SETTINGS,
                target_session_attrs="read-write",
                application_name=f"radiopaque {self.holder}",
                connect_timeout=max(2, int(deadline - time.monotonic())),
            )
            connection.deadline = deadline
            try:
                self._check(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        self._connection.deadline = deadline
        return self._connection

    def _check(self, connection: _Connection) -> None:
        info = connection.info
        if not (connection.pgconn.ssl_in_use or addresses.is_local(info.hostaddr or info.host)):
            raise ConfigError(
                "the PostgreSQL server is on another machine and not under TLS, and keys of "
                "sessions travel there; name it in [ledger] postgresql, with sslmode=verify-full"
            )
        if _value(connection, "SHOW fsync") != "on":
            raise StoreError(
                "the PostgreSQL server does not wait for its disk (fsync is off): after a loss of "
                "power sessions would serve twice; set fsync = on"
            )
        # the server may take a moment to notice that the process before this one is gone
        connection.execute(f"SET lock_timeout = {_NAME_MILLISECONDS}")
        try:
            _value(connection, "SELECT pg_advisory_lock(%s, hashtext(%s))", (_LOCKS, self.holder))
        except psycopg.errors.LockNotAvailable:
            raise StoreError(
                f"another process serves as the replica {self.holder!r} of this ledger; "
                "stop it, or give each replica a name of its own"
            ) from None
        connection.execute("RESET lock_timeout")

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """PostgreSQL's errors as StoreError, without values, which may be keys."""
        try:
            yield
        except psycopg.errors.UniqueViolation as error:
            if error.diag.table_name != "session":
                raise self._failure(error) from None
            raise AlreadyKnownError from None
        except psycopg.Error as error:
            raise self._failure(error) from None

    def _failure(self, error: psycopg.Error) -> StoreError:
        reason = error.diag.message_primary or str(error).splitlines()[0]
        return StoreError(
            f"the ledger in PostgreSQL cannot be used: {reason}; check the server, "
            "and restore no copy of it: sessions would serve twice"
        )


class _Statements:
    """Statements with ``?`` for parameters, as SQLite takes them."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def execute(self, statement: str, values: Sequence[object] = ()) -> Cursor:
        # States are strings of a class of their own, which psycopg would take for enumerations.
        plain = [str(value) if isinstance(value, str) else value for value in values]
        return self._connection.execute(statement.replace("?", "%s").encode(), plain)


def _value(connection: _Connection, statement: str, values: Sequence[object] = ()) -> object:
    row = connection.execute(statement.encode(), values).fetchone()
    return row[0] if row else None


def _protected(conninfo: str) -> str:
    """With what has to go with it. Raises ConfigError, which quotes nothing of it."""
    addresses.check_text(conninfo)
    try:
        own = conninfo_to_dict(conninfo)
    except (psycopg.Error, ValueError):
        raise addresses.malformed() from None
    defaults = {
        option.keyword.decode(): option.val.decode()
        for option in psycopg.pq.Conninfo.get_defaults()
        if option.val is not None
    }
    parameters = {**defaults, **{key: str(value) for key, value in own.items()}}
    return make_conninfo(conninfo, **addresses.protection(parameters))
