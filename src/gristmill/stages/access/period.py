"""Billing periods: calendar months in UTC.

Invariant: consecutive periods touch: one ends where the next starts, and an instant is in exactly one.
"""

from __future__ import annotations

from datetime import UTC, datetime


def period_of(now: datetime) -> tuple[str, str]:
    """Start and end (exclusive) of the calendar month of `now`, as ISO 8601 UTC text."""
    start = datetime(now.year, now.month, 1, tzinfo=UTC)
    end = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    return start.isoformat(), end.isoformat()
