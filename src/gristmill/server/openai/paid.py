"""The plain-ASGI adapter of the task endpoints: the only file that knows both ASGI and the gateway.

Invariant: a body is read after its key was accepted and never beyond the limit; every answer, 404 and 405
included, is JSON in OpenAI's shape. Source: ASGI specification 3.0, "HTTP connection scope".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from gristmill.app.gateway.paid import Gateway, Incoming
from gristmill.app.gateway.parse import PaidEndpoint
from gristmill.app.gateway.sink import Headers
from gristmill.core.clock import Clock
from gristmill.core.errors import NotFound, UsageError
from gristmill.ports.task import Endpoint
from gristmill.server.edge import limited
from gristmill.server.errors import MethodError, respond


class AsgiSink:
    """A client's connection, over ASGI's `receive` and `send`."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._callbacks: list[Callable[[], None]] = []
        self._watcher: asyncio.Task[None] | None = None
        self.is_gone = False

    def watch(self) -> None:
        """Notice from now on, when the body has been read, that the client hangs up."""
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    def when_gone(self, callback: Callable[[], None]) -> None:
        """See `app.gateway.sink.Sink`."""
        if self.is_gone:
            callback()
        else:
            self._callbacks.append(callback)

    async def start(self, status: int, headers: Headers) -> None:
        """See `app.gateway.sink.Sink`."""
        await self._write({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes, *, is_last: bool = False) -> None:
        """See `app.gateway.sink.Sink`."""
        await self._write({"type": "http.response.body", "body": data, "more_body": not is_last})

    def close(self) -> None:
        """The request is over: stop watching."""
        if self._watcher is not None:
            self._watcher.cancel()

    def gone(self) -> None:
        """The client has hung up: tell everybody who asked to know."""
        self.is_gone = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    async def _write(self, message: dict[str, Any]) -> None:
        if self.is_gone:
            return
        try:
            await self._send(message)
        except OSError:  # how a server may tell that the connection is lost
            self.gone()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone()


class PaidApp:
    """The ASGI application over the endpoints of all tasks."""

    def __init__(
        self, gateway: Gateway, endpoints: Iterable[tuple[str, Endpoint]], clock: Clock, max_body_bytes: int
    ) -> None:
        self._gateway = gateway
        self._clock = clock
        self._max_body_bytes = max_body_bytes
        self._endpoints = {endpoint.path: PaidEndpoint(task, endpoint) for task, endpoint in endpoints}

    @property
    def paths(self) -> frozenset[str]:
        """The paths it serves."""
        return frozenset(self._endpoints)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        paid = self._endpoints.get(scope["path"])
        if paid is None or scope["method"] != "POST":
            await _no_route(scope, paid is not None)(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        state["route"] = paid.path
        authorization = key = length = None
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value
            elif name == b"idempotency-key":
                key = value
            elif name == b"content-length":
                length = value.decode("latin-1")
        sink = AsgiSink(receive, send)

        async def read_body() -> bytes:
            body = await _read(limited(receive, self._max_body_bytes, length))
            if body is None:
                sink.gone()
                raise UsageError("The client hung up while it was sending.")
            sink.watch()
            return body

        request_id = state.get("request_id") or self._clock.new_id("req")
        try:
            visit = await self._gateway.handle(
                Incoming(paid, request_id, authorization, key, read_body), sink
            )
        finally:
            sink.close()
        if visit.target is not None:
            state["model"] = visit.target.model
        if visit.caller is not None:
            state["customer_id"] = visit.caller.customer.id


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None when the client hung up before its end."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _no_route(scope: Scope, is_path: bool) -> ASGIApp:
    what = f"{scope['method']} {scope['path']}"
    if not is_path:
        return respond(NotFound(f"There is no {what}."))
    response = respond(MethodError(f"{scope['path']} does not take {scope['method']}.", hint="Use POST."))
    response.headers["allow"] = "POST"
    return response
