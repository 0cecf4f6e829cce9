"""SQL of customers' files; every query is scoped to one customer."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, and_, func, insert, or_, select, update

from gristmill.store.tables.account import file


def add(connection: Connection, **values: Any) -> None:
    """Add a file's row; values as in `store.tables.account.file`."""
    connection.execute(insert(file).values(**values))


def find(connection: Connection, customer_id: str, file_id: str) -> dict[str, Any] | None:
    """One file of one customer, unless it was deleted."""
    row = connection.execute(
        select(file).where(
            file.c.id == file_id, file.c.customer_id == customer_id, file.c.deleted_at.is_(None)
        )
    ).mappings()
    found = row.first()
    return None if found is None else dict(found)


def listed(
    connection: Connection,
    customer_id: str,
    *,
    purpose: str | None,
    after: dict[str, Any] | None,
    limit: int,
    is_ascending: bool,
) -> list[dict[str, Any]]:
    """Up to `limit` files of one customer by time of creation, beyond the row `after`."""
    query = select(file).where(file.c.customer_id == customer_id, file.c.deleted_at.is_(None))
    if purpose is not None:
        query = query.where(file.c.purpose == purpose)
    at, key = file.c.created_at, file.c.id
    if after is not None:
        same = after["created_at"]
        beyond = (
            or_(at > same, and_(at == same, key > after["id"]))
            if is_ascending
            else or_(at < same, and_(at == same, key < after["id"]))
        )
        query = query.where(beyond)
    order = (at.asc(), key.asc()) if is_ascending else (at.desc(), key.desc())
    return [dict(row) for row in connection.execute(query.order_by(*order).limit(limit)).mappings()]


def mark_deleted(connection: Connection, customer_id: str, file_id: str, at: str) -> None:
    """Mark a file deleted; its row stays so that runs keep their parent."""
    connection.execute(
        update(file)
        .where(file.c.id == file_id, file.c.customer_id == customer_id)
        .values(deleted_at=at, status="deleted")
    )


def count_using(connection: Connection, blob: str) -> int:
    """How many files that were not deleted hold this blob."""
    return connection.execute(
        select(func.count()).select_from(file).where(file.c.blob == blob, file.c.deleted_at.is_(None))
    ).scalar_one()
