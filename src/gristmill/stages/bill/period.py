"""Billing periods: calendar months in UTC, written "2026-11".

Invariant: periods touch and never overlap, and their text sorts as they do.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from gristmill.core.errors import UsageError

_PERIOD = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")


def bounds(period: str) -> tuple[datetime, datetime]:
    """Start and end (exclusive) of a period.

    Raises:
        UsageError: not a month such as "2026-11".
    """
    found = _PERIOD.fullmatch(period)
    if found is None or found[1] in ("0000", "9999"):
        raise UsageError(
            f"The period {period!r} is not a month.", hint="Write it as 2026-11.", param="period"
        )
    year, month = int(found[1]), int(found[2])
    end = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    return datetime(year, month, 1, tzinfo=UTC), end


def month_name(period: str) -> str:
    """`November 2026`, for people."""
    return bounds(period)[0].strftime("%B %Y")
