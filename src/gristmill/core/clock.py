"""Time, ids and randomness, passed in so that a month can be closed in a test.

Invariant: nothing in Gristmill calls `datetime.now`, `uuid4` or `secrets` but the classes here.
Source of the id layout: ULID (48 bits of milliseconds, 80 random bits, Crockford base 32), prefixed by kind.
"""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from typing import Protocol

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


class Clock(Protocol):
    """What the rest of the code knows of time and chance."""

    def now(self) -> datetime:
        """The present instant, with UTC as time zone."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since some fixed point, never running backwards."""
        ...

    def new_id(self, prefix: str) -> str:
        """A unique id `<prefix>_<26 characters>` that sorts by time of creation."""
        ...

    def token(self, n_bytes: int) -> bytes:
        """`n_bytes` unpredictable bytes."""
        ...


def encode_id(prefix: str, at_ms: int, random_bits: int) -> str:
    """Lay out a sortable id from milliseconds since 1970 and 80 random bits."""
    value = (at_ms << 80) | (random_bits & ((1 << 80) - 1))
    return prefix + "_" + "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


class SystemClock:
    """The machine's own clock and its random source."""

    def now(self) -> datetime:
        """See `Clock`."""
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        """See `Clock`."""
        return time.monotonic()

    def new_id(self, prefix: str) -> str:
        """See `Clock`."""
        return encode_id(prefix, time.time_ns() // 1_000_000, secrets.randbits(80))

    def token(self, n_bytes: int) -> bytes:
        """See `Clock`."""
        return secrets.token_bytes(n_bytes)
