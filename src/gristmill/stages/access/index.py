"""The access index: every working key in memory, so that a request reads no database to know its caller.

Invariant: what `authenticate` returns comes from the key alone, and `refresh` after a change (revocation, new
plan) takes effect with the very next request. An unknown public id costs the same work as a wrong secret.
"""

from __future__ import annotations

import hmac
from datetime import datetime

import msgspec

from gristmill.core.account import Caller
from gristmill.core.clock import Clock
from gristmill.core.errors import NotAuthenticated
from gristmill.stages.access import keys, queries
from gristmill.stages.access.period import period_of
from gristmill.store.session import Database

_NOBODY = keys.hash_secret(b"no key has this secret")


class AccessIndex:
    """Public id → (hash of the secret, caller), loaded from the database and swapped whole."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._callers: dict[str, tuple[bytes, Caller]] = {}
        self._month = (0, 0)

    def refresh(self) -> None:
        """Read everything again; call it after each change to customers, keys, plans or subscriptions."""
        now = self._clock.now()
        with self._db.read() as c:
            self._callers = queries.load_callers(c, now)
        self._month = (now.year, now.month)

    def authenticate(self, header: bytes | None, now: datetime) -> Caller:
        """Who sent an `Authorization: Bearer gm-…` header.

        Args:
            header: the header's value, None when absent.
            now: the present instant; decides the billing period.

        Raises:
            NotAuthenticated: no key, or one that is malformed, unknown, wrong or revoked.
        """
        if header is None or header[:7].lower() != b"bearer ":
            raise NotAuthenticated(
                "You did not provide an API key.", hint="Send it as: Authorization: Bearer gm-…"
            )
        parts = keys.split(header[7:].strip())
        if parts is None:
            raise _refused()
        public_id, secret = parts
        expected, caller = self._callers.get(public_id) or (_NOBODY, None)
        is_right = hmac.compare_digest(keys.hash_secret(secret), expected)
        if caller is None or not is_right:
            raise _refused()
        if (now.year, now.month) != self._month:
            self._roll(now)
            caller = self._callers.get(public_id, (expected, caller))[1]
        return caller

    def _roll(self, now: datetime) -> None:
        start, end = period_of(now)
        self._callers = {
            public: (secret, msgspec.structs.replace(caller, period_start=start, period_end=end))
            for public, (secret, caller) in self._callers.items()
        }
        self._month = (now.year, now.month)


def _refused() -> NotAuthenticated:
    return NotAuthenticated("This API key is not valid.", hint="Ask the operator for a new one.")
