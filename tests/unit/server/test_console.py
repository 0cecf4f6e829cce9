"""How the console shows figures."""

from __future__ import annotations

import pytest

from gristmill.app.overview import quantile
from gristmill.console import pages


@pytest.mark.parametrize(
    ("nano", "shown"),
    [
        (12_300_000_000, "12.30 USD"),
        (0, "0.00 USD"),
        (1_000_000, "0.0010 USD"),
        (4_200, "0.000004 USD"),
        (3, "0.000000003 USD"),
        (-5 * 10**9, "-5.00 USD"),
    ],
)
def test_small_amounts_do_not_show_as_zero(nano: int, shown: str) -> None:
    """A request that was charged would look free."""
    assert pages.money(nano, "USD") == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(8.04, "8.0 s"), (104, "1 min 44 s"), (7800, "2 h 10 min"), (None, "–")]
)
def test_durations_read_well(seconds: float | None, shown: str) -> None:
    """Training times would be unreadable."""
    assert pages.duration(seconds) == shown


def test_quantiles_are_figures_that_were_measured() -> None:
    """p95 of few requests would be an invention."""
    assert quantile([], 0.5) is None
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert quantile([float(n) for n in range(1, 101)], 0.95) == 95.0
