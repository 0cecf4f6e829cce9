"""The worker: takes up the runs of one home, one after the other, in this process.

Invariant: what was queued or running when the last process ended is taken up when a worker starts; a run is
executed once, whoever submits it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from gristmill.app.pipeline.execute import execute_run
from gristmill.app.pipeline.runs import run_folder
from gristmill.app.platform import Platform
from gristmill.core.errors import GristmillError, from_body
from gristmill.core.run import FINAL, Run
from gristmill.stages.train import queries
from gristmill.stages.train.attempt import Progress
from gristmill.store.jobs import Jobs, RunStep

_KIND = "run"
_POLL_S = 0.2
_DEAD = {"ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"}

OnProgress = Callable[[Progress], None]


class Worker:
    """Executes the runs of a platform; one per process."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._jobs = Jobs(platform.home / "jobs.db", {_KIND: self._execute})

    def start(self) -> None:
        """Open `jobs.db` and take up every unfinished run.

        Raises:
            Conflict: another worker lives in this process.
        """
        self._jobs.start()
        with self._platform.db.read() as connection:
            waiting = queries.unfinished(connection)
        for run in waiting:
            if self._jobs.status(_KIND, run.id) in _DEAD:
                self._give_up(run)
            else:
                self._jobs.submit(_KIND, run.id)

    def submit(self, run_id: str) -> None:
        """Queue a run that `runs.create_run` made."""
        self._jobs.submit(_KIND, run_id)

    def wait(self, run_id: str, on_progress: OnProgress = lambda _: None) -> Run:
        """Block until a run has ended, reporting its newest progress; returns its last state."""
        seen: Progress | None = None
        while True:
            with self._platform.db.read() as connection:
                run = queries.get_run(connection, run_id)
            newest = newest_progress(self._platform, run_id)
            if newest is not None and newest != seen:
                seen = newest
                on_progress(newest)
            if run.state in FINAL:
                return run
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Stop: a running run's child is ended and resumes from its checkpoint after the next start."""
        self._jobs.close()

    def _execute(self, run_id: str, step: RunStep) -> None:
        execute_run(self._platform, run_id, step, lambda: self._jobs.is_halting)

    def _give_up(self, run: Run) -> None:
        error = {"code": "error", "message": "The run's job ended unexpectedly.", "hint": None, "param": None}
        with self._platform.db.write() as connection:
            queries.set_state(connection, self._platform.clock, run.id, "failed", error=error)


@contextmanager
def working(platform: Platform, worker: Worker | None = None) -> Iterator[Worker]:
    """The worker given, or one for the length of the block."""
    if worker is not None:
        yield worker
        return
    own = Worker(platform)
    own.start()
    try:
        yield own
    finally:
        own.close()


def newest_progress(platform: Platform, run_id: str) -> Progress | None:
    """The last whole line of a run's progress, for a progress bar finer than its events."""
    path = run_folder(platform, run_id).progress
    if not path.exists():
        return None
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - 4096))
        lines = handle.read().split(b"\n")
    try:
        return msgspec.json.decode(lines[-2], type=Progress) if len(lines) > 1 else None
    except msgspec.DecodeError:
        return None


def error_of(run: Run) -> GristmillError | None:
    """The error that ended a run, as it would have been raised; None when it did not end by one."""
    document = run.facts.get("error")
    if document is None:
        return None
    fields = dict(document)
    hint = fields.pop("hint", None)
    error = from_body({"error": fields})
    error.hint = hint
    return error
