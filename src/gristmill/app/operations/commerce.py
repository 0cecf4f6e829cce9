"""Operations on who pays: customers, keys, plans and wallets."""

from __future__ import annotations

import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from pydantic import Field

from gristmill.app.operations.base import Emit, Params, operation
from gristmill.app.platform import Platform
from gristmill.core.errors import UsageError
from gristmill.core.money import format_money, to_decimal, to_nano
from gristmill.core.recipe import PlanSpec, read, validated
from gristmill.stages.access import queries
from gristmill.store.ledger import accounts

_PLAN_COLUMNS = ("id", "name", "number", "billing", "currency", "models")


class CustomerCreate(Params):
    """Parameters of `customer create`."""

    positional: ClassVar[tuple[str, ...]] = ("name",)
    name: str = Field(description="Display name.")
    plan: str | None = Field(None, description="Plan to subscribe to (name or version id).")


@operation("customer", "create", CustomerCreate)
def customer_create(platform: Platform, params: CustomerCreate, _emit: Emit) -> dict[str, Any]:
    """Add a customer and subscribe it to a plan."""
    with platform.db.write() as connection:
        made = queries.create_customer(connection, platform.clock, name=params.name, plan_name=params.plan)
        plan = queries.find_plan(connection, params.plan or "internal")
    platform.access_changed()
    document: dict[str, Any] = msgspec.to_builtins(made)
    return document | {"plan": plan.name}


@operation("customer", "list", is_read=True, columns=("id", "name", "slug", "is_active"))
def customer_list(platform: Platform, _params: Params, _emit: Emit) -> list[dict[str, Any]]:
    """List customers."""
    with platform.db.read() as connection:
        return [msgspec.to_builtins(each) for each in queries.list_customers(connection)]


class KeyCreate(Params):
    """Parameters of `key create`."""

    positional: ClassVar[tuple[str, ...]] = ("customer",)
    customer: str = Field(description="Customer id, slug or name.")
    name: str = Field("default", description="What the key is for.")


@operation("key", "create", KeyCreate)
def key_create(platform: Platform, params: KeyCreate, _emit: Emit) -> dict[str, Any]:
    """Add an API key; its secret is shown now and never again."""
    with platform.db.write() as connection:
        owner = queries.find_customer(connection, params.customer)
        record, secret = queries.create_key(
            connection, platform.clock, customer_id=owner.id, name=params.name
        )
    platform.access_changed()
    document: dict[str, Any] = msgspec.to_builtins(record)
    return document | {"secret": secret}


class KeyList(Params):
    """Parameters of `key list`."""

    customer: str | None = Field(None, description="Only this customer's.")


@operation(
    "key", "list", KeyList, is_read=True, columns=("id", "customer_id", "name", "created_at", "revoked_at")
)
def key_list(platform: Platform, params: KeyList, _emit: Emit) -> list[dict[str, Any]]:
    """List API keys, without secrets."""
    with platform.db.read() as connection:
        return [msgspec.to_builtins(each) for each in queries.list_keys(connection, params.customer)]


class KeyRevoke(Params):
    """Parameters of `key revoke`."""

    positional: ClassVar[tuple[str, ...]] = ("key",)
    key: str = Field(description="Key id.")


@operation("key", "revoke", KeyRevoke)
def key_revoke(platform: Platform, params: KeyRevoke, _emit: Emit) -> dict[str, Any]:
    """Revoke an API key at once."""
    with platform.db.write() as connection:
        record = queries.revoke_key(connection, platform.clock, params.key)
    platform.access_changed()
    document: dict[str, Any] = msgspec.to_builtins(record)
    return document


class PlanCreate(Params):
    """Parameters of `plan create`."""

    positional: ClassVar[tuple[str, ...]] = ("file",)
    file: Path = Field(description="A recipe (file or folder) or a TOML file with [[plans]].")


@operation("plan", "create", PlanCreate, columns=_PLAN_COLUMNS)
def plan_create(platform: Platform, params: PlanCreate, _emit: Emit) -> list[dict[str, Any]]:
    """Add every plan of a recipe or file, as a new version where its terms changed."""
    specs = _plan_specs(params.file)
    if not specs:
        raise UsageError(f"{params.file.name} has no [[plans]].", param="file")
    with platform.db.write() as connection:
        made = [queries.create_plan(connection, platform.clock, spec) for spec in specs]
    platform.access_changed()
    return [msgspec.to_builtins(each) for each in made]


def _plan_specs(path: Path) -> list[PlanSpec]:
    if path.is_dir() or path.name == "gristmill.toml":
        return read(path).plans
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"There is no file {path}.", param="file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name} is not valid TOML: {error}.", param="file") from None
    return [validated(PlanSpec, each, f"a plan in {path.name}") for each in document.get("plans", [])]


@operation("plan", "list", is_read=True, columns=_PLAN_COLUMNS)
def plan_list(platform: Platform, _params: Params, _emit: Emit) -> list[dict[str, Any]]:
    """List every version of every plan."""
    with platform.db.read() as connection:
        return [msgspec.to_builtins(each) for each in queries.list_plans(connection)]


class WalletTopup(Params):
    """Parameters of `wallet topup`."""

    positional: ClassVar[tuple[str, ...]] = ("customer", "amount")
    customer: str = Field(description="Customer id, slug or name.")
    amount: Decimal = Field(gt=0, description="Amount received, in currency units.")
    currency: str | None = Field(None, description="ISO 4217 code; the home's currency when absent.")
    reference: str | None = Field(None, description="Payment reference; the same one is booked once.")


@operation("wallet", "topup", WalletTopup)
def wallet_topup(platform: Platform, params: WalletTopup, _emit: Emit) -> dict[str, Any]:
    """Add prepaid credit that was paid for."""
    currency = params.currency or platform.settings.currency
    with platform.db.read() as connection:
        owner = queries.find_customer(connection, params.customer)
    source = params.reference or platform.clock.new_id("topup")
    platform.ledger.top_up_now(owner.id, to_nano(params.amount), currency, source)
    return _wallet(platform, owner.id, currency) | {"id": source}


class WalletShow(Params):
    """Parameters of `wallet show`."""

    positional: ClassVar[tuple[str, ...]] = ("customer",)
    customer: str = Field(description="Customer id, slug or name.")
    currency: str | None = Field(None, description="ISO 4217 code; the home's currency when absent.")


@operation("wallet", "show", WalletShow, is_read=True)
def wallet_show(platform: Platform, params: WalletShow, _emit: Emit) -> dict[str, Any]:
    """Show a customer's prepaid balance."""
    with platform.db.read() as connection:
        owner = queries.find_customer(connection, params.customer)
    return _wallet(platform, owner.id, params.currency or platform.settings.currency) | {"id": owner.id}


def _wallet(platform: Platform, customer_id: str, currency: str) -> dict[str, Any]:
    """Balances as the customer sees them; a lease is still the customer's money."""
    ledger = platform.ledger
    free = -ledger.balance(accounts.wallet(customer_id), currency)
    leased = -ledger.balance(accounts.lease(customer_id, ledger.gateway), currency)
    return {
        "customer_id": customer_id,
        "currency": currency,
        "balance": f"{to_decimal(free + leased):f}",
        "leased_to_gateway": f"{to_decimal(leased):f}",
        "shown": format_money(free + leased, currency, 6),
    }
