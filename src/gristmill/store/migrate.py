"""Bringing `ledger.db` to this version's schema, all steps in one transaction or none.

Invariant: a database written by a newer Gristmill is refused, never changed.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from gristmill.core.errors import UsageError
from gristmill.store.session import Database

HEAD = "0001"
_FOLDER = Path(__file__).parent / "migrations"


def migrate(database: Database) -> None:
    """Upgrade to `HEAD`; does nothing (and does not load Alembic) when it is there already.

    Raises:
        UsageError: a newer Gristmill wrote this database.
    """
    with database.read() as connection:
        if _current(connection) == HEAD:
            return
    with database.write() as connection:
        _upgrade(connection)


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return version


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    current = _current(connection)
    if current is not None and current not in known:
        raise UsageError(
            f"ledger.db has schema {current}; this Gristmill knows up to {HEAD}.",
            hint="Start the version of Gristmill that wrote it, or a newer one.",
            param="home",
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
