"""The record of one request: what its log line, its response headers and the metrics say of it.

Invariant: ids, names that resolved, counts and codes only; never a prompt, an answer, a key or a name that a
client made up.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import msgspec
import structlog

from gristmill.app.gateway.routing import Target
from gristmill.app.gateway.sink import Headers
from gristmill.core.account import Caller
from gristmill.core.errors import GristmillError

CLIENT_GONE = 499
"""Status in the records of a request whose client left before anything was answered (nginx's convention)."""

_log = structlog.get_logger("gristmill.gateway")


class Record(msgspec.Struct, frozen=True):
    """One finished request, for metrics; None where it did not get that far.

    Attributes:
        status: HTTP status. outcome: "done", "cut", "disconnected", "unacknowledged", "failed", "replayed"
            or "refused". code: of the error. meters, amount (nano-units): charged.
        latency_s, first_byte_s: since the request arrived; the latter for streams.
    """

    request_id: str
    route: str
    status: int
    outcome: str
    code: str | None
    model: str | None
    release_id: str | None
    customer_id: str | None
    meters: dict[str, int]
    amount: int
    latency_s: float
    first_byte_s: float | None


OnRecord = Callable[[Record], None]


class Visit:
    """What is known of a request while it goes on."""

    __slots__ = (
        "amount", "caller", "code", "cut_by", "digest", "first_byte_s", "meters", "outcome", "request_id",
        "route", "started_at", "started_s", "status", "target",
    )  # fmt: skip

    def __init__(self, request_id: str, route: str, started_at: datetime, started_s: float) -> None:
        self.request_id = request_id
        self.route = route
        self.started_at = started_at
        self.started_s = started_s
        self.status = 0
        self.outcome = "refused"
        self.code: str | None = None
        self.cut_by = ""
        self.digest = ""
        self.first_byte_s: float | None = None
        self.meters: dict[str, int] = {}
        self.amount = 0
        self.caller: Caller | None = None
        self.target: Target | None = None

    def headers(self, now_s: float) -> Headers:
        """Headers of every answer to this request. Source: OpenAI API reference, "Debugging requests"."""
        found = [
            (b"x-request-id", self.request_id.encode()),
            (b"openai-processing-ms", b"%d" % ((now_s - self.started_s) * 1000)),
        ]
        if self.target is not None:
            found.append((b"gristmill-release", self.target.release_id.encode()))
            found.append((b"gristmill-digest", self.digest.encode()))
        return found

    def refused(self, error: GristmillError) -> None:
        """Note the error that ended it."""
        self.code = error.code
        self.meters = {}  # whatever was on its way to the ledger was not charged
        if self.outcome not in ("failed", "unacknowledged"):
            self.outcome = "refused" if error.status < 500 else "failed"

    def finish(self, now_s: float, on_record: OnRecord | None) -> None:
        """Write the log line and tell the metrics."""
        latency_s = now_s - self.started_s
        first_byte_s = None if self.first_byte_s is None else self.first_byte_s - self.started_s
        target, caller = self.target, self.caller
        record = Record(
            self.request_id,
            self.route,
            self.status or CLIENT_GONE,
            self.outcome,
            self.code,
            None if target is None else target.model,
            None if target is None else target.release_id,
            None if caller is None else caller.customer.id,
            self.meters,
            self.amount,
            latency_s,
            first_byte_s,
        )
        if on_record is not None:
            on_record(record)
        _log.info(
            "paid_request",
            request_id=record.request_id,
            customer_id=record.customer_id,
            model=record.model,
            release_id=record.release_id,
            route=record.route,
            status=record.status,
            outcome=record.outcome,
            code=record.code,
            cut_by=self.cut_by or None,
            meters=record.meters,
            amount=record.amount,
            ms=round(latency_s * 1000, 2),
        )
