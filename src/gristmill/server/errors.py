"""Errors at the surface: every failure leaves in OpenAI's shape, with a request id and without a traceback.

Invariant: what a client reads comes from a `GristmillError` or is a fixed text; an unexpected exception says
no more than "internal_error" and is logged with its frames. Source: OpenAI API reference, "Error object".
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gristmill.core.errors import GristmillError, NotFound, UsageError

JSON = "application/json"


class InternalError(GristmillError):
    """An exception nobody foresaw; its frames are in the server's log under the request id."""

    code, type, status = "internal_error", "internal_error", 500


class MethodError(UsageError):
    """The path exists, the method does not."""

    code, status = "method_not_allowed", 405


def internal_error(request_id: str) -> InternalError:
    """The one text a client gets for an unforeseen exception."""
    return InternalError(
        f"Something went wrong on the server (request {request_id}).", hint="Quote this id to the operator."
    )


def respond(error: GristmillError) -> Response:
    """An error as a response, with the headers its status calls for."""
    headers: dict[str, str] = {}
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["retry-after"] = "1"
    return Response(msgspec.json.encode(error.body()), error.status, headers, media_type=JSON)


def from_http(method: str, path: str, status: int, detail: str) -> GristmillError:
    """Our error for one that the web framework raised by status."""
    if status == HTTPStatus.NOT_FOUND:
        return NotFound(f"There is no {method} {path}.")
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return MethodError(f"{path} does not take {method}.")
    return UsageError(detail or HTTPStatus(status).phrase)


def install(app: FastAPI) -> None:
    """Make `app` answer every error in OpenAI's shape; unforeseen ones are logged by `server.edge`."""

    async def ours(_request: Request, error: Exception) -> Response:
        assert isinstance(error, GristmillError)
        return respond(error)

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        found = from_http(request.method, request.url.path, error.status_code, str(error.detail))
        response = respond(found)
        for name, value in (error.headers or {}).items():
            response.headers[name] = value
        return response

    async def invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first: dict[str, Any] = dict(error.errors()[0])
        where = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return respond(UsageError(f"{where}: {first['msg']}.", param=where))

    async def unforeseen(request: Request, _error: Exception) -> Response:
        return respond(internal_error(request.scope.get("state", {}).get("request_id", "unknown")))

    app.add_exception_handler(Exception, unforeseen)
    app.add_exception_handler(GristmillError, ours)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(RequestValidationError, invalid)
