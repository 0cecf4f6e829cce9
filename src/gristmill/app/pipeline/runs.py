"""Runs: creating and cancelling them; `execute` does the work, `worker` finds the time for it.

Invariant: everything that can be refused is refused before a run exists: unknown base or trainer, wrong
settings, data of another task.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

from gristmill.app.platform import Platform
from gristmill.core.dataset import DatasetVersion
from gristmill.core.errors import Conflict, UsageError
from gristmill.core.money import to_nano
from gristmill.core.recipe import Recipe
from gristmill.core.run import FINAL, Run
from gristmill.ports.discovery import find, load
from gristmill.stages.registry import bases
from gristmill.stages.train import queries
from gristmill.stages.train.folder import RunFolder

_S_PER_HOUR = 3600


def create_run(
    platform: Platform,
    recipe: Recipe,
    version: DatasetVersion,
    *,
    customer_id: str | None = None,
    suffix: str | None = None,
    alias: str | None = None,
    facts: dict[str, Any] | None = None,
) -> Run:
    """Queue a run; a `worker` takes it up.

    Args:
        platform: the opened home.
        recipe: what to train; it goes into the run's record.
        version: the data.
        customer_id: whose fine-tune it is; its release gets an `ft:…` name.
        suffix: that name's part the customer chose.
        alias: moved to the release when the gates pass; None leaves all aliases alone.
        facts: kept in the run's facts (ids of files, the API's own fields).

    Raises:
        UsageError: settings the trainer refuses, or data of another task. Missing: the base is not here.
    """
    if version.task != recipe.product.task:
        raise UsageError(
            f"Dataset version {version.id} is for {version.task}, the recipe for {recipe.product.task}.",
            param="dataset",
        )
    task = find("tasks", recipe.product.task)
    trainer = find("trainers", recipe.train.trainer or task.capabilities["trainer"])
    hyper = load(trainer).check(dict(recipe.train.hyper))
    engine = find("engines", recipe.serve.engine or task.capabilities["engine"])
    source = bases.resolve(recipe.base.model, base_path(recipe))
    own = {"trainer": trainer.name, "engine": engine.name, "hyper": hyper, "suffix": suffix, "alias": alias}
    with platform.db.write() as connection:
        run = queries.add_run(
            connection,
            platform.clock,
            product=recipe.product.name,
            task=recipe.product.task,
            dataset_version_id=version.id,
            base=source.name,
            customer_id=customer_id,
            recipe=recipe.model_dump(mode="json"),
            recipe_digest=recipe.digest,
            facts=(facts or {}) | own,
        )
        message = f"Run {run.id} was created on dataset version {version.dataset} {version.number}."
        queries.add_event(connection, platform.clock, run.id, message, {"base": source.name})
    return run


def cancel_run(platform: Platform, run_id: str, customer_id: str | None = None) -> Run:
    """Ask a run to stop: one that waits ends now, a running one at its next checkpoint.

    Raises:
        NotFound: no such run. Conflict: it has ended already.
    """
    with platform.db.write() as connection:
        run = queries.get_run(connection, run_id, customer_id)
        if run.state in FINAL:
            raise Conflict(f"The run {run_id} is {run.state} already.", param="run")
        queries.ask_cancel(connection, run_id)
        if run.state == "queued":
            queries.set_state(connection, platform.clock, run_id, "cancelled")
            queries.add_event(connection, platform.clock, run_id, "The run was cancelled.", {}, "warn")
    if run.state == "running":
        folder = run_folder(platform, run_id)
        folder.create()
        folder.cancel.touch()
    with platform.db.read() as connection:
        return queries.get_run(connection, run_id)


def run_folder(platform: Platform, run_id: str) -> RunFolder:
    """Where a run's files lie."""
    return RunFolder(platform.home / "runs" / run_id)


def base_path(recipe: Recipe) -> Path | None:
    """The folder or file a recipe names for its base model, if it does."""
    return None if recipe.base.path is None else Path(recipe.base.path)


def cap(recipe: Recipe, hourly_rate: Decimal) -> tuple[float, str]:
    """Most training seconds a recipe allows (0 for no cap) and the `stopped_reason` when they end it."""
    limits: list[tuple[float, str]] = []
    if recipe.train.max_minutes > 0:
        limits.append((recipe.train.max_minutes * 60, "max_minutes"))
    if recipe.train.max_cost > 0 and hourly_rate > 0:
        limits.append((float(recipe.train.max_cost / hourly_rate * _S_PER_HOUR), "max_cost"))
    return min(limits, default=(0.0, "max_minutes"))


def machine_cost(seconds: float, hourly_rate: Decimal) -> int:
    """What machine seconds cost at the declared rate, in nano-units."""
    return to_nano(Decimal(f"{seconds:.3f}") * hourly_rate / _S_PER_HOUR)
