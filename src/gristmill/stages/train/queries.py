"""SQL of runs and their events.

Invariant: a run's state moves only along `core.run.NEXT`; events are appended, in an order their ids keep.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select, update

from gristmill.core.clock import Clock
from gristmill.core.errors import Conflict, NotFound
from gristmill.core.run import FINAL, NEXT, Run, RunEvent
from gristmill.store.tables.chain import run, run_event


def add_run(c: Connection, clock: Clock, **values: Any) -> Run:
    """Queue a run.

    Args:
        c: a writing connection.
        clock: for its id and time.
        **values: product, task, dataset_version_id, base, customer_id, recipe, recipe_digest, facts.
    """
    own = {"id": clock.new_id("run"), "state": "queued", "fence": 0, "is_cancel_asked": False}
    made = c.execute(insert(run).values(created_at=clock.now().isoformat(), **(values | own)).returning(run))
    return _run(made.mappings().one())


def get_run(c: Connection, run_id: str, customer_id: str | None = None) -> Run:
    """A run; with `customer_id`, only one of that customer.

    Raises:
        NotFound: none has this id, or it is somebody else's.
    """
    query = select(run).where(run.c.id == run_id)
    if customer_id is not None:
        query = query.where(run.c.customer_id == customer_id)
    found = c.execute(query).mappings().first()
    if found is None:
        raise NotFound(f"There is no run {run_id!r}.", hint="List them: gristmill run list.", param="run")
    return _run(found)


def list_runs(
    c: Connection, customer_id: str | None = None, before: str | None = None, limit: int | None = None
) -> list[Run]:
    """Runs, newest first; of one customer, those older than the run `before`, at most `limit`."""
    query = select(run).order_by(run.c.id.desc()).limit(limit)
    if customer_id is not None:
        query = query.where(run.c.customer_id == customer_id)
    if before is not None:
        query = query.where(run.c.id < before)
    return [_run(row) for row in c.execute(query).mappings()]


def unfinished(c: Connection) -> list[Run]:
    """Runs that a server which starts must take up, oldest first."""
    query = select(run).where(run.c.state.not_in(sorted(FINAL))).order_by(run.c.id)
    return [_run(row) for row in c.execute(query).mappings()]


def set_state(
    c: Connection, clock: Clock, run_id: str, state: str, release_id: str | None = None, **facts: Any
) -> Run:
    """Move a run on and add to its facts; its times follow its state.

    Raises:
        Conflict: the state does not follow the present one.
    """
    before = get_run(c, run_id)
    if state not in NEXT[before.state]:
        raise Conflict(f"The run {run_id} is {before.state}.", param="run")
    values: dict[str, Any] = {"state": state, "facts": before.facts | facts}
    now = clock.now().isoformat()
    if before.started_at is None and state == "running":
        values["started_at"] = now
    if state in FINAL:
        values["ended_at"] = now
    if release_id is not None:
        values["release_id"] = release_id
    return _run(
        c.execute(update(run).where(run.c.id == run_id).values(**values).returning(run)).mappings().one()
    )


def next_fence(c: Connection, run_id: str) -> int:
    """Allocate the number of a new attempt, higher than any before."""
    statement = update(run).where(run.c.id == run_id).values(fence=run.c.fence + 1).returning(run.c.fence)
    return int(c.execute(statement).scalar_one())


def ask_cancel(c: Connection, run_id: str) -> None:
    """Note that the run is to stop."""
    c.execute(update(run).where(run.c.id == run_id).values(is_cancel_asked=True))


def add_event(
    c: Connection, clock: Clock, run_id: str, message: str, data: dict[str, Any], level: str = "info"
) -> None:
    """Append an event."""
    last = c.execute(
        select(run_event.c.id).where(run_event.c.run_id == run_id).order_by(run_event.c.id.desc()).limit(1)
    ).scalar()
    identity = clock.new_id("evt")
    while last is not None and identity <= last:  # two ids of one millisecond sort by chance
        identity = clock.new_id("evt")
    values = {"id": identity, "run_id": run_id, "level": level, "message": message, "data": data}
    c.execute(insert(run_event).values(created_at=clock.now().isoformat(), **values))


def list_events(
    c: Connection, run_id: str, after: str | None = None, limit: int | None = None
) -> list[RunEvent]:
    """A run's events, oldest first, those after the event `after`."""
    query = select(run_event).where(run_event.c.run_id == run_id).order_by(run_event.c.id).limit(limit)
    if after is not None:
        query = query.where(run_event.c.id > after)
    return [
        RunEvent(**{name: row[name] for name in RunEvent.__struct_fields__})
        for row in c.execute(query).mappings()
    ]


def _run(row: RowMapping) -> Run:
    return Run(**{name: row[name] for name in Run.__struct_fields__})
