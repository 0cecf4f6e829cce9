"""The chain as the operator sees it: per product from data to margin, and one request's drill-down.

Invariant: it only reads; every figure comes from a row whose id is shown beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from gristmill.core.clock import Clock
from gristmill.core.errors import NotFound
from gristmill.core.release import PRODUCTION
from gristmill.stages.monitor import margin as margins
from gristmill.stages.monitor import queries_console as queries
from gristmill.stages.monitor.margin import MarginLine
from gristmill.store.session import Database

Chain = dict[str, Any]
_MARGIN_PARTS = (
    "revenue",
    "serving_cost",
    "training_cost",
    "training_total",
    "evaluation_cost",
    "gross_margin",
)
DeploymentStates = Callable[[], Iterable[Mapping[str, Any]]]


def chains(db: Database, clock: Clock, deployments: DeploymentStates) -> list[Chain]:
    """Every product's chain, the newest product first."""
    states = _states(deployments())
    with db.read() as connection:
        lines = margins.margin(connection, clock.now()).releases
        return [_chain(connection, product, states, lines) for product in queries.products(connection)]


def run_counts(db: Database) -> dict[str, int]:
    """State → number of runs."""
    with db.read() as connection:
        return queries.run_counts(connection)


def request(db: Database, request_id: str) -> Chain:
    """Everything one request points at.

    Raises:
        NotFound: no usage was settled under this id.
    """
    with db.read() as connection:
        event = queries.request_of(connection, request_id)
        if event is None:
            raise NotFound(f"There is no settled request {request_id!r}.", param="request_id")
        release = queries.release_of(connection, event["release_id"])
        run = queries.run_of(connection, release["run_id"]) if release and release["run_id"] else None
        return {
            "event": event,
            "lines": queries.lines_of(connection, request_id),
            "postings": queries.postings_of(connection, request_id),
            "release": release,
            "run": run,
            "cost": queries.making_cost(connection, [release["id"]]) if release else [],
            "aliases": queries.aliases(connection, release["product"]) if release else {},
            "report": _report(connection, release, run),
            "version": _version(connection, run),
        }


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The nearest-rank quantile of sorted figures. Source: Hyndman & Fan (1996), type 1."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _chain(
    connection: Connection, product: str, states: dict[str, Mapping[str, Any]], lines: list[MarginLine]
) -> Chain:
    releases = queries.releases(connection, product)
    aliases = queries.aliases(connection, product)
    by_id = {release["id"]: release for release in releases}
    current = by_id.get(aliases.get(PRODUCTION, "")) or (releases[0] if releases else None)
    newest = queries.latest_run(connection, product)
    run = queries.run_of(connection, current["run_id"]) if current and current["run_id"] else newest
    ids = list(by_id)
    traffic = queries.traffic(connection, ids)
    return {
        "product": product,
        "name": (current or {}).get("public_name") or product,
        "customer_id": (current or run or {}).get("customer_id"),
        "task": (current or run or {}).get("task", ""),
        "version": _version(connection, run),
        "run": run,
        "newest_run": newest if newest and run and newest["id"] != run["id"] else None,
        "cost": queries.making_cost(connection, [current["id"]]) if current else [],
        "report": _report(connection, current, run),
        "release": current,
        "is_production": current is not None and aliases.get(PRODUCTION) == current["id"],
        "aliases": {release_id: alias for alias, release_id in aliases.items()},
        "releases": releases,
        "deployment": states.get(current["id"]) if current else None,
        "count": traffic["count"],
        "p50_ms": quantile(traffic["latencies_ms"], 0.50),
        "p95_ms": quantile(traffic["latencies_ms"], 0.95),
        "usage": queries.usage(connection, ids),
        "invoices": queries.invoices(connection, ids),
        "margin": _margin(lines, ids),
        "requests": queries.newest_requests(connection, ids),
    }


def _margin(lines: Iterable[MarginLine], release_ids: Iterable[str]) -> list[dict[str, Any]]:
    """Margin of some releases together, by currency, nano-units."""
    ids = set(release_ids)
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line.id not in ids:
            continue
        sums = found.setdefault(line.currency, dict.fromkeys(_MARGIN_PARTS, 0))
        for name in _MARGIN_PARTS:
            sums[name] += getattr(line, name)
    return [sums | {"currency": currency} for currency, sums in sorted(found.items())]


def _report(
    connection: Connection, release: dict[str, Any] | None, run: dict[str, Any] | None
) -> dict[str, Any] | None:
    if release and release["report_id"]:
        return queries.report_of(connection, report_id=release["report_id"])
    return queries.report_of(connection, run_id=run["id"]) if run else None


def _version(connection: Connection, run: dict[str, Any] | None) -> dict[str, Any] | None:
    return queries.version_of(connection, run["dataset_version_id"]) if run else None


def _states(rows: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Deployment by release id."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        names = row.get("releases") or [row.get("release") or row.get("release_id")]
        for release_id in names:
            if release_id:
                found[str(release_id)] = row
    return found
