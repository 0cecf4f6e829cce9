"""What an engine is told of releases, and engines started for evaluation alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gristmill.app.platform import Platform
from gristmill.core.artifact import Artifact
from gristmill.core.op import EngineSpec, ServedModel
from gristmill.core.recipe import Recipe
from gristmill.core.release import Release
from gristmill.stages.evaluate.measure import Answer


def served_model(platform: Platform, release: Release) -> ServedModel:
    """A release as an engine loads it; an adapter comes with the folder of its base."""
    folder = release.facts.get("base_folder")
    is_adapter = release.kind == "adapter" and folder is not None
    return ServedModel(
        release=release.id,
        path=str(platform.blobs.artifact_path(release.digest)),
        digest=release.digest,
        base_path=str(platform.home / str(folder)) if is_adapter else None,
    )


def unregistered_model(name: str, artifact: Artifact, folder: Path, base_folder: Path | None) -> ServedModel:
    """An artefact that is not registered yet, as an engine loads it under `name`."""
    base = str(base_folder) if artifact.kind == "adapter" and base_folder is not None else None
    return ServedModel(release=name, path=str(folder), digest=artifact.digest, base_path=base)


def engine_options(platform: Platform, options: dict[str, Any]) -> dict[str, Any]:
    """A recipe's engine options with the home's thread count where it names none."""
    threads = {"threads": platform.settings.threads} if platform.settings.threads else {}
    return threads | options


@contextmanager
def answering(
    platform: Platform,
    engine: str,
    models: list[ServedModel],
    recipe: Recipe,
    on_answer: Callable[[int, int], None] | None = None,
) -> Iterator[Answer]:
    """An engine child for the length of the block, as the callable that evaluation asks.

    `on_answer` is called with (done, total) after each answer and may raise to end the work.
    """
    from gristmill.stages.serve.session import EngineSession

    spec = EngineSpec(engine, tuple(models), engine_options(platform, recipe.serve.options))
    with EngineSession(spec) as session:
        yield lambda release, ops: session.run(release, ops, progress=on_answer)
