"""The one MetaData, with constraint names that Alembic can speak of, and column shorthands."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, MetaData, String, Text

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def key(name: str = "id") -> Column[str]:
    """A primary key holding a prefixed, sortable id."""
    return Column(name, String(64), primary_key=True)


def text(name: str, **options: Any) -> Column[str]:
    """A required text column."""
    return Column(name, Text, nullable=options.pop("nullable", False), **options)


def whole(name: str, **options: Any) -> Column[int]:
    """A required 64-bit integer: nano-units, counts, numbers."""
    return Column(name, BigInteger, nullable=options.pop("nullable", False), **options)


def document(name: str, **options: Any) -> Column[Any]:
    """A required JSON document."""
    return Column(name, JSON, nullable=options.pop("nullable", False), **options)
