"""Customers, keys, plans and the index that authenticates, on a real database."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gristmill.core.errors import NotAuthenticated, NotFound, UnknownField, UsageError
from gristmill.core.recipe import PlanSpec, PriceSpec
from gristmill.stages.access import queries
from gristmill.stages.access.index import AccessIndex
from gristmill.store.migrate import migrate
from gristmill.store.session import Database
from gristmill.testing.money import FakeClock

CLOCK = FakeClock()
PRICE = PriceSpec(meter="items", pricing="per_unit", params={"amount": "0.01"})


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database with the internal plan, to copy."""
    database = Database(tmp_path_factory.mktemp("template") / "ledger.db")
    migrate(database)
    with database.write() as c:
        queries.seed_internal_plan(c, CLOCK)
    database.close()
    return database.path


@pytest.fixture
def db(template: Path, tmp_path: Path) -> Iterator[Database]:
    """A database with the internal plan and nothing else."""
    database = Database(Path(shutil.copy(template, tmp_path / "ledger.db")))
    yield database
    database.close()


def key_of(db: Database, name: str = "Ann") -> tuple[str, str]:
    """A new customer's key: (id, whole key)."""
    with db.write() as c:
        made = queries.create_customer(c, CLOCK, name=name)
        record, secret = queries.create_key(c, CLOCK, customer_id=made.id)
    return record.id, secret


def bearer(secret: str) -> bytes:
    """The header's value."""
    return f"Bearer {secret}".encode()


def test_a_key_speaks_for_its_customer_and_no_secret_is_stored(db: Database) -> None:
    """Broken: a key names nobody or somebody else, or a stolen database gives the keys away."""
    _, secret = key_of(db)
    index = AccessIndex(db, CLOCK)
    index.refresh()
    caller = index.authenticate(bearer(secret), CLOCK.now())
    assert (caller.customer.slug, caller.plan.name) == ("ann", "internal")
    assert caller.period_start == "2026-11-01T00:00:00+00:00"
    assert caller.period_end == "2026-12-01T00:00:00+00:00"
    assert secret[17:].encode() not in db.path.read_bytes()


@pytest.mark.parametrize("header", [None, b"", b"Basic abc", b"Bearer", b"Bearer gm-x", b"Bearer sk-1"])
def test_no_valid_key_is_401(db: Database, header: bytes | None) -> None:
    """Broken: a request without a good key gets through or crashes."""
    index = AccessIndex(db, CLOCK)
    index.refresh()
    with pytest.raises(NotAuthenticated):
        index.authenticate(header, CLOCK.now())


def test_unknown_wrong_and_revoked_keys_are_told_the_same(db: Database) -> None:
    """Broken: the answer tells an attacker which public ids exist."""
    key_id, secret = key_of(db)
    _, unknown = key_of(db, "Bob")
    index = AccessIndex(db, CLOCK)
    index.refresh()
    assert index.authenticate(bearer(unknown), CLOCK.now())
    with db.write() as c:
        queries.revoke_key(c, CLOCK, key_id)
    index.refresh()
    with pytest.raises(NotAuthenticated) as revoked:
        index.authenticate(bearer(secret), CLOCK.now())
    with pytest.raises(NotAuthenticated) as malformed:
        index.authenticate(bearer(secret[:-1]), CLOCK.now())
    assert revoked.value.message == malformed.value.message
    assert secret not in revoked.value.message


def test_revoking_again_keeps_the_first_time_and_an_unknown_key_is_not_found(db: Database) -> None:
    """Broken: the record of when a key stopped working changes later."""
    key_id, _ = key_of(db)
    with db.write() as c:
        first = queries.revoke_key(c, CLOCK, key_id)
        assert queries.revoke_key(c, CLOCK, first.public_id).revoked_at == first.revoked_at
        with pytest.raises(NotFound):
            queries.revoke_key(c, CLOCK, "key_none")


def test_the_period_rolls_over_at_midnight_utc_of_the_first(db: Database) -> None:
    """Broken: usage of December is charged, and its quota counted, in November."""
    _, secret = key_of(db)
    index = AccessIndex(db, CLOCK)
    index.refresh()
    november = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)
    december = datetime(2026, 12, 1, tzinfo=UTC)
    assert index.authenticate(bearer(secret), november).period_start.startswith("2026-11")
    rolled = index.authenticate(bearer(secret), december)
    assert (rolled.period_start[:7], rolled.period_end[:7]) == ("2026-12", "2027-01")


def test_slugs_are_unique_and_safe_in_a_model_name(db: Database) -> None:
    """Broken: two customers share a prefix of `ft:` names, or a name breaks its syntax."""
    with db.write() as c:
        made = [
            queries.create_customer(c, CLOCK, name=name).slug
            for name in ("Émile & Co: GmbH", "Emile Co GmbH", "北京公司", "上海公司", "a" * 90)
        ]
    assert made == ["emile-co-gmbh", "emile-co-gmbh-2", "customer", "customer-2", "a" * 32]


def test_a_customer_is_internal_only_until_something_is_for_sale(db: Database) -> None:
    """Broken: forgetting the plan gives the product away."""
    with db.write() as c:
        queries.create_customer(c, CLOCK, name="Ann")
        queries.create_plan(c, CLOCK, PlanSpec(name="pay", prices=[PRICE]))
        with pytest.raises(UsageError) as refused:
            queries.create_customer(c, CLOCK, name="Bob")
        assert refused.value.param == "plan"
        queries.create_customer(c, CLOCK, name="Bob", plan_name="internal")
        with pytest.raises(NotFound):
            queries.create_customer(c, CLOCK, name="Cy", plan_name="none")


def test_changed_terms_are_a_new_version_and_the_same_terms_are_not(db: Database) -> None:
    """Broken: a plan is edited under its customers, or launching twice piles up versions."""
    with db.write() as c:
        first = queries.create_plan(c, CLOCK, PlanSpec(name="pay", prices=[PRICE]))
        again = queries.create_plan(c, CLOCK, PlanSpec(name="pay", prices=[PRICE]))
        second = queries.create_plan(c, CLOCK, PlanSpec(name="pay", prices=[PRICE], fee=5))
        assert (first.number, again, second.number) == (1, first, 2)
        assert queries.find_plan(c, first.id) == first
        assert queries.find_plan(c, "pay") == second


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({"prices": [PriceSpec(meter="items", pricing="per_moon", params={})]}, NotFound),
        ({"prices": [PriceSpec(meter="items", pricing="per_unit", params={"amout": "1"})]}, UnknownField),
        ({"prices": [PriceSpec(meter="items", pricing="per_unit", params={"amount": 0.1})]}, UsageError),
        ({"prices": []}, UsageError),
        ({"prices": [PRICE], "quota": {"input_tokens": 5}}, UsageError),
        ({"prices": [PRICE], "name": "internal"}, UsageError),
    ],
)
def test_a_plan_that_cannot_be_charged_is_refused(
    db: Database, spec: dict[str, Any], error: type[Exception]
) -> None:
    """Broken: a plan is sold whose usage cannot be rated, or whose quota never bites."""
    with db.write() as c, pytest.raises(error):
        queries.create_plan(c, CLOCK, PlanSpec(**({"name": "pay"} | spec)))


def test_subscribing_ends_the_former_subscription(db: Database) -> None:
    """Broken: a customer pays two plans, or keeps its old terms after a change."""
    _, secret = key_of(db)
    index = AccessIndex(db, CLOCK)
    index.refresh()
    before = index.authenticate(bearer(secret), CLOCK.now())
    with db.write() as c:
        queries.create_plan(c, CLOCK, PlanSpec(name="pay", prices=[PRICE]))
        made = queries.subscribe(c, CLOCK, customer_id="ann", plan_name="pay")
        open_ones = c.exec_driver_sql("SELECT id FROM subscription WHERE ended_at IS NULL").scalars().all()
    index.refresh()
    after = index.authenticate(bearer(secret), CLOCK.now())
    assert open_ones == [made] == [after.subscription_id]
    assert before.subscription_id != made
    assert after.plan.name == "pay"
