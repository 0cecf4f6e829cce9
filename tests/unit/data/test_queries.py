"""Versions in SQL: numbers, look-up, and deletion that keeps the evidence."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from sqlalchemy import insert

from gristmill.core.errors import Conflict, Gone, NotFound
from gristmill.stages.data.prepare import Prepared
from gristmill.stages.data.queries import add_version, delete_version, get_version, list_versions
from gristmill.store.session import Database
from gristmill.store.tables.chain import run

PREPARED = Prepared(
    task="note",
    parts={"train": "aa", "validation": "bb", "test": "cc"},
    counts={"read": 3, "kept": 3},
    digest="d1",
    lineage={"parents": [], "steps": []},
    licence="CC0-1.0",
    source="rows.csv",
)
OTHER = msgspec.structs.replace(PREPARED, digest="d2")


def test_numbers_count_up_and_are_never_used_twice(db: Database, bench: Any) -> None:
    """Two states of the data would answer to one name."""
    clock = bench.clock
    with db.write() as c:
        first = add_version(c, clock, name="reviews", prepared=PREPARED)
        second = add_version(c, clock, name="reviews", prepared=OTHER)
        again = add_version(c, clock, name="reviews", prepared=PREPARED)
        elsewhere = add_version(c, clock, name="notes", prepared=PREPARED)
    assert (first.number, second.number, elsewhere.number) == (1, 2, 1)
    assert again == first
    with db.write() as c:
        delete_version(c, clock, "reviews@2")
        third = add_version(c, clock, name="reviews", prepared=msgspec.structs.replace(PREPARED, digest="d3"))
    assert third.number == 3
    with db.read() as c:
        assert [(v.dataset, v.number) for v in list_versions(c)] == [
            ("notes", 1),
            ("reviews", 1),
            ("reviews", 3),
        ]
        assert [v.number for v in list_versions(c, "reviews")] == [1, 3]


def test_look_up_by_id_name_and_number(db: Database, bench: Any) -> None:
    """A version could not be named in a recipe or on the command line."""
    with db.write() as c:
        first = add_version(c, bench.clock, name="reviews", prepared=PREPARED)
        second = add_version(c, bench.clock, name="reviews", prepared=OTHER)
    with db.read() as c:
        assert get_version(c, first.id) == get_version(c, "reviews@1") == first
        assert get_version(c, "reviews") == second
        assert first.id.startswith("dsv_")
        with pytest.raises(NotFound) as caught:
            get_version(c, "review@1")
        assert caught.value.hint == "Did you mean 'reviews'?"
        for name in ("reviews@3", "reviews@", "@1", "", "reviews@99999999999999999999999"):
            with pytest.raises(NotFound):
                get_version(c, name)


def test_a_deleted_version_is_gone_and_returns_with_its_number(db: Database, bench: Any) -> None:
    """A deleted version would be trained on again, or the same rows could never be added again."""
    with db.write() as c:
        version = add_version(c, bench.clock, name="reviews", prepared=PREPARED)
        assert delete_version(c, bench.clock, "reviews") == version
        with pytest.raises(Gone):
            get_version(c, version.id)
        with pytest.raises(Gone):
            delete_version(c, bench.clock, version.id)
        renewed = msgspec.structs.replace(PREPARED, parts={"train": "ee"})
        again = add_version(c, bench.clock, name="reviews", prepared=renewed)
    assert (again.id, again.number, again.parts) == (version.id, 1, {"train": "ee"})


def test_a_version_that_a_run_uses_stays(db: Database, bench: Any) -> None:
    """The evidence of what a released model learnt would be lost."""
    with db.write() as c:
        version = add_version(c, bench.clock, name="reviews", prepared=PREPARED)
        c.execute(
            insert(run).values(
                id="run_1",
                product="p",
                task="note",
                state="succeeded",
                dataset_version_id=version.id,
                base="b",
                recipe={},
                recipe_digest="",
                facts={},
                created_at="",
            )
        )
        with pytest.raises(Conflict, match="run_1"):
            delete_version(c, bench.clock, version.id)


def test_names_belong_to_one_task_and_one_customer(db: Database, bench: Any) -> None:
    """A customer could add to, or read, another's data by its name."""
    with db.write() as c:
        mine = add_version(c, bench.clock, name="mine", prepared=PREPARED, customer_id="cus_1")
        for customer_id, prepared in (
            ("cus_2", PREPARED),
            (None, PREPARED),
            ("cus_1", msgspec.structs.replace(OTHER, task="chat")),
        ):
            with pytest.raises(Conflict):
                add_version(c, bench.clock, name="mine", prepared=prepared, customer_id=customer_id)
    with db.read() as c:
        assert get_version(c, mine.id, customer_id="cus_1") == mine
        assert list_versions(c, customer_id="cus_2") == []
        with pytest.raises(NotFound):
            get_version(c, mine.id, customer_id="cus_2")
