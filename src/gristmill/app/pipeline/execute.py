"""Executing a run: base ready → train → evaluate → gates → register → promote, each a durable step.

Invariant: a step may be begun twice (the server died in it) and has its effect once: what it leaves is in the
run's row and folder, and a finished run is never touched again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import structlog

from gristmill.app.pipeline import verify
from gristmill.app.pipeline.runs import base_path, cap, machine_cost, run_folder
from gristmill.app.platform import Platform
from gristmill.core.errors import GateRefused, GristmillError
from gristmill.core.posting import PostingGroup, transfer
from gristmill.core.recipe import Recipe
from gristmill.core.release import Release
from gristmill.core.run import FINAL, Run, Trained, TrainJob
from gristmill.stages.access import queries as access
from gristmill.stages.data import queries as datasets
from gristmill.stages.evaluate import queries as reports
from gristmill.stages.registry import bases
from gristmill.stages.registry import queries as releases
from gristmill.stages.train import queries
from gristmill.stages.train.attempt import Progress
from gristmill.stages.train.start import Cancelled, call, train
from gristmill.store.jobs import Halted, RunStep

_TENTHS = 10
_log = structlog.get_logger()


def execute_run(
    platform: Platform, run_id: str, step: RunStep, is_halting: Callable[[], bool] = lambda: False
) -> None:
    """Take a run to its end, going on where an earlier process stopped.

    Args:
        platform: the opened home.
        run_id: the run.
        step: records each step; see `store.jobs`.
        is_halting: whether the process is closing.
    """
    execution = Execution(platform, run_id, is_halting)
    for name, work in execution.steps():
        state = step(name, partial(execution.guarded, name, work))
        if state in FINAL:
            return


class Execution:
    """One run being executed; every method reads the run afresh, for it may follow a restart."""

    def __init__(self, platform: Platform, run_id: str, is_halting: Callable[[], bool]) -> None:
        self._platform = platform
        self._id = run_id
        self._is_halting = is_halting
        self._folder = run_folder(platform, run_id)
        self._tenth: tuple[str, int] = ("", -1)

    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        """The steps by name, in order."""
        return [
            ("base", self._base),
            ("train", self._train),
            ("evaluate", self._evaluate),
            ("gates", self._gates),
            ("register", self._register),
            ("promote", self._promote),
            ("finish", self._finish),
        ]

    def guarded(self, name: str, work: Callable[[], None]) -> str:
        """Do one step unless the run has ended; a failure becomes the run's state. Returns the state."""
        run = self._run()
        if run.state in FINAL:
            return run.state
        try:
            if run.is_cancel_asked:
                raise Cancelled
            work()
        except Cancelled:
            self._end("cancelled", "The run was cancelled.", "warn")
        except GateRefused as error:
            self._end("refused", error.message, "error", error)
        except GristmillError as error:
            self._end("failed", error.message, "error", error)
        except Exception:  # noqa: BLE001 - a surface: the run fails, the server goes on
            if self._is_halting():  # what failed was the server itself, closing around this step
                raise Halted from None
            _log.exception("run_failed", run=self._id, step=name)
            unexpected = GristmillError(f"The step {name} failed unexpectedly.", hint="See the server's log.")
            self._end("failed", unexpected.message, "error", unexpected)
        return self._run().state

    def _base(self) -> None:
        run, recipe = self._run(), self._recipe()
        self._set("running")
        source = bases.resolve(recipe.base.model, base_path(recipe))
        self._event(f"Preparing the base model {source.name}.")
        base = bases.ensure_base(self._platform.home, source, self._prepare, self._platform.clock)
        folder = base.folder.removeprefix(f"{self._platform.home}/")
        self._set("running", base_folder=folder, base_licence=base.licence)
        _log.info("run_started", run=run.id, base=base.name)

    def _train(self) -> None:
        run, recipe = self._run(), self._recipe()
        with self._platform.db.read() as connection:
            version = datasets.get_version(connection, run.dataset_version_id)
        max_seconds, reason = cap(recipe, self._platform.settings.hourly_rate)
        job = TrainJob(
            run=run.id,
            fence=0,
            task=run.task,
            trainer=run.facts["trainer"],
            base=run.base,
            base_path=str(self._platform.home / run.facts["base_folder"]),
            parts={part: str(self._platform.blobs.path(blob)) for part, blob in version.parts.items()},
            hyper=run.facts["hyper"],
            seed=recipe.train.seed,
            device=recipe.train.device if recipe.train.device != "auto" else self._platform.settings.device,
            max_seconds=max_seconds,
            work_dir=str(self._folder.work),
            artifact_dir=str(self._folder.artifact),
            cap=reason,
        )
        trained = train(
            self._folder,
            job,
            next_fence=self._next_fence,
            on_progress=lambda progress: self._progress(progress, max_seconds),
            is_halting=self._is_halting,
        )
        self._set("running", trained=msgspec.to_builtins(trained))
        stopped = f", stopped by {trained.stopped_reason}" if trained.stopped_reason else ""
        self._event(f"Trained {trained.steps} steps in {trained.train_s:.1f} s{stopped}.", trained.metrics)

    def _evaluate(self) -> None:
        run = self._run()
        if "report_id" in run.facts:
            return
        self._event("Evaluating.")
        started = self._platform.clock.monotonic_s()
        report = verify.evaluate(self._platform, run, self._recipe(), self._folder, self._answered)
        seconds = self._platform.clock.monotonic_s() - started
        with self._platform.db.write() as connection:
            report_id = reports.add_report(connection, self._platform.clock, report, run.id)
            facts: dict[str, Any] = {"report_id": report_id, "evaluation_s": round(seconds, 3)}
            queries.set_state(connection, self._platform.clock, run.id, "running", **facts)

    def _gates(self) -> None:
        run = self._run()
        with self._platform.db.read() as connection:
            report = reports.get_report(connection, run.facts["report_id"])
        for verdict in report.verdicts:
            passed = "passed" if verdict.is_passed else "refused"
            self._event(f"Gate {passed}: {verdict.reason}.", level="info" if verdict.is_passed else "error")
        refused = [verdict.reason for verdict in report.verdicts if not verdict.is_passed]
        if refused:
            raise GateRefused(
                f"Refused by its gates: {'; '.join(refused)}.", hint=f"gristmill run show {run.id}"
            )

    def _register(self) -> None:
        release = verify.register(self._platform, self._run(), self._recipe(), self._folder)
        run = self._run()
        trained = msgspec.convert(run.facts["trained"], Trained)
        rate, currency = self._platform.settings.hourly_rate, self._platform.settings.currency
        spent = {"training": trained.train_s + trained.export_s, "evaluation": run.facts["evaluation_s"]}
        with self._platform.db.write() as connection:
            for purpose, seconds in spent.items():
                amount = machine_cost(seconds, rate)
                releases.add_cost(
                    connection, self._platform.clock, release.id, purpose, amount, currency, seconds
                )
        cost = self._post(f"capitalised:{release.id}", sum(spent.values()))
        self._set("running", release=release.id, cost=cost)
        self._event(
            f"Registered {release.product} {release.version} as {release.id}.", {"release": release.id}
        )

    def _promote(self) -> None:
        """Move the alias and add the recipe's plans, together: what is served can be sold."""
        run, recipe = self._run(), self._recipe()
        if run.facts.get("alias"):
            release: Release
            with self._platform.db.write() as connection:
                release = releases.get_release(connection, run.facts["release"])
                releases.promote(connection, self._platform.clock, release.id, run.facts["alias"])
                for plan in recipe.plans:
                    access.create_plan(connection, self._platform.clock, plan)
            self._event(f"Moved {release.product}@{run.facts['alias']} to version {release.version}.")
            self._platform.access_changed()
        self._platform.release_changed()

    def _finish(self) -> None:
        run = self._run()
        self._set("succeeded", release_id=run.facts["release"])
        self._event("The run succeeded.")

    def _end(self, state: str, message: str, level: str, error: GristmillError | None = None) -> None:
        facts: dict[str, Any] = {}
        if error is not None:
            facts["error"] = {
                "code": error.code,
                "message": error.message,
                "hint": error.hint,
                "param": error.param,
            }
        if self._run().state == "queued" and state != "cancelled":
            self._set("running")
        seconds = float(self._folder.seconds.read_text()) if self._folder.seconds.exists() else 0.0
        facts["cost"] = self._post(f"cost:{self._id}", seconds)
        self._event(message, level=level)
        self._set(state, **facts)

    def _post(self, account: str, seconds: float) -> int:
        """Book machine seconds once per run, capitalised with its release or as cost; returns nano-units."""
        amount = machine_cost(seconds, self._platform.settings.hourly_rate)
        if amount == 0:
            return 0
        entries = transfer(account, "accrued:hardware", amount, self._platform.settings.currency)
        clock = self._platform.clock
        at = clock.now().isoformat()
        self._platform.ledger.post_now(
            PostingGroup(clock.new_id("pg"), self._id, "training-cost", entries, at)
        )
        return amount

    def _progress(self, progress: Progress, max_seconds: float) -> None:
        """An event at a stage's start, its end and each tenth between."""
        if progress.stage == "estimate":
            seconds = progress.metrics["train_s"]
            cost = machine_cost(seconds, self._platform.settings.hourly_rate)
            self._set("running", estimate={**progress.metrics, "cost": cost})
            over = f"; the cap of {max_seconds:.0f} s will end it before" if 0 < max_seconds < seconds else ""
            level = "warn" if over else "info"
            self._event(f"Estimated {seconds:.0f} s of training{over}.", progress.metrics, level)
            return
        tenth = _TENTHS * progress.done // progress.total if progress.total else 0
        if (progress.stage, tenth) == self._tenth:
            return
        self._tenth = (progress.stage, tenth)
        figures = {"stage": progress.stage, "done": progress.done, "total": progress.total}
        share = f" {100 * progress.done // progress.total} %" if progress.total else ""
        self._event(f"{progress.stage}{share}", figures | progress.metrics)

    def _answered(self, _done: int, _total: int) -> None:
        """After each answer of an evaluation: stop when the process closes or the run is cancelled."""
        if self._is_halting():
            raise Halted
        if self._folder.cancel.exists():
            raise Cancelled

    def _prepare(self, trainer: str, source: Any, folder: Any) -> None:
        log = self._folder.path / "prepare"
        call(["prepare", trainer, str(source), str(folder)], log, self._is_halting)

    def _next_fence(self) -> int:
        with self._platform.db.write() as connection:
            return queries.next_fence(connection, self._id)

    def _run(self) -> Run:
        with self._platform.db.read() as connection:
            return queries.get_run(connection, self._id)

    def _recipe(self) -> Recipe:
        return Recipe.model_validate(self._run().recipe)

    def _set(self, state: str, release_id: str | None = None, **facts: Any) -> None:
        with self._platform.db.write() as connection:
            queries.set_state(connection, self._platform.clock, self._id, state, release_id, **facts)

    def _event(self, message: str, data: dict[str, Any] | None = None, level: str = "info") -> None:
        with self._platform.db.write() as connection:
            queries.add_event(connection, self._platform.clock, self._id, message, data or {}, level)
