"""Usage: the immutable record of one request, and the settlement that turns it into postings.

Invariant: one request id has at most one usage event; a settlement is applied whole or not at all.
"""

from __future__ import annotations

import msgspec


class UsageEvent(msgspec.Struct, frozen=True):
    """What one request used.

    Attributes:
        request_id: `req_…`, unique. customer_id, key_id, subscription_id, plan_id: who and under what terms.
        model: public name asked for. release_id, digest: what answered. endpoint: route path.
        meters: meter → quantity charged. emitted_tokens: engine tokens whose text was written out.
        status: "done", "disconnected", "recovered" (after a crash) or "cut" (hold could not be extended).
        started_at, ended_at: ISO 8601 UTC. busy_s: engine seconds; latency_ms: to the last byte.
        period: "2026-11", the calendar month (UTC) of `started_at`.
    """

    request_id: str
    customer_id: str
    key_id: str
    subscription_id: str
    plan_id: str
    model: str
    release_id: str
    digest: str
    endpoint: str
    meters: dict[str, int]
    emitted_tokens: int
    status: str
    started_at: str
    ended_at: str
    busy_s: float
    latency_ms: float
    period: str


class Answer(msgspec.Struct, frozen=True):
    """An idempotent answer to keep: scope is (customer, route); body is encrypted by the caller.

    Attributes:
        key: the Idempotency-Key. body_sha256: of the request body. status: HTTP status.
        content: encrypted bytes of the answer. is_stream: whether it replays as server-sent events.
    """

    customer_id: str
    route: str
    key: str
    body_sha256: str
    status: int
    content: bytes
    is_stream: bool


class Settlement(msgspec.Struct, frozen=True):
    """Everything that commits together when a request ends."""

    event: UsageEvent
    answer: Answer | None = None


class Settled(msgspec.Struct, frozen=True):
    """What the ledger made of a settlement: rated lines (meter → nano-units) and their sum."""

    request_id: str
    amounts: dict[str, int]
    amount: int
    currency: str
