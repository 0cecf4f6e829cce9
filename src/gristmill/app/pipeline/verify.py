"""From a trained artefact to evidence and a release: the joint of serve, evaluate and registry.

Invariant: what is measured is the served artefact, in its own engine, and what is registered is what was
measured (same digest).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import msgspec

from gristmill.app.pipeline.engines import answering, served_model, unregistered_model
from gristmill.app.platform import Platform
from gristmill.core.artifact import MANIFEST_NAME, Artifact, load_verified
from gristmill.core.op import Op, ServedModel
from gristmill.core.recipe import Recipe
from gristmill.core.release import Release
from gristmill.core.report import Gate, Report
from gristmill.core.rows import read_parquet
from gristmill.core.run import Run, Trained
from gristmill.ports.discovery import find, load
from gristmill.ports.task import Task
from gristmill.stages.access import queries as customers
from gristmill.stages.data import queries as datasets
from gristmill.stages.evaluate import measure
from gristmill.stages.evaluate import queries as reports
from gristmill.stages.evaluate.card import card
from gristmill.stages.registry import queries as releases
from gristmill.stages.train.folder import RunFolder
from gristmill.stages.train.start import call

_REPLAYED = 200
OnAnswer = Callable[[int, int], None]


def evaluate(
    platform: Platform, run: Run, recipe: Recipe, folder: RunFolder, on_answer: OnAnswer | None = None
) -> Report:
    """Measure a run's artefact beside baseline, base and production, and judge the gates.

    `on_answer` is called with (done, total) after each answer and may raise to end the work.
    """
    task: Task = load(find("tasks", run.task))
    with platform.db.read() as connection:
        version = datasets.get_version(connection, run.dataset_version_id)
        production = releases.current(connection, run.product, recipe.serve.alias)
    rows = read_parquet(platform.blobs.path(version.parts["test"])) if "test" in version.parts else []
    ops = [task.eval_op(row) for row in rows]
    outputs: dict[str, Any] = {
        "baseline": folder.read_outputs("baseline"),
        "base": folder.read_outputs("base"),
    }
    artifact = load_verified(folder.artifact)
    facts = {"size_bytes": float(sum((folder.artifact / name).stat().st_size for name in artifact.files))}
    replay = folder.read_replay()[:_REPLAYED]
    model = unregistered_model(
        run.id, artifact, folder.artifact, platform.home / str(run.facts["base_folder"])
    )
    models = [model]
    if artifact.kind == "adapter" and outputs["base"] is None:
        models.append(_bare_base(platform, run))
    with answering(platform, artifact.engine, models, recipe, on_answer) as answer:
        if len(models) > 1:
            outputs["base"] = measure.ask(answer, models[1].release, ops).outputs
        outputs[measure.CANDIDATE] = measure.ask(answer, run.id, ops).outputs
        facts |= measure.latency(answer, run.id, ops, platform.clock)
        served = measure.ask(answer, run.id, [item.op for item in replay]).outputs
        facts |= measure.parity(task, [item.output for item in replay], served)
    if production is not None and production.task == run.task:
        outputs["production"] = _outputs_of(platform, production, recipe, ops, on_answer)
    gates = [Gate(**gate.model_dump()) for gate in recipe.gates]
    measured = measure.report(task, rows, outputs, facts)
    return measure.decide(measured, measure.with_implicit(gates, task.op))


def register(platform: Platform, run: Run, recipe: Recipe, folder: RunFolder) -> Release:
    """Move the artefact into the home and register it with its report and card; a second time the same."""
    artifact = platform.blobs.adopt_artifact(folder.artifact)
    trained = msgspec.convert(run.facts["trained"], Trained)
    with platform.db.write() as connection:
        version = datasets.get_version(connection, run.dataset_version_id)
        report = reports.get_report(connection, run.facts["report_id"])
        release = releases.add_release(
            connection,
            platform.clock,
            product=run.product,
            task=run.task,
            engine=artifact.engine,
            kind=artifact.kind,
            base=artifact.base,
            base_digest=artifact.base_digest,
            digest=artifact.digest,
            customer_id=run.customer_id,
            public_name=_public_name(connection, run),
            run_id=run.id,
            report_id=run.facts["report_id"],
            licence=run.facts["base_licence"],
            card=card(
                title=run.product,
                facts=_card_facts(run, artifact),
                report=report,
                version=version,
                trained=trained,
                hyper=run.facts["hyper"],
            ),
            facts={
                **artifact.facts,
                "base_folder": run.facts["base_folder"],
                "options": recipe.serve.options,
            },
        )
        reports.tie_report(connection, run.facts["report_id"], release.id)
    return release


def _bare_base(platform: Platform, run: Run) -> ServedModel:
    """The base of an adapter as a model of its own, sealed once a home, to be asked beside the adapter."""
    base = platform.home / str(run.facts["base_folder"])
    folder = base.with_name(f".served-{base.name}")
    if not (folder / MANIFEST_NAME).is_file():
        partial = folder.with_name(f"{folder.name}.{platform.clock.new_id('tmp')}")
        log = platform.home / "runs" / run.id / "adopt"
        call(["adopt", run.facts["trainer"], run.task, run.base, str(base), str(partial)], log)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return ServedModel(release="base", path=str(folder), digest=load_verified(folder).digest)


def _outputs_of(
    platform: Platform, release: Release, recipe: Recipe, ops: list[Op], on_answer: OnAnswer | None
) -> list[Any]:
    model = served_model(platform, release)
    with answering(platform, release.engine, [model], recipe, on_answer) as answer:
        return measure.ask(answer, release.id, ops).outputs


def _public_name(connection: Any, run: Run) -> str | None:
    if run.customer_id is None:
        return None
    customer = customers.find_customer(connection, run.customer_id)
    return f"ft:{run.base}:{customer.slug}:{run.facts.get('suffix') or ''}:"


def _card_facts(run: Run, artifact: Artifact) -> dict[str, Any]:
    return {
        "task": run.task,
        "base model": artifact.base,
        "licence of the base model": run.facts["base_licence"],
        "engine": artifact.engine,
        "kind": artifact.kind,
        "digest": artifact.digest,
        "run": run.id,
        "recipe digest": run.recipe_digest,
    }
