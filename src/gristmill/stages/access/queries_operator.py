"""SQL of operator credentials."""

from __future__ import annotations

from sqlalchemy import Connection, func, insert, select

from gristmill.store.tables.platform import operator

__all__ = ["Connection", "add", "count", "find"]


def count(connection: Connection) -> int:
    """How many operator credentials exist."""
    return connection.execute(select(func.count()).select_from(operator)).scalar_one()


def find(connection: Connection, secret_sha256: str) -> tuple[str, str] | None:
    """Id and role of the operator whose secret has this hash."""
    row = connection.execute(
        select(operator.c.id, operator.c.role).where(operator.c.secret_sha256 == secret_sha256)
    ).first()
    return None if row is None else (row.id, row.role)


def add(connection: Connection, operator_id: str, role: str, secret_sha256: str, created_at: str) -> None:
    """Add an operator."""
    connection.execute(
        insert(operator).values(id=operator_id, role=role, secret_sha256=secret_sha256, created_at=created_at)
    )
