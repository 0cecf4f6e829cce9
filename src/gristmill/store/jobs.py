"""Durable jobs in `jobs.db`: work that survives `kill -9` of the process and goes on at the step it was in.

Invariant: a job is named by the id of its subject, so submitting it twice runs it once; arguments are ids and
a step's result is JSON. `jobs.db` is a file of its own, since the ledger's file would feel a second writer.
Source: DBOS Transact 3.4, "Workflows" and "Queues"; its portable JSON serializer, never pickle.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from gristmill.core.errors import Conflict

T = TypeVar("T")
_QUEUE = "gristmill-jobs"
_EXECUTOR = "gristmill"  # fixed, with the version below, so that a restarted server finds its own jobs
_VERSION = "1"


class Halted(BaseException):
    """The process is closing: the step leaves no outcome and runs again after the next start.

    A BaseException, because DBOS records every Exception as the job's outcome.
    """


class RunStep(Protocol):
    """Runs one step of a job: at most once recorded, its JSON-able result replayed after a restart."""

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        """Do `work` unless its result is already recorded."""
        ...


Handler = Callable[[str, RunStep], None]

_active: Jobs | None = None  # DBOS is one per process, so this is too
_active_lock = threading.Lock()
_workflow: Callable[[str, str], None] | None = None


class Jobs:
    """The job queue of one home; one job at a time, in order of submission."""

    def __init__(self, path: Path, handlers: dict[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers
        self._halting = threading.Event()
        self._is_open = False

    @property
    def is_halting(self) -> bool:
        """Whether the process is closing; a long step asks this and raises `Halted`."""
        return self._halting.is_set()

    def start(self) -> None:
        """Open `jobs.db` and take up what an earlier process left unfinished.

        Raises:
            Conflict: this process already runs the jobs of another home.
        """
        global _active
        with _active_lock:
            if _active is not None:
                raise Conflict("This process already runs the jobs of a home.", hint="Close that one first.")
            _active = self
        _launch(self._path)
        self._is_open = True

    def submit(self, kind: str, subject: str) -> None:
        """Queue the job `kind` for the id `subject`; a second time it changes nothing."""
        from dbos import DBOS, SetWorkflowID

        with SetWorkflowID(f"{kind}/{subject}"):
            DBOS.enqueue_workflow(_QUEUE, _registered(), kind, subject)

    def status(self, kind: str, subject: str) -> str | None:
        """ENQUEUED, PENDING, SUCCESS, ERROR … as DBOS has it; None when it was never submitted."""
        from dbos import DBOS

        found = DBOS.get_workflow_status(f"{kind}/{subject}")
        return None if found is None else str(found.status)

    def cancel(self, kind: str, subject: str) -> None:
        """Take a job that has not begun off the queue; a running one sees its own flag."""
        from dbos import DBOS

        DBOS.cancel_workflow(f"{kind}/{subject}")

    def run(self, kind: str, subject: str) -> None:
        """What the workflow does: hand the job to its handler, step by step."""
        from dbos import DBOS

        def step(name: str, work: Callable[[], T]) -> T:
            if self.is_halting:
                raise Halted
            return DBOS.run_step({"name": name}, work)

        self._handlers[kind](subject, step)

    def close(self) -> None:
        """Ask running steps to halt and close; they resume when the home is opened again."""
        global _active
        if not self._is_open:
            return
        from dbos import DBOS

        self._is_open = False
        self._halting.set()
        DBOS.destroy(workflow_completion_timeout_sec=0)
        with _active_lock:
            _active = None


def _launch(path: Path) -> None:
    from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer

    logging.getLogger("dbos").setLevel(logging.CRITICAL)
    config: DBOSConfig = {
        "name": "gristmill",
        "system_database_url": f"sqlite:///{path}",
        "serializer": DBOSPortableJSONSerializer(),
        "application_version": _VERSION,
        "executor_id": _EXECUTOR,
        "log_level": "CRITICAL",  # a job's failure is in its own events; DBOS would print tracebacks
        "enable_otlp": False,
        "notification_listener_polling_interval_sec": 0.5,  # also how long closing waits for it
        "scheduler_polling_interval_sec": 3600.0,
    }
    _registered()
    DBOS(config=config)
    DBOS.launch()
    DBOS.register_queue(_QUEUE, global_concurrency=1, polling_interval_sec=0.2, on_conflict="always_update")


def _registered() -> Callable[[str, str], None]:
    """The one DBOS workflow; DBOS refuses to register a name twice, so it is made once a process."""
    global _workflow
    if _workflow is None:
        from dbos import DBOS

        @DBOS.workflow(name="gristmill_job", max_recovery_attempts=1000)
        def gristmill_job(kind: str, subject: str) -> None:
            if _active is None:
                raise Halted
            _active.run(kind, subject)

        _workflow = gristmill_job
    return _workflow


def step_directly(name: str, work: Callable[[], Any]) -> Any:
    """A `RunStep` without a database, for tests of a handler alone."""
    del name
    return work()
