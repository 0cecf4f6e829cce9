"""The unit of work when the disk gives out."""

from __future__ import annotations

import pytest

from gristmill.core.errors import Unavailable
from gristmill.store.session import Database


def test_a_full_disk_is_told_and_nothing_is_half_done(db: Database) -> None:
    """An operator with a full disk would read of an unexpected failure, or find half a change."""
    with pytest.raises(Unavailable, match="full") as told:
        _write_too_much(db)
    assert "Free space" in str(told.value.hint)
    with db.read() as connection:
        assert connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE name = 'big'").all() == []


def _write_too_much(db: Database) -> None:
    with db.write() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        connection.exec_driver_sql("CREATE TABLE big AS SELECT zeroblob(4000000) AS data")
