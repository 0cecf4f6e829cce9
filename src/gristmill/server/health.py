"""Liveness, readiness and metrics: `/healthz`, `/readyz`, `/metrics`.

Invariant: `/healthz` says only that the process answers; `/readyz` names what is not ready and is 503 then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from gristmill.server.metrics import CONTENT_TYPE, Metrics

NotReady = Callable[[], Awaitable[list[str]]]


def router(metrics: Metrics, not_ready: NotReady) -> APIRouter:
    """The three routes.

    Args:
        metrics: the server's registry.
        not_ready: what is not ready, each as a short text for the operator.
    """
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz")
    async def healthz() -> Response:
        """The process is alive."""
        return Response(b'{"status":"alive"}', media_type="application/json")

    @routes.get("/readyz")
    async def readyz() -> Response:
        """Every part a request needs is up."""
        missing = await not_ready()
        body = {"status": "not ready" if missing else "ready", "missing": missing}
        return Response(msgspec.json.encode(body), 503 if missing else 200, media_type="application/json")

    @routes.get("/metrics")
    async def scrape() -> Response:
        """Prometheus metrics."""
        return Response(metrics.render(), headers={"content-type": CONTENT_TYPE})

    return routes
