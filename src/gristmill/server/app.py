"""The one ASGI application: paid endpoints in front, the rest behind a customer key or the operator's door.

    Edge (request id, headers, metrics, last word on errors)
    ├── POST <a task's path>   paid, plain ASGI: server/openai/paid
    ├── /v1/…                  customer key: files, fine-tuning, models
    ├── /healthz, /readyz      open
    └── everything else        Host check, operator credential, role: console, manage, metrics

Invariant: a path that no line above names as open is never reached without its credential.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gristmill.app.operators import LOCAL, Operator
from gristmill.core.clock import Clock
from gristmill.core.errors import GristmillError
from gristmill.server import errors, guard
from gristmill.server.edge import Edge, limited
from gristmill.server.metrics import Metrics
from gristmill.server.openai.files import ENVELOPE_BYTES

FILES_PATH = "/v1/files"


class Limits:
    """Largest bodies, in bytes."""

    def __init__(self, body_bytes: int, file_bytes: int) -> None:
        self.body_bytes = body_bytes
        self.file_bytes = file_bytes

    def of(self, path: str) -> int:
        """The limit for a path."""
        return self.file_bytes + ENVELOPE_BYTES if path == FILES_PATH else self.body_bytes


def routed(routers: Sequence[APIRouter]) -> FastAPI:
    """A FastAPI application over some routers, with our errors and without pages that need scripts."""
    app = FastAPI(
        title="Gristmill", docs_url=None, redoc_url=None, openapi_url="/openapi.json", redirect_slashes=False
    )
    for router in routers:
        app.include_router(router)
    errors.install(app)
    return app


class Front:
    """Sends a request to the paid application, to a customer's routes, or through the operator's door."""

    def __init__(
        self,
        rest: ASGIApp,
        *,
        paid: ASGIApp | None,
        paid_paths: Collection[str],
        find_operator: guard.Authenticate,
        is_read: guard.IsRead,
        host: str,
        limits: Limits,
    ) -> None:
        self._rest = rest
        self._paid = paid
        self._paid_paths = frozenset(paid_paths)
        self._find_operator = find_operator
        self._is_read = is_read
        self._host = host
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path: str = scope["path"]
        if self._paid is not None and path in self._paid_paths:
            scope["state"]["is_recorded"] = scope["method"] == "POST"
            await self._paid(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if path not in guard.OPEN_PATHS and not path.startswith("/v1/"):
            try:
                guard.check_host(headers, self._host)
                await run_in_threadpool(self._admit, scope, headers)
            except GristmillError as error:
                await guard.refusal(error)(scope, receive, send)
                return
        bounded = limited(receive, self._limits.of(path), headers.get("content-length"))
        await self._rest(scope, bounded, send)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        operator, is_basic = guard.authenticate(headers, self._find_operator)
        guard.authorise(scope["method"], scope["path"], headers, operator, is_basic, self._is_read)
        _note(scope, operator)


class Trusted:
    """The control socket's front: whoever can open the home's 0600 socket is its owner."""

    def __init__(self, rest: ASGIApp) -> None:
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request as the owner."""
        _note(scope, LOCAL)
        await self._rest(scope, receive, send)


def assemble(
    rest: ASGIApp,
    clock: Clock,
    metrics: Metrics,
    limits: Limits,
    *,
    host: str,
    find_operator: guard.Authenticate,
    is_read: guard.IsRead = lambda _noun, _verb: False,
    paid: ASGIApp | None = None,
    paid_paths: Collection[str] = (),
) -> ASGIApp:
    """The whole application for the TCP port."""
    front = Front(
        rest,
        paid=paid,
        paid_paths=paid_paths,
        find_operator=find_operator,
        is_read=is_read,
        host=host,
        limits=limits,
    )
    return Edge(front, clock, metrics)


def assemble_control(rest: ASGIApp, clock: Clock, metrics: Metrics) -> ASGIApp:
    """The application for the control socket."""
    return Edge(Trusted(rest), clock, metrics)


def _note(scope: Scope, operator: Operator) -> None:
    state: dict[str, Any] = scope.setdefault("state", {})
    state["operator"] = operator
    state["role"] = operator.role
