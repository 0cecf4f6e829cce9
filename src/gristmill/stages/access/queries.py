"""Customers, keys, plans and subscriptions in the database.

Invariant: slugs, plan numbers and subscriptions are allocated inside the caller's write transaction, rows of
plans are never updated, and a customer has exactly one open subscription.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, func, insert, or_, select, update

from gristmill.core.account import Caller, Customer, Plan
from gristmill.core.clock import Clock
from gristmill.core.errors import NotFound, UsageError
from gristmill.core.recipe import PlanSpec
from gristmill.stages.access import keys
from gristmill.stages.access.period import period_of
from gristmill.stages.access.plans import INTERNAL, internal_plan, to_plan
from gristmill.store.tables.account import api_key, customer, plan, subscription

_SLUG_CHARS = 32


def create_customer(c: Connection, clock: Clock, *, name: str, plan_name: str | None = None) -> Customer:
    """Add a customer and subscribe it.

    Args:
        c: a write connection.
        clock: time and ids.
        name: display name.
        plan_name: plan name or version id; None means `internal`, refused once a sellable plan exists.

    Raises:
        UsageError: an empty name, or no plan named although a sellable one exists. NotFound: an unknown plan.
    """
    if not name.strip():
        raise UsageError("A customer needs a name.", param="name")
    if plan_name is None:
        sellable = [p.name for p in list_plans(c) if p.is_sellable]
        if sellable:
            raise UsageError(
                "Name the customer's plan: sellable plans exist, so none is given for free.",
                hint=f"Add --plan NAME (known: {', '.join(sorted(set(sellable)))}; or {INTERNAL}).",
                param="plan",
            )
    chosen = find_plan(c, plan_name or INTERNAL)
    row = Customer(clock.new_id("cust"), name.strip(), _free_slug(c, name))
    c.execute(
        insert(customer).values(
            id=row.id, name=row.name, slug=row.slug, is_active=True, created_at=_iso(clock.now())
        )
    )
    subscribe(c, clock, customer_id=row.id, plan_name=chosen.id)
    return row


def list_customers(c: Connection) -> list[Customer]:
    """All customers, oldest first."""
    return [_customer(row) for row in c.execute(select(customer).order_by(customer.c.id)).mappings()]


def find_customer(c: Connection, name: str) -> Customer:
    """A customer by id, slug or display name (id and slug first).

    Raises:
        NotFound: none, or several of that display name.
    """
    rows = c.execute(
        select(customer).where(or_(customer.c.id == name, customer.c.slug == name, customer.c.name == name))
    ).mappings()
    found = sorted((_customer(row) for row in rows), key=lambda one: name not in (one.id, one.slug))
    if not found or (len(found) > 1 and name not in (found[0].id, found[0].slug)):
        hint = "Use the id: several have this name." if found else "See: gristmill customer list."
        raise NotFound(f"There is no one customer {name!r}.", hint=hint, param="customer")
    return found[0]


def create_key(
    c: Connection, clock: Clock, *, customer_id: str, name: str = ""
) -> tuple[keys.KeyRecord, str]:
    """Add a key; the second value is the whole key, which nothing can show again."""
    owner = find_customer(c, customer_id)
    minted = keys.mint(clock)
    record = keys.KeyRecord(
        clock.new_id("key"), owner.id, name or "default", minted.public_id, _iso(clock.now())
    )
    c.execute(insert(api_key).values(**msgspec.to_builtins(record), secret_sha256=minted.secret_sha256))
    return record, minted.text


def list_keys(c: Connection, customer_id: str | None = None) -> list[keys.KeyRecord]:
    """Keys without secrets, of one customer or (None) of all, oldest first."""
    query = select(api_key).order_by(api_key.c.id)
    if customer_id is not None:
        query = query.where(api_key.c.customer_id == find_customer(c, customer_id).id)
    return [_key(row) for row in c.execute(query).mappings()]


def revoke_key(c: Connection, clock: Clock, key_id: str) -> keys.KeyRecord:
    """Revoke a key by id or public id; revoking twice keeps the first time.

    Raises:
        NotFound: no such key.
    """
    is_it = or_(api_key.c.id == key_id, api_key.c.public_id == key_id)
    c.execute(
        update(api_key).where(is_it, api_key.c.revoked_at.is_(None)).values(revoked_at=_iso(clock.now()))
    )
    row = c.execute(select(api_key).where(is_it)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no key {key_id!r}.", hint="See: gristmill key list.", param="key")
    return _key(row)


def create_plan(c: Connection, clock: Clock, spec: PlanSpec) -> Plan:
    """Add the next version of a plan; the terms of its newest version again return that version.

    Raises:
        NotFound: an unknown pricing plug-in. UsageError: params it refuses, a reserved name, a dead quota.
    """
    newest = (
        c.execute(select(func.max(plan.c.number)).where(plan.c.name == spec.name)).scalar_one_or_none() or 0
    )
    made = to_plan(spec, clock.new_id("plan"), newest + 1)
    if newest:
        latest = find_plan(c, spec.name)
        if msgspec.structs.replace(made, id=latest.id, number=latest.number) == latest:
            return latest
    _insert_plan(c, clock, made)
    return made


def list_plans(c: Connection) -> list[Plan]:
    """Every version of every plan, by name and number."""
    rows = c.execute(select(plan.c.document).order_by(plan.c.name, plan.c.number)).scalars()
    return [msgspec.convert(document, Plan) for document in rows]


def find_plan(c: Connection, name: str) -> Plan:
    """A plan version by id, or the newest version of a name.

    Raises:
        NotFound: no such plan.
    """
    query = select(plan.c.document).where(or_(plan.c.id == name, plan.c.name == name))
    document = c.execute(query.order_by(plan.c.number.desc()).limit(1)).scalar_one_or_none()
    if document is None:
        raise NotFound(f"There is no plan {name!r}.", hint="See: gristmill plan list.", param="plan")
    return msgspec.convert(document, Plan)


def seed_internal_plan(c: Connection, clock: Clock, currency: str = "USD") -> Plan:
    """The plan `internal`, added when absent."""
    found = c.execute(select(plan.c.document).where(plan.c.name == INTERNAL)).scalar_one_or_none()
    if found is not None:
        return msgspec.convert(found, Plan)
    made = internal_plan(clock.new_id("plan"), currency)
    _insert_plan(c, clock, made)
    return made


def subscribe(c: Connection, clock: Clock, *, customer_id: str, plan_name: str) -> str:
    """Put a customer on a plan version from now on, ending the former subscription; returns the new id."""
    owner, chosen, at = find_customer(c, customer_id), find_plan(c, plan_name), _iso(clock.now())
    is_open = (subscription.c.customer_id == owner.id) & subscription.c.ended_at.is_(None)
    c.execute(update(subscription).where(is_open).values(ended_at=at))
    made = clock.new_id("sub")
    c.execute(
        insert(subscription).values(
            id=made, customer_id=owner.id, plan_id=chosen.id, started_at=at, ended_at=None
        )
    )
    return made


def load_callers(c: Connection, now: datetime) -> dict[str, tuple[bytes, Caller]]:
    """Every working key: public id → (SHA-256 of its secret, who it speaks for in the period of `now`)."""
    query = (
        select(
            api_key.c.id.label("key_id"),
            api_key.c.public_id,
            api_key.c.secret_sha256,
            customer,
            subscription.c.id.label("subscription_id"),
            subscription.c.plan_id,
        )
        .join(customer, customer.c.id == api_key.c.customer_id)
        .join(subscription, (subscription.c.customer_id == customer.c.id) & subscription.c.ended_at.is_(None))
        .where(api_key.c.revoked_at.is_(None))
    )
    plans = {one.id: one for one in list_plans(c)}
    start, end = period_of(now)
    found: dict[str, tuple[bytes, Caller]] = {}
    for row in c.execute(query).mappings():
        caller = Caller(
            row["key_id"], _customer(row), plans[row["plan_id"]], row["subscription_id"], start, end
        )
        found[row["public_id"]] = (bytes.fromhex(row["secret_sha256"]), caller)
    return found


def _insert_plan(c: Connection, clock: Clock, made: Plan) -> None:
    document = msgspec.to_builtins(made)
    at = _iso(clock.now())
    c.execute(
        insert(plan).values(id=made.id, name=made.name, number=made.number, document=document, created_at=at)
    )


def _free_slug(c: Connection, name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    stem = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:_SLUG_CHARS].strip("-") or "customer"
    taken = set(c.execute(select(customer.c.slug).where(customer.c.slug.like(f"{stem}%"))).scalars())
    if stem not in taken:
        return stem
    return next(slug for n in range(2, len(taken) + 3) if (slug := f"{stem}-{n}") not in taken)


def _customer(row: Any) -> Customer:
    return Customer(row["id"], row["name"], row["slug"], row["is_active"] and row["parked_reason"] is None)


def _key(row: Any) -> keys.KeyRecord:
    fields = ("id", "customer_id", "name", "public_id", "created_at", "revoked_at")
    return keys.KeyRecord(*(row[field] for field in fields))


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="microseconds")
