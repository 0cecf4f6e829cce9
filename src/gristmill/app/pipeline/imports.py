"""Importing a release: a model that was not trained here, with its hashes, licence and a first report.

Invariant: what is imported is sealed like what is trained (safetensors, GGUF or ONNX; pickle is refused), and
it was loaded and asked in its engine before it is registered.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gristmill.app.pipeline.engines import answering, unregistered_model
from gristmill.app.platform import Platform
from gristmill.core.artifact import MANIFEST_NAME, Artifact, file_sha256, load_verified
from gristmill.core.errors import UsageError
from gristmill.core.recipe import Recipe, parse
from gristmill.core.release import Release
from gristmill.core.report import Gate, Report
from gristmill.ports.discovery import find, load
from gristmill.stages.evaluate import measure, probes
from gristmill.stages.evaluate import queries as reports
from gristmill.stages.evaluate.card import card
from gristmill.stages.registry import bases
from gristmill.stages.registry import queries as releases
from gristmill.stages.train.start import call

_WEIGHTS = {".safetensors", ".gguf", ".onnx"}
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}
_ANSWERS = "answers"
_UNKNOWN = "unknown"


def import_release(
    platform: Platform,
    source: str,
    *,
    product: str,
    task: str,
    licence: str = _UNKNOWN,
    trainer: str | None = None,
    alias: str | None = None,
) -> Release:
    """Register a model from a local folder, a GGUF or ONNX file, or a hub id.

    Args:
        platform: the opened home.
        source: path, hub id or the name of a known base model.
        product: the product it becomes a version of.
        task: what it does.
        licence: SPDX id for the card; that of a known base model when "unknown".
        trainer: plug-in that adopts it; the task's own by default.
        alias: moved to it when given.

    Raises:
        NotFound: nothing there. UsageError: pickled weights, or a wrong product name.
        Missing: the hub is out of reach. BrokenInvariant: it does not answer in its engine.
    """
    recipe = _recipe(product, task, source)
    manifest = find("tasks", task)
    path, described, known_licence = _find(platform, source)
    work = platform.home / "runs" / platform.clock.new_id("imp")
    artifact_dir = work / "artifact"
    try:
        hashes = _hashes(path)
        if (path / MANIFEST_NAME).is_file():
            load_verified(path)
            shutil.copytree(path, artifact_dir)
        else:
            name = trainer or manifest.capabilities["trainer"]
            call(["adopt", name, task, path.stem, str(path), str(artifact_dir)], work)
        artifact = load_verified(artifact_dir)
        report = _first_report(platform, artifact, artifact_dir, recipe)
        platform.blobs.adopt_artifact(artifact_dir)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    facts = {"source": described, "source_sha256": hashes, **artifact.facts}
    licence = known_licence if licence == _UNKNOWN else licence
    release = _register(platform, recipe, artifact, report, licence, facts, alias)
    platform.release_changed()
    return release


def _register(
    platform: Platform,
    recipe: Recipe,
    artifact: Artifact,
    report: Report,
    licence: str,
    facts: dict[str, Any],
    alias: str | None,
) -> Release:
    shown = {"task": recipe.product.task, "imported from": facts["source"], "licence": licence}
    shown |= {"engine": artifact.engine, "kind": artifact.kind, "digest": artifact.digest}
    shown |= {f"SHA-256 of {name}": value for name, value in facts["source_sha256"].items()}
    with platform.db.write() as connection:
        report_id = reports.add_report(connection, platform.clock, report)
        release = releases.add_release(
            connection,
            platform.clock,
            product=recipe.product.name,
            task=recipe.product.task,
            engine=artifact.engine,
            kind=artifact.kind,
            base=artifact.base,
            base_digest=artifact.base_digest,
            digest=artifact.digest,
            customer_id=None,
            public_name=None,
            run_id=None,
            report_id=report_id,
            licence=licence,
            card=card(title=recipe.product.name, facts=shown, report=report),
            facts=facts,
        )
        reports.tie_report(connection, report_id, release.id)
        if alias is not None:
            releases.promote(connection, platform.clock, release.id, alias)
    return release


def _first_report(platform: Platform, artifact: Artifact, folder: Path, recipe: Recipe) -> Report:
    """Size, load time and latency on a few probes, gated on having answered them."""
    ops = probes.probes(load(find("tasks", recipe.product.task)).op)
    facts = {"size_bytes": float(sum((folder / name).stat().st_size for name in artifact.files))}
    started = platform.clock.monotonic_s()
    model = unregistered_model("import", artifact, folder, None)
    with answering(platform, artifact.engine, [model], recipe) as answer:
        facts["load_s"] = platform.clock.monotonic_s() - started
        facts[_ANSWERS] = float(len(measure.ask(answer, "import", ops).outputs))
        facts |= measure.latency(answer, "import", ops, platform.clock)
    gate = Gate(_ANSWERS, min=float(len(ops)))
    return measure.decide(Report(metrics={}, differences={}, facts=facts), [gate])


def _find(platform: Platform, source: str) -> tuple[Path, str, str]:
    """The model's place, where it came from, and the licence that is known of it."""
    if Path(source).exists():
        return Path(source).resolve(), f"path {Path(source).name}", _UNKNOWN
    found = bases.resolve(source)
    path = found.path
    if path is None:
        path = bases.hub_snapshot(found.hub or source, platform.home / "bases" / ".hub")
    return path, found.source, found.licence


def _hashes(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    weights = [file for file in files if file.suffix in _WEIGHTS]
    pickled = [file for file in files if file.suffix in _PICKLED]
    if pickled and not weights:
        raise UsageError(
            f"{pickled[0].name} may hold a pickle, which can run code when loaded.",
            hint="Convert the weights to safetensors, GGUF or ONNX.",
            param="source",
        )
    if not weights and not (path / MANIFEST_NAME).is_file():
        raise UsageError(f"{path.name} holds no safetensors, GGUF or ONNX weights.", param="source")
    return {file.name: file_sha256(file) for file in weights}


def _recipe(product: str, task: str, source: str) -> Recipe:
    """The least recipe of an imported product; it checks the product's name and carries no data."""
    return parse(
        {
            "product": {"name": product, "task": task},
            "data": {"source": {"path": "none"}},
            "base": {"model": source},
        }
    )
