"""SQL of releases and their aliases.

Invariant: versions are allocated by the database, one higher than the product's last; `alias_move` is only
appended to, and where an alias points is its newest move.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, RowMapping, func, insert, select

from gristmill.core.clock import Clock
from gristmill.core.errors import Conflict, NotFound
from gristmill.core.release import PRODUCTION, AliasMove, Release
from gristmill.store.tables.chain import alias_move, artifact_cost, release


def add_release(c: Connection, clock: Clock, **values: Any) -> Release:
    """Register a release.

    Args:
        c: a writing connection.
        clock: for its id and time.
        **values: the fields of `core.release.Release` but id, version and created_at; a `public_name` that
            ends in ":" gets the end of the release's id appended, as `ft:<base>:<customer>:<suffix>:<id>`.

    Returns:
        The release with the version that was allocated; a run that has a release already returns that one.
    """
    run_id = values.get("run_id")
    own = {"id": clock.new_id("rel"), "created_at": clock.now().isoformat()}
    if run_id is not None:
        found = c.execute(select(release).where(release.c.run_id == run_id)).mappings().first()
        if found is not None:
            return _release(found)
    public_name = values.get("public_name")
    if public_name is not None and public_name.endswith(":"):
        own["public_name"] = public_name + own["id"][-8:]
    following = (
        select(func.coalesce(func.max(release.c.version), 0) + 1)
        .where(release.c.product == values["product"])
        .scalar_subquery()
    )
    statement = insert(release).values(version=following, **(values | own)).returning(release)
    return _release(c.execute(statement).mappings().one())


def get_release(c: Connection, name: str, customer_id: str | None = None) -> Release:
    """A release by id, public `ft:…` name, `product@version`, `product@alias` or product (its production).

    Args:
        c: a connection.
        name: any of the above.
        customer_id: when given, only what this customer may know of: its own releases and products.

    Raises:
        NotFound: none is called so, or it is another customer's.
    """
    found = _by_name(c, name)
    if found is None or (customer_id is not None and found.customer_id not in (None, customer_id)):
        raise NotFound(
            f"There is no release {name!r}.", hint="List them: gristmill release list.", param="release"
        )
    return found


def list_releases(c: Connection, product: str | None = None, customer_id: str | None = None) -> list[Release]:
    """Releases, newest first; of one product or one customer when given."""
    query = select(release).order_by(release.c.created_at.desc(), release.c.id.desc())
    if product is not None:
        query = query.where(release.c.product == product)
    if customer_id is not None:
        query = query.where(release.c.customer_id == customer_id)
    return [_release(row) for row in c.execute(query).mappings()]


def move_alias(
    c: Connection, clock: Clock, product: str, alias: str, release_id: str | None, reason: str
) -> AliasMove:
    """Append a move of an alias; a move to where it points already changes nothing.

    Raises:
        NotFound: no such release. Conflict: it is a release of another product.
    """
    if release_id is not None:
        chosen = get_release(c, release_id)
        if chosen.product != product:
            raise Conflict(f"{release_id} is a release of {chosen.product}, not of {product}.")
    last = _last_move(c, product, alias)
    if last is not None and last.release_id == release_id:
        return last
    identity = clock.new_id("mov")
    while last is not None and identity <= last.id:  # two ids of one millisecond sort by chance
        identity = clock.new_id("mov")
    move = AliasMove(identity, product, alias, release_id, reason, clock.now().isoformat())
    c.execute(insert(alias_move).values(**{name: getattr(move, name) for name in move.__struct_fields__}))
    return move


def promote(c: Connection, clock: Clock, name: str, alias: str = PRODUCTION) -> AliasMove:
    """Point a product's alias at one of its releases: the deploy."""
    chosen = get_release(c, name)
    return move_alias(c, clock, chosen.product, alias, chosen.id, "promote")


def rollback(c: Connection, clock: Clock, product: str, alias: str = PRODUCTION) -> AliasMove:
    """Point an alias back at the release it named before: the rollback.

    A second rollback goes on to the one before that, as steps back along the promotions that remain.

    Raises:
        NotFound: the product has no such alias. Conflict: there is no earlier release to go back to.
    """
    moves = history(c, product, alias)
    if not moves:
        raise NotFound(f"{product} has no alias {alias!r}.", param="alias")
    stack: list[str] = []
    for move in moves:
        if move.reason == "rollback":
            while stack and stack[-1] != move.release_id:
                stack.pop()
        elif move.release_id is not None and (not stack or stack[-1] != move.release_id):
            stack.append(move.release_id)
    earlier = stack[:-1] if moves[-1].release_id is not None else stack
    if not earlier:
        raise Conflict(f"{product} {alias} has no earlier release to roll back to.", param="alias")
    return move_alias(c, clock, product, alias, earlier[-1], "rollback")


def current(c: Connection, product: str, alias: str = PRODUCTION) -> Release | None:
    """The release an alias points at, or None."""
    last = _last_move(c, product, alias)
    return None if last is None or last.release_id is None else get_release(c, last.release_id)


def aliases(c: Connection) -> dict[tuple[str, str], str]:
    """Where every alias points: (product, alias) → release id."""
    newest = select(func.max(alias_move.c.id)).group_by(alias_move.c.product, alias_move.c.alias)
    rows = c.execute(select(alias_move).where(alias_move.c.id.in_(newest))).mappings()
    return {
        (row["product"], row["alias"]): row["release_id"] for row in rows if row["release_id"] is not None
    }


def history(c: Connection, product: str, alias: str | None = None) -> list[AliasMove]:
    """Every move of a product's aliases, oldest first."""
    query = select(alias_move).where(alias_move.c.product == product).order_by(alias_move.c.id)
    if alias is not None:
        query = query.where(alias_move.c.alias == alias)
    return [_move(row) for row in c.execute(query).mappings()]


def add_cost(
    c: Connection, clock: Clock, release_id: str, purpose: str, amount: int, currency: str, seconds: float
) -> None:
    """Note what a release cost to make; once per purpose ("training", "evaluation").

    Args:
        c: a writing connection.
        clock: for its id and time.
        release_id: whose cost.
        purpose: what for.
        amount: nano-units.
        currency: of the amount.
        seconds: of machine time.
    """
    mine = (artifact_cost.c.release_id == release_id) & (artifact_cost.c.purpose == purpose)
    if c.execute(select(artifact_cost.c.id).where(mine)).first() is not None:
        return
    values = {"id": clock.new_id("cst"), "release_id": release_id, "purpose": purpose, "seconds": seconds}
    at = clock.now().isoformat()
    c.execute(insert(artifact_cost).values(amount=amount, currency=currency, at=at, **values))


def _by_name(c: Connection, name: str) -> Release | None:
    direct = (release.c.id == name) | (release.c.public_name == name)
    found = c.execute(select(release).where(direct)).mappings().first()
    if found is not None:
        return _release(found)
    product, _, point = name.partition("@")
    if point.isdigit():
        numbered = (release.c.product == product) & (release.c.version == int(point))
        row = c.execute(select(release).where(numbered)).mappings().first()
        return None if row is None else _release(row)
    last = _last_move(c, product, point or PRODUCTION)
    return None if last is None or last.release_id is None else _by_name(c, last.release_id)


def _last_move(c: Connection, product: str, alias: str) -> AliasMove | None:
    mine = (alias_move.c.product == product) & (alias_move.c.alias == alias)
    row = (
        c.execute(select(alias_move).where(mine).order_by(alias_move.c.id.desc()).limit(1)).mappings().first()
    )
    return None if row is None else _move(row)


def _release(row: RowMapping) -> Release:
    return Release(**{name: row[name] for name in Release.__struct_fields__})


def _move(row: RowMapping) -> AliasMove:
    return AliasMove(**{name: row[name] for name in AliasMove.__struct_fields__})
