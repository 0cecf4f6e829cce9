"""What the gateway writes an answer to, and how errors and events look on it. No web framework here.

Source: OpenAI API reference, "Error object" and "Streaming"; WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from gristmill.core.errors import Exhausted, GristmillError, NotAuthenticated, Unavailable

Headers = list[tuple[bytes, bytes]]

JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")
EVENTS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-store"),
    (b"x-accel-buffering", b"no"),
]
DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class Sink(Protocol):
    """One client's connection."""

    @property
    def is_gone(self) -> bool:
        """Whether the client has hung up."""
        ...

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once when the client hangs up (at once if it has)."""
        ...

    async def start(self, status: int, headers: Headers) -> None:
        """Status and headers, once."""
        ...

    async def send(self, data: bytes, *, is_last: bool = False) -> None:
        """Bytes of the body; returns when they are written to the socket (or the client is gone)."""
        ...


def encode(document: Any) -> bytes:
    """A document as JSON."""
    return _encode(document)


def event(document: Any) -> bytes:
    """A document as one server-sent event."""
    return b"data: " + _encode(document) + b"\n\n"


def error_headers(error: GristmillError) -> Headers:
    """Headers that an error's status calls for; `x-should-retry` is read by OpenAI's clients."""
    if isinstance(error, NotAuthenticated):
        return [(b"www-authenticate", b"Bearer")]
    if isinstance(error, Unavailable):
        return [(b"retry-after", b"1")]
    if isinstance(error, Exhausted) and "retry_after_s" in error.details:
        return [(b"retry-after", b"%d" % error.details["retry_after_s"])]
    if isinstance(error, Exhausted) or error.details.get("scope") == "idempotency":
        return [(b"x-should-retry", b"false")]
    return []
