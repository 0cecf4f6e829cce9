"""Settling training: what a customer's run used becomes a usage event, once, before its model is served.

Invariant: the run's id is the request id, so UNIQUE(request_id) settles a run at most once; a prepaid wallet
that does not cover it stays untouched and the model waits until it does.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from gristmill.app.finetuning.jobs import METER
from gristmill.app.platform import Platform
from gristmill.core.account import Plan
from gristmill.core.errors import GristmillError
from gristmill.core.release import Release
from gristmill.core.run import Run
from gristmill.core.usage import Settlement, UsageEvent
from gristmill.stages.access import queries as access
from gristmill.stages.monitor import queries_console as usage
from gristmill.stages.train import queries as runs

ENDPOINT = "/v1/fine_tuning/jobs"
_log = structlog.get_logger(__name__)


def unsettled(platform: Platform, releases: Iterable[Release]) -> list[Release]:
    """The customers' releases among these whose training is not settled."""
    with platform.db.read() as connection:
        return [
            release
            for release in releases
            if release.customer_id is not None
            and release.run_id is not None
            and usage.request_of(connection, release.run_id) is None
        ]


def settle(platform: Platform, releases: Iterable[Release]) -> None:
    """Settle the training of customers' releases, those that a wallet covers; the others stay as they are."""
    for release in unsettled(platform, releases):
        assert release.run_id is not None
        _settle(platform, release, release.run_id)


def _settle(platform: Platform, release: Release, run_id: str) -> None:
    with platform.db.read() as connection:
        run = runs.get_run(connection, run_id)
        plan = access.find_plan(connection, run.facts["plan_id"])
    event = _event(platform, release, run)
    try:
        if plan.billing == "prepaid" and not _is_covered(platform, plan, event):
            _log.warning("training_not_covered", run=run.id, customer_id=event.customer_id)
            return
        platform.ledger.settle_now(Settlement(event))
    except GristmillError as error:
        _log.error("training_not_settled", run=run.id, reason=error.message)


def _is_covered(platform: Platform, plan: Plan, event: UsageEvent) -> bool:
    """Lease what the training costs; a partial grant goes back."""
    positions = platform.ledger.positions(event.subscription_id, event.period)
    lines = platform.rater.lines(plan, event.model, event.meters, positions)
    amount = sum(line.amount for line in lines)
    granted = platform.ledger.open_lease_now(event.customer_id, plan.currency, amount) if amount else 0
    if granted < amount:
        platform.ledger.return_lease_now(event.customer_id, plan.currency, granted)
        return False
    return True


def _event(platform: Platform, release: Release, run: Run) -> UsageEvent:
    now = platform.clock.now()
    return UsageEvent(
        request_id=run.id,
        customer_id=release.customer_id or "",
        key_id=run.facts["key_id"],
        subscription_id=run.facts["subscription_id"],
        plan_id=run.facts["plan_id"],
        model=release.name,
        release_id=release.id,
        digest=release.digest,
        endpoint=ENDPOINT,
        meters={METER: int(run.facts["trained"]["trained_tokens"])},
        emitted_tokens=0,
        status="done",
        started_at=now.isoformat(),
        ended_at=now.isoformat(),
        busy_s=0.0,  # training seconds are capitalised with the release, not booked as serving cost
        latency_ms=0.0,
        period=now.strftime("%Y-%m"),
    )
