"""Operations from data to a trained model: launch, datasets and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
from pydantic import Field

from gristmill.app.operations.base import Emit, Params, Progress, operation
from gristmill.app.pipeline import launch as launching
from gristmill.app.pipeline.runs import cancel_run, create_run
from gristmill.app.pipeline.worker import error_of, working
from gristmill.app.platform import Platform
from gristmill.core.dataset import DatasetVersion
from gristmill.core.errors import UsageError
from gristmill.core.money import format_money
from gristmill.core.recipe import Recipe, parse, read
from gristmill.core.run import Run
from gristmill.ports import discovery
from gristmill.stages.data import queries as datasets
from gristmill.stages.data.prepare import load_part
from gristmill.stages.evaluate import queries as reports
from gristmill.stages.registry import queries as registry
from gristmill.stages.train import queries


class Launch(Params):
    """Parameters of `launch`."""

    positional: ClassVar[tuple[str, ...]] = ("recipe",)
    recipe: Path = Field(description="gristmill.toml or the folder that holds it.")


@operation("launch", "", Launch)
def launch(platform: Platform, params: Launch, emit: Emit) -> dict[str, Any]:
    """Take a recipe from raw data to a released, priced model.

    Reads and masks the data, makes an immutable dataset version, trains, exports, measures, judges the gates,
    registers the release, moves the recipe's alias to it and adds its plans. Exit code 3 when a gate refuses.
    """
    recipe = read(params.recipe)
    made = launching.launch(platform, recipe, _folder(params.recipe), _told(emit), platform.worker)
    document = run_document(platform, made.run)
    return {"id": made.release.id, "run": made.run.id} | _headline(document)


def _headline(document: dict[str, Any]) -> dict[str, Any]:
    """What a person wants to see of a launch first."""
    version, report, release = document["dataset_version"], document["report"], document["release"]
    shown = {
        metric["name"]: f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"
        for metric in report["metrics"]["candidate"]
    }
    return {
        "dataset_version": f"{version['dataset']}@{version['number']}",
        "release": f"{release['product']} version {release['version']}",
        "metrics": shown,
        "gates": [verdict["reason"] for verdict in report["verdicts"]],
        "cost": document["cost"],
    }


class DatasetAdd(Params):
    """Parameters of `dataset add`."""

    positional: ClassVar[tuple[str, ...]] = ("source",)
    source: Path = Field(description="A recipe (file or folder), or a CSV, JSONL or Parquet file.")
    name: str | None = Field(None, description="Name of the dataset; needed for a data file.")
    task: str | None = Field(None, description="Task of the rows; needed for a data file.")
    column: list[str] = Field([], description="FIELD=COLUMN, where the file's column has another name.")
    group: str | None = Field(None, description="Column whose rows stay in one part.")
    licence: str = Field("unknown", description="SPDX id or text.")
    allow: list[str] = Field([], description="Text that masking must leave, such as your own contacts.")


@operation("dataset", "add", DatasetAdd)
def dataset_add(platform: Platform, params: DatasetAdd, emit: Emit) -> dict[str, Any]:
    """Read, check, mask, deduplicate and split data into an immutable version.

    Bad rows are reported with file, line, field and reason in a masked rejects file, never silently dropped.
    """
    is_recipe = params.source.is_dir() or params.source.suffix == ".toml"
    recipe = read(params.source) if is_recipe else _recipe_of_file(params)
    version = launching.add_dataset(platform, recipe, _folder(params.source), _told(emit))
    return version_document(version)


def _recipe_of_file(params: DatasetAdd) -> Recipe:
    for name in ("name", "task"):
        if getattr(params, name) is None:
            raise UsageError(f"A data file needs --{name}.", hint="Or name a recipe.", param=name)
    columns = {}
    for pair in params.column:
        field, separator, column = pair.partition("=")
        if not separator:
            raise UsageError(f"--column {pair!r} is not FIELD=COLUMN.", param="column")
        columns[field] = column
    return parse(
        {
            "product": {"name": params.name, "task": params.task},
            "data": {
                "source": {"path": params.source.name},
                "columns": columns,
                "group": params.group,
                "licence": params.licence,
                "allow": params.allow,
            },
            "base": {"model": "none"},
        }
    )


@operation("dataset", "list", is_read=True, columns=("id", "dataset", "number", "task", "licence", "counts"))
def dataset_list(platform: Platform, _params: Params, _emit: Emit) -> list[dict[str, Any]]:
    """List dataset versions."""
    with platform.db.read() as connection:
        return [version_document(each) for each in datasets.list_versions(connection)]


class DatasetName(Params):
    """Parameters that name a dataset version."""

    positional: ClassVar[tuple[str, ...]] = ("version",)
    version: str = Field(description="Version id, name, or name@number.")


class DatasetShow(DatasetName):
    """Parameters of `dataset show`."""

    rows: int = Field(0, ge=0, le=10_000, description="Show this many rows too.")
    part: Literal["train", "validation", "test"] = Field("test", description="Part the rows are taken from.")


@operation("dataset", "show", DatasetShow, is_read=True)
def dataset_show(platform: Platform, params: DatasetShow, _emit: Emit) -> dict[str, Any]:
    """Show a dataset version with its lineage and its first rejects."""
    with platform.db.read() as connection:
        version = datasets.get_version(connection, params.version)
    rejects = []
    if version.rejects_blob is not None:
        lines = platform.blobs.get(version.rejects_blob).splitlines()[:20]
        rejects = [msgspec.json.decode(line) for line in lines]
    rows = []
    if params.rows and params.part in version.parts:
        task = discovery.load(discovery.find("tasks", version.task))
        rows = load_part(platform.blobs.path(version.parts[params.part]), task)[: params.rows]
    return version_document(version) | {"rejects": rejects, "rows": rows}


@operation("dataset", "delete", DatasetName)
def dataset_delete(platform: Platform, params: DatasetName, _emit: Emit) -> dict[str, Any]:
    """Delete a dataset version that no run uses."""
    with platform.db.write() as connection:
        version = datasets.get_version(connection, params.version)
        datasets.delete_version(connection, platform.clock, version.id)
    return {"id": version.id, "deleted": True}


class RunStart(Params):
    """Parameters of `run start`."""

    positional: ClassVar[tuple[str, ...]] = ("recipe",)
    recipe: Path = Field(description="gristmill.toml or the folder that holds it.")
    dataset: str | None = Field(
        None, description="Dataset version (id or name@number); else the recipe's data."
    )
    wait: bool = Field(True, description="Follow the run to its end; without a server it always waits.")


@operation("run", "start", RunStart)
def run_start(platform: Platform, params: RunStart, emit: Emit) -> dict[str, Any]:
    """Train a recipe; the release is registered but no alias moves."""
    recipe = read(params.recipe)
    if params.dataset is None:
        version = launching.add_dataset(platform, recipe, _folder(params.recipe), _told(emit))
    else:
        with platform.db.read() as connection:
            version = datasets.get_version(connection, params.dataset)
    run = create_run(platform, recipe, version)
    with working(platform, platform.worker) as worker:
        if platform.worker is not None:
            worker.submit(run.id)
        if params.wait or platform.worker is None:
            run = worker.wait(run.id, lambda seen: emit(Progress(seen.stage, seen.done, seen.total)))
    error = error_of(run)
    if error is not None:
        raise error
    return run_document(platform, run)


@operation(
    "run",
    "list",
    is_read=True,
    columns=("id", "product", "task", "state", "base", "created_at", "release_id"),
)
def run_list(platform: Platform, _params: Params, _emit: Emit) -> list[dict[str, Any]]:
    """List runs, newest first."""
    with platform.db.read() as connection:
        return [msgspec.to_builtins(each) for each in queries.list_runs(connection)]


class RunName(Params):
    """Parameters of `run show` and `run cancel`."""

    positional: ClassVar[tuple[str, ...]] = ("run",)
    run: str = Field(description="Run id.")


@operation("run", "show", RunName, is_read=True)
def run_show(platform: Platform, params: RunName, _emit: Emit) -> dict[str, Any]:
    """Show a run with its data, report, gates and release."""
    with platform.db.read() as connection:
        run = queries.get_run(connection, params.run)
    return run_document(platform, run)


@operation("run", "cancel", RunName)
def run_cancel(platform: Platform, params: RunName, _emit: Emit) -> dict[str, Any]:
    """Stop a run at its next checkpoint."""
    run = cancel_run(platform, params.run)
    return {"id": run.id, "state": run.state, "is_cancel_asked": run.is_cancel_asked}


def run_document(platform: Platform, run: Run) -> dict[str, Any]:
    """A run with everything it points at, as JSON-able data."""
    with platform.db.read() as connection:
        version = datasets.get_version(connection, run.dataset_version_id)
        report_id = run.facts.get("report_id")
        report = None if report_id is None else reports.get_report(connection, report_id)
        release = None if run.release_id is None else registry.get_release(connection, run.release_id)
    trained = run.facts.get("trained") or {}
    cost = run.facts.get("cost")
    return {
        "id": run.id,
        "product": run.product,
        "state": run.state,
        "base": run.base,
        "dataset_version": version_document(version),
        "hyper": run.facts.get("hyper"),
        "estimate": run.facts.get("estimate"),
        "train_s": trained.get("train_s", 0.0),
        "trained": trained,
        "cost": None if cost is None else format_money(cost, platform.settings.currency, 6),
        "stopped_reason": trained.get("stopped_reason"),
        "error": run.facts.get("error"),
        "report": None if report is None else msgspec.to_builtins(report),
        "release": None if release is None else release_document(release),
        "created_at": run.created_at,
        "ended_at": run.ended_at,
    }


def version_document(version: DatasetVersion) -> dict[str, Any]:
    """A dataset version as JSON-able data."""
    document: dict[str, Any] = msgspec.to_builtins(version)
    return document


def release_document(release: Any) -> dict[str, Any]:
    """A release as JSON-able data, under its public name."""
    document: dict[str, Any] = msgspec.to_builtins(release)
    return document | {"name": release.name}


def _folder(recipe: Path) -> Path:
    return recipe if recipe.is_dir() else recipe.parent


def _told(emit: Emit) -> launching.OnStage:
    return lambda stage, done, total, message: emit(Progress(stage, done, total, message))
