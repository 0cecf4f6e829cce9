"""What tests of several stages share: an empty ledger, and a world of money whose books must balance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gristmill.stages.bill.rate import PluginRater
from gristmill.store.session import Database
from gristmill.store.tables import metadata
from gristmill.testing.money import World


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """An empty ledger.db with every table."""
    made = Database(tmp_path / "ledger.db")
    metadata.create_all(made.engine)
    yield made
    made.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A home's ledger; whatever a test does to it, every promise of the books must hold at the end."""
    made = World(tmp_path, PluginRater())
    yield made
    assert made.broken() == []
    assert set(made.sums().values()) <= {0}
    made.close()
