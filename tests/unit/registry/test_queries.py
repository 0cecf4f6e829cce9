"""Releases and aliases: versions without gaps or doubles, and a history that tells every move."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gristmill.core.clock import SystemClock
from gristmill.core.errors import Conflict, NotFound
from gristmill.core.release import Release
from gristmill.stages.registry import queries
from gristmill.store.session import Database

CLOCK = SystemClock()


def add(db: Database, product: str = "desk", **values: Any) -> Release:
    """Register a release."""
    given = {
        "product": product,
        "task": "toy",
        "engine": "toy",
        "kind": "model",
        "base": "b",
        "base_digest": None,
        "digest": "d",
        "customer_id": None,
        "public_name": None,
        "run_id": None,
        "report_id": None,
        "licence": "unknown",
        "card": "",
        "facts": {},
    }
    with db.write() as c:
        return queries.add_release(c, CLOCK, **(given | values))


def test_versions_are_allocated_without_gap_or_double(db: Database) -> None:
    """Two runs that end together would claim one version, and one of them would be lost."""
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda _: add(db), range(30)))
    with db.read() as c:
        assert sorted(r.version for r in queries.list_releases(c, "desk")) == list(range(1, 31))
    assert add(db, "other").version == 1


def test_a_run_registers_once(db: Database) -> None:
    """A server that died while registering would make two releases of one run."""
    first = add(db, run_id="run_1")
    assert add(db, run_id="run_1") == first
    assert add(db, run_id="run_2").version == 2


def test_names_find_releases_and_keep_customers_apart(db: Database) -> None:
    """A customer would see or use another customer's model."""
    mine = add(db, "ft", customer_id="cust_a", public_name="ft:base:acme::")
    assert mine.public_name == f"ft:base:acme::{mine.id[-8:]}"
    shared = add(db)
    with db.write() as c:
        queries.promote(c, CLOCK, shared.id)
        assert queries.get_release(c, mine.public_name, "cust_a") == mine
        for name in (mine.id, mine.public_name, "ft@1"):
            with pytest.raises(NotFound):
                queries.get_release(c, name, "cust_b")
        for name in (shared.id, "desk", "desk@1", "desk@production"):
            assert queries.get_release(c, name, "cust_b") == shared
        with pytest.raises(NotFound):
            queries.get_release(c, "desk@2")
        assert queries.list_releases(c, customer_id="cust_a") == [mine]


def test_promote_and_rollback_append_to_history(db: Database) -> None:
    """A rollback would go to the wrong release, or the record of a deploy would be lost."""
    one, two, three = add(db), add(db), add(db)
    with db.write() as c:
        assert queries.current(c, "desk") is None
        for release in (one, two, two, three):
            queries.promote(c, CLOCK, release.id)
        assert queries.rollback(c, CLOCK, "desk").release_id == two.id
        assert queries.rollback(c, CLOCK, "desk").release_id == one.id
        with pytest.raises(Conflict, match="no earlier release"):
            queries.rollback(c, CLOCK, "desk")
        queries.promote(c, CLOCK, three.id)
        assert queries.rollback(c, CLOCK, "desk").release_id == one.id
        moves = [(move.reason, move.release_id) for move in queries.history(c, "desk", "production")]
        current = queries.current(c, "desk")
    assert current == one
    assert moves == [
        ("promote", one.id),
        ("promote", two.id),
        ("promote", three.id),
        ("rollback", two.id),
        ("rollback", one.id),
        ("promote", three.id),
        ("rollback", one.id),
    ]


def test_a_removed_alias_names_nothing_and_comes_back(db: Database) -> None:
    """A product taken off would still be served, or could not be brought back."""
    one = add(db)
    with db.write() as c:
        queries.promote(c, CLOCK, one.id)
        assert queries.aliases(c) == {("desk", "production"): one.id}
        queries.move_alias(c, CLOCK, "desk", "production", None, "remove")
        assert queries.current(c, "desk") is None
        assert queries.aliases(c) == {}
        assert queries.rollback(c, CLOCK, "desk").release_id == one.id


def test_an_alias_stays_within_its_product(db: Database) -> None:
    """One product's customers would be answered by another product's model."""
    one = add(db, "other")
    with db.write() as c:
        with pytest.raises(Conflict, match="of other, not of desk"):
            queries.move_alias(c, CLOCK, "desk", "production", one.id, "promote")
        with pytest.raises(NotFound, match="no alias"):
            queries.rollback(c, CLOCK, "desk")
        with pytest.raises(NotFound):
            queries.promote(c, CLOCK, "rel_none")


def test_a_cost_is_noted_once(db: Database) -> None:
    """A step done again after a restart would double a release's training cost."""
    one = add(db)
    with db.write() as c:
        for _ in range(2):
            queries.add_cost(c, CLOCK, one.id, "training", 5, "USD", 1.0)
        rows = c.exec_driver_sql("SELECT amount FROM artifact_cost").fetchall()
    assert rows == [(5,)]
