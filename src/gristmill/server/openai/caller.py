"""Who calls `/v1`: the customer key of a request, and the small things every route here shares.

Invariant: identity comes from the key alone; a route gets its caller from here or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

from starlette.requests import Request

from gristmill.core.account import Caller
from gristmill.core.clock import Clock
from gristmill.core.errors import Forbidden, UsageError


class Access(Protocol):
    """What decides who holds a key."""

    def authenticate(self, header: bytes | None, now: datetime) -> Caller:
        """The caller of an Authorization header; NotAuthenticated when there is none."""
        ...


WhoCalls = Callable[[Request], Caller]


def who_calls(access: Access, clock: Clock) -> WhoCalls:
    """A function that gives a request's caller, and notes the customer for the log."""

    def find(request: Request) -> Caller:
        header = request.headers.get("authorization")
        caller = access.authenticate(None if header is None else header.encode("latin-1"), clock.now())
        if not caller.customer.is_active:
            raise Forbidden("This customer's account is closed.", hint="Ask the operator.")
        request.scope.setdefault("state", {})["customer_id"] = caller.customer.id
        return caller

    return find


async def json_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        UsageError: not JSON, or not an object. TooLarge: over the limit.
    """
    body = await request.body()
    try:
        document = json.loads(body)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise UsageError("The body is not valid JSON.") from None
    if not isinstance(document, dict):
        raise UsageError("The body is not a JSON object.")
    return document


def refuse_unknown(request: Request, *known: str) -> None:
    """Refuse query parameters nobody reads, by name."""
    for name in request.query_params:
        if name not in known:
            raise UsageError(
                f"There is no parameter {name!r}.", hint=f"Known: {', '.join(known) or 'none'}.", param=name
            )


def unix_s(iso: str) -> int:
    """Whole seconds since 1970 of an ISO 8601 instant."""
    return int(datetime.fromisoformat(iso).timestamp())


def page(rows: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A list in OpenAI's shape. Source: OpenAI API reference, pagination by `after`."""
    return {
        "object": "list",
        "data": rows,
        "has_more": has_more,
        "first_id": rows[0]["id"] if rows else None,
        "last_id": rows[-1]["id"] if rows else None,
    }
