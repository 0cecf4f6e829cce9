"""The outermost layer: request id, security headers, metrics, the access log, and the last word on errors.

Invariant: every answer carries `x-request-id` and the security headers, and nothing that escapes the inner
application reaches a client as more than "internal_error". Source of the headers: OWASP Secure Headers.
"""

from __future__ import annotations

import time
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gristmill.core.clock import Clock
from gristmill.core.errors import TooLarge
from gristmill.server.errors import internal_error, respond
from gristmill.server.metrics import Metrics

_CSP = "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", (_CSP + "frame-ancestors 'none'").encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
)
_UNMATCHED = "unmatched"
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
log = structlog.get_logger("gristmill.server")


class Edge:
    """Wraps an ASGI application; sets `scope["state"]["request_id"]` for it.

    The inner application may leave in `scope["state"]`: `customer_id` for the log line, `is_recorded` when it
    counts and logs the request itself.
    """

    def __init__(self, inner: ASGIApp, clock: Clock, metrics: Metrics) -> None:
        self._inner = inner
        self._clock = clock
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = self._clock.new_id("req")
        answer = _Answer(send, state["request_id"])
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=state["request_id"])
        try:
            await self._inner(scope, receive, answer.send)
        except Exception as error:  # the surface: whatever it is, the client gets our shape
            log.error("request_failed", exc_info=error)
            if not answer.status:
                await respond(internal_error(state["request_id"]))(scope, receive, answer.send)
        finally:
            self._observe(scope, state, answer)

    def _observe(self, scope: Scope, state: dict[str, Any], answer: _Answer) -> None:
        if state.get("is_recorded"):
            return
        seconds = time.perf_counter() - answer.started_s
        route = getattr(scope.get("route"), "path", None) or _UNMATCHED
        self._metrics.observe(route, answer.status, "", seconds)
        (log.debug if route in _QUIET else log.info)(
            "request",
            method=scope["method"],
            route=route,
            status=answer.status,
            ms=round(seconds * 1000, 2),
            customer_id=state.get("customer_id"),
        )


class _Answer:
    """Watches what is sent: adds headers, remembers the status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id.encode()
        self.started_s = time.perf_counter()
        self.status = 0

    async def send(self, message: Message) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            names = {name.lower() for name, _ in headers}
            headers += [(name, value) for name, value in SECURITY_HEADERS if name not in names]
            if b"x-request-id" not in names:
                headers.append((b"x-request-id", self._request_id))
            message = {**message, "headers": headers}
        await self._send(message)


def limited(receive: Receive, limit_bytes: int, length: str | None) -> Receive:
    """`receive`, refusing a body that is too large; what follows is read and dropped, so the refusal arrives.

    Args:
        receive: of the request.
        limit_bytes: largest body.
        length: its Content-Length, if any.
    """
    seen = 0
    is_announced = length is not None and length.isdigit() and int(length) > limit_bytes

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit_bytes or (is_announced and message["type"] == "http.request"):
            dropped = 0
            while message.get("more_body") and dropped <= limit_bytes:
                message = await receive()
                dropped += len(message.get("body", b""))
            raise TooLarge(
                f"The body is over the limit of {limit_bytes:,} bytes.", hint="Send less at a time."
            )
        return message

    return counted
