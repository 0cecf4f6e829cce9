"""The unit of work: `Database.read()` and `Database.write()` are the only ways to a connection.

Invariant: a write block commits once, at its end, or not at all; nothing else commits.
Source of the SQLite settings: sqlite.org, "Write-Ahead Logging" and "PRAGMA synchronous".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError

from gristmill.store.ledger.failures import unavailable


class Database:
    """`ledger.db`: opened once a process, shared by threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = _open(path)

    @property
    def engine(self) -> Engine:
        """The SQLAlchemy engine, for migrations and tests."""
        return self._engine

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for reading; rolled back at the end."""
        with _mapped(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that holds the write lock from its start; commits at the end of the block."""
        with _mapped(), self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


@contextmanager
def _mapped() -> Iterator[None]:
    """A full disk, a lock or a read-only folder as our error; any other failure is a defect and stays one."""
    try:
        yield
    except OperationalError as error:
        if any(
            word in str(error.orig) for word in ("full", "disk I/O", "locked", "readonly", "unable to open")
        ):
            raise unavailable(error.orig or error) from None
        raise


def _open(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30, "isolation_level": None})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    return engine
