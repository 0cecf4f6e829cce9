"""Launching a recipe: data → dataset version → run → release → alias → plans, in one go.

Invariant: launching the same recipe again makes a new release from the same dataset version; nothing of an
earlier launch is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from gristmill.app.pipeline.runs import create_run
from gristmill.app.pipeline.worker import Worker, error_of, working
from gristmill.app.platform import Platform
from gristmill.core.account import Plan
from gristmill.core.dataset import DatasetVersion
from gristmill.core.errors import GristmillError
from gristmill.core.recipe import Recipe
from gristmill.core.release import Release
from gristmill.core.report import Report
from gristmill.core.run import Run
from gristmill.ports.discovery import find, load
from gristmill.stages.access import queries as access
from gristmill.stages.access.plans import to_plan
from gristmill.stages.data import queries as datasets
from gristmill.stages.data.prepare import prepare
from gristmill.stages.evaluate import queries as reports
from gristmill.stages.registry import queries as releases

OnStage = Callable[[str, int, int, str], None]
"""(stage, done, total, message); total 0 when unknown."""


class Launched(msgspec.Struct, frozen=True):
    """What a launch made."""

    version: DatasetVersion
    run: Run
    report: Report
    release: Release
    plans: list[Plan]


def launch(
    platform: Platform,
    recipe: Recipe,
    recipe_dir: Path,
    progress: OnStage = lambda *_: None,
    worker: Worker | None = None,
) -> Launched:
    """Take a recipe from its data to a release that its alias names, and its plans.

    Args:
        platform: the opened home.
        recipe: the product.
        recipe_dir: folder its paths are relative to.
        progress: told of each stage.
        worker: the server's; without one a worker lives for the length of the launch.

    Raises:
        GristmillError: data, training or export failed. GateRefused: the evidence did not suffice.
    """
    for spec in recipe.plans:  # a price that cannot be charged is found before anything is spent
        to_plan(spec, "", 1)
    version = add_dataset(platform, recipe, recipe_dir, progress)
    run = create_run(platform, recipe, version, alias=recipe.serve.alias)
    progress("run", 0, 0, run.id)
    with working(platform, worker) as own:
        if worker is not None:
            own.submit(run.id)
        run = own.wait(run.id, lambda p: progress(p.stage, p.done, p.total, _figures(p.metrics)))
    error = error_of(run)
    if error is not None:
        raise error
    if run.release_id is None:
        raise GristmillError(f"The run {run.id} was cancelled.")
    with platform.db.write() as connection:
        release = releases.get_release(connection, run.release_id)
        report = reports.get_report(connection, run.facts["report_id"])
        plans = [access.create_plan(connection, platform.clock, plan) for plan in recipe.plans]
    if plans:
        platform.access_changed()
    progress("release", 1, 1, f"{release.product} {release.version}")
    return Launched(version, run, report, release, plans)


def add_dataset(
    platform: Platform,
    recipe: Recipe,
    recipe_dir: Path,
    progress: OnStage = lambda *_: None,
    *,
    name: str | None = None,
    customer_id: str | None = None,
) -> DatasetVersion:
    """Prepare a recipe's data and register it; the same data returns the same dataset version.

    Args:
        platform: the home.
        recipe: what to read and how.
        recipe_dir: folder that its paths start from.
        progress: is told how far it is.
        name: of the dataset; None for the product's.
        customer_id: whose data it is; None for the operator's.
    """
    task = load(find("tasks", recipe.product.task))
    prepared = prepare(
        recipe,
        task,
        recipe_dir=recipe_dir,
        data_dir=platform.home / "data",
        blobs=platform.blobs,
        clock=platform.clock,
        progress=lambda stage, done, total: progress(stage, done, total, ""),
    )
    with platform.db.write() as connection:
        version = datasets.add_version(
            connection,
            platform.clock,
            name=name or recipe.product.name,
            prepared=prepared,
            customer_id=customer_id,
        )
    progress("dataset", 1, 1, f"{version.dataset} {version.number}")
    return version


def _figures(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
