"""The chain page at `/` and the drill-down of one request.

Invariant: everything shown is escaped (autoescape), nothing is loaded from elsewhere, and every link of the
chain carries its id.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from importlib import resources
from typing import Any

from fastapi import APIRouter
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from gristmill.app import overview
from gristmill.app.overview import DeploymentStates
from gristmill.core.clock import Clock
from gristmill.core.money import format_money, minor_digits
from gristmill.store.session import Database

_EXACT_DIGITS = 9
_STYLE = "chain.css"


def router(db: Database, clock: Clock, deployments: DeploymentStates) -> APIRouter:
    """The pages over a home's database and the deployments that run now."""
    routes = APIRouter(tags=["console"], include_in_schema=False)
    pages = _environment()
    style = resources.files("gristmill.console").joinpath("static", _STYLE).read_bytes()

    def page(template: str, **values: Any) -> HTMLResponse:
        return HTMLResponse(pages.get_template(template).render(**values))

    @routes.get("/")
    def chain() -> Response:
        """Every product's chain."""
        return page("chain.html", chains=overview.chains(db, clock, deployments))

    @routes.get("/requests/{request_id}")
    def request(request_id: str) -> Response:
        """One request with everything it points at."""
        return page("request.html", **overview.request(db, request_id))

    @routes.get(f"/static/{_STYLE}")
    def stylesheet() -> Response:
        """The one style sheet."""
        return Response(
            style, headers={"content-type": "text/css; charset=utf-8", "cache-control": "max-age=300"}
        )

    return routes


def _environment() -> Environment:
    pages = Environment(
        loader=PackageLoader("gristmill.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "money": money,
        "exact": exact,
        "count": count,
        "duration": duration,
        "ms": milliseconds,
        "figure": figure,
        "when": when,
        "minute": minute,
    }
    pages.filters.update(filters)
    return pages


def money(nano: int, currency: str) -> str:
    """An amount rounded as on an invoice, with more digits while it would show as zero."""
    digits = minor_digits(currency)
    while nano and digits < _EXACT_DIGITS and abs(nano) < 10 ** (9 - digits):
        digits += 2
    return format_money(nano, currency, min(digits, _EXACT_DIGITS))


def exact(nano: int, currency: str) -> str:
    """An amount to the nano-unit."""
    return format_money(nano, currency, _EXACT_DIGITS)


def count(value: float | None) -> str:
    """A whole number with thousands marked."""
    return "–" if value is None else f"{int(value):,}"


def duration(seconds: float | None) -> str:
    """Seconds as `8 s` or `3 min 05 s` or `2 h 10 min`."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def milliseconds(value: float | None) -> str:
    """A latency with as many digits as it deserves."""
    if value is None:
        return "–"
    return f"{value:.2f} ms" if value < 10 else f"{value:,.0f} ms"


def figure(value: float | None) -> str:
    """A metric's value."""
    return "–" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def minute(iso: str | None) -> str:
    """An instant without its seconds, UTC."""
    return "–" if not iso else datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M")


def when(iso: str | None) -> str:
    """An instant as date and time, UTC."""
    return "–" if not iso else datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M:%S")
