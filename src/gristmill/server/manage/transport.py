"""The manage API: every operation as `POST /manage/{noun}/{verb}`, answered as lines of JSON.

Lines are `{"progress": …}` while it runs, then one `{"result": …}` or `{"error": …}`. An operation goes on
when the client leaves: what it started is finished, never half-done.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import structlog
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from gristmill.app import operations
from gristmill.app.operations.base import Progress
from gristmill.app.platform import Platform
from gristmill.core.errors import Forbidden, GristmillError, UsageError

log = structlog.get_logger()
_running: set[asyncio.Task[None]] = set()


def router(platform: Platform) -> APIRouter:
    """Routes for all operations; the caller has authenticated the operator (`request.state.role`)."""
    routes = APIRouter()

    @routes.post("/manage/{noun}/{verb}", tags=["manage"])
    async def operate(noun: str, verb: str, request: Request) -> StreamingResponse:
        """Run one operation."""
        verb = "" if verb == "run" and (noun, "") in operations.operations() else verb
        found = operations.operations().get((noun, verb))
        if found is not None and not found.is_read and request.state.role == "viewer":
            raise Forbidden("The role viewer may only read.")
        return StreamingResponse(
            _lines(platform, noun, verb, await _document(request)), media_type="application/x-ndjson"
        )

    return routes


async def _document(request: Request) -> dict[str, Any]:
    try:
        document = json.loads(await request.body() or b"{}")
    except ValueError:
        raise UsageError("The body is not JSON.") from None
    if not isinstance(document, dict):
        raise UsageError("The body must be a JSON object of parameters.")
    return document


async def _lines(platform: Platform, noun: str, verb: str, params: dict[str, Any]) -> AsyncIterator[bytes]:
    queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def emit(progress: Progress) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, {"progress": msgspec.to_builtins(progress)})

    async def work() -> None:
        try:
            result = await asyncio.to_thread(operations.run, platform, noun, verb, params, emit)
            queue.put_nowait({"result": result})
        except GristmillError as error:
            queue.put_nowait(error.body())
        except Exception:
            log.exception("operation_failed", noun=noun, verb=verb)
            queue.put_nowait(
                GristmillError("Something unexpected failed.", hint="See the server's log.").body()
            )

    task = asyncio.create_task(work())
    _running.add(task)
    task.add_done_callback(_running.discard)
    while True:
        line = await queue.get()
        yield json.dumps(line, default=str).encode() + b"\n"
        if "progress" not in line:
            return
