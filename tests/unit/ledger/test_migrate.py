"""Migrations: the schema they make is the schema the code speaks of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from gristmill.core.errors import UsageError
from gristmill.store import migrate as module
from gristmill.store.migrate import HEAD, migrate
from gristmill.store.session import Database
from gristmill.store.tables import metadata


def schema(database: Database) -> dict[str, list[str]]:
    """Name → parts of each CREATE statement, sorted, since the order of constraints means nothing."""
    query = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name <> 'alembic_version'"
    with database.read() as connection:
        rows = connection.exec_driver_sql(query).all()
    return {name: sorted(re.split(r",\s*\n|\(\s*\n", re.sub(r"\s*\n\)$", "", sql))) for name, sql in rows}


def test_the_migrated_schema_is_the_metadata(tmp_path: Path) -> None:
    """Broken: a table was changed without a migration, so an upgraded home and a new one would differ."""
    migrated, created = Database(tmp_path / "migrated.db"), Database(tmp_path / "created.db")
    migrate(migrated)
    metadata.create_all(created.engine)

    def clean(parts: dict[str, list[str]]) -> dict[str, list[str]]:
        return {name: [" ".join(part.split()) for part in each] for name, each in parts.items()}

    assert clean(schema(migrated)) == clean(schema(created))
    with migrated.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_migrating_again_changes_nothing_and_head_is_named(tmp_path: Path) -> None:
    """Broken: every start migrates again, or HEAD was not raised with a new migration."""
    database = Database(tmp_path / "ledger.db")
    migrate(database)
    before = schema(database)
    migrate(database)
    assert schema(database) == before
    config = Config()
    config.set_main_option("script_location", str(Path(module.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    """Broken: an older Gristmill writes into a schema it does not know."""
    database = Database(tmp_path / "ledger.db")
    migrate(database)
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UsageError, match="9999"):
        migrate(database)


def test_a_migration_that_fails_leaves_nothing_half_done(tmp_path: Path) -> None:
    """Broken: a home is stuck between two schemas."""
    database = Database(tmp_path / "ledger.db")
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE subscription (id TEXT)")
    with pytest.raises(Exception, match="subscription"):
        migrate(database)
    assert list(schema(database)) == ["subscription"]
