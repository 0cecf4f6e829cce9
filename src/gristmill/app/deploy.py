"""What should be served: the releases that aliases point at, gathered for the supervisor.

Invariant: a customer's fine-tune is served once its training is settled (`app.finetuning.settle`).
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from gristmill.app.finetuning.settle import settle, unsettled
from gristmill.app.pipeline.engines import engine_options, served_model
from gristmill.app.platform import Platform
from gristmill.core.errors import GristmillError
from gristmill.core.op import EngineSpec
from gristmill.core.release import Release
from gristmill.stages.registry import queries as registry
from gristmill.stages.serve.supervisor import GroupKey, Wanted, grouped

_log = structlog.get_logger(__name__)


def wanted_releases(platform: Platform) -> list[Release]:
    """Every release that an alias points at and that may be served."""
    releases = _current(platform)
    waiting = {one.id for one in unsettled(platform, releases)}
    return [one for one in releases if one.id not in waiting]


def settle_waiting(platform: Platform) -> None:
    """Settle the training of fine-tunes that wait for it."""
    settle(platform, _current(platform))


def _current(platform: Platform) -> list[Release]:
    with platform.db.read() as connection:
        current = set(registry.aliases(connection).values())
        return [one for one in registry.list_releases(connection) if one.id in current]


def desired(platform: Platform, releases: Iterable[Release]) -> dict[GroupKey, EngineSpec]:
    """The engine children that serve these releases; one whose files are gone is left out and logged."""
    found: list[Wanted] = []
    for release in releases:
        try:
            model = served_model(platform, release)
        except GristmillError as error:
            _log.error("release_not_servable", release=release.id, reason=error.message)
            continue
        options = engine_options(platform, release.facts.get("options", {}))
        base = release.base_digest if release.kind == "adapter" else None
        found.append(Wanted(release.engine, model, options, base))
    return grouped(found)
