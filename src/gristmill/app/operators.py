"""Operator credentials: made once, shown once, stored as SHA-256.

Invariant: the secret is `gmop-` and 32 random bytes, so a plain hash suffices and a table look-up by hash
tells nothing about near misses.
"""

from __future__ import annotations

import base64
import hashlib

import msgspec

from gristmill.core.clock import Clock
from gristmill.core.errors import UsageError
from gristmill.stages.access import queries_operator
from gristmill.store.session import Database

PREFIX = "gmop-"
ROLES = ("owner", "finance", "viewer")


class Operator(msgspec.Struct, frozen=True):
    """Who operates: id and role."""

    id: str
    role: str


LOCAL = Operator("local", "owner")
"""Whoever can open the home's 0600 socket is its owner."""


def ensure_first(db: Database, clock: Clock) -> str | None:
    """Create the owner's credential if there is no operator yet; returns its secret, once."""
    with db.write() as connection:
        if queries_operator.count(connection):
            return None
        return _create(connection, clock, "owner")


def create(db: Database, clock: Clock, role: str) -> tuple[str, str]:
    """Add an operator; returns (id, secret).

    Raises:
        UsageError: an unknown role.
    """
    if role not in ROLES:
        raise UsageError(f"There is no role {role!r}.", hint=f"Roles: {', '.join(ROLES)}.", param="role")
    with db.write() as connection:
        secret = _create(connection, clock, role)
        found = queries_operator.find(connection, _hash(secret))
    assert found is not None
    return found[0], secret


def authenticate(db: Database, secret: str) -> Operator | None:
    """The operator of a secret, or None."""
    if not secret.startswith(PREFIX):
        return None
    with db.read() as connection:
        found = queries_operator.find(connection, _hash(secret))
    return None if found is None else Operator(*found)


def exists(db: Database) -> bool:
    """Whether any operator credential was made."""
    with db.read() as connection:
        return queries_operator.count(connection) > 0


def _create(connection: queries_operator.Connection, clock: Clock, role: str) -> str:
    secret = PREFIX + base64.b32encode(clock.token(32)).decode().rstrip("=").lower()
    queries_operator.add(connection, clock.new_id("op"), role, _hash(secret), clock.now().isoformat())
    return secret


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
