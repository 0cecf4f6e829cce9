"""Operations on releases and what is served of them."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from pydantic import Field

from gristmill.app.operations.base import Emit, Params, operation
from gristmill.app.operations.chain import release_document
from gristmill.app.pipeline.imports import import_release
from gristmill.app.platform import Platform
from gristmill.stages.registry import queries


class ReleaseList(Params):
    """Parameters of `release list`."""

    product: str | None = Field(None, description="Only this product's.")


@operation(
    "release",
    "list",
    ReleaseList,
    is_read=True,
    columns=("id", "name", "version", "task", "engine", "kind", "aliases", "created_at"),
)
def release_list(platform: Platform, params: ReleaseList, _emit: Emit) -> list[dict[str, Any]]:
    """List releases, newest first, with the aliases that point at them."""
    with platform.db.read() as connection:
        found = queries.list_releases(connection, params.product)
        pointing = queries.aliases(connection)
    return [
        release_document(each)
        | {"aliases": [alias for (_, alias), target in pointing.items() if target == each.id]}
        for each in found
    ]


class ReleaseName(Params):
    """Parameters that name one release."""

    positional: ClassVar[tuple[str, ...]] = ("release",)
    release: str = Field(description="Release id, ft: name, product@version, product@alias, or product.")


@operation("release", "show", ReleaseName, is_read=True)
def release_show(platform: Platform, params: ReleaseName, _emit: Emit) -> dict[str, Any]:
    """Show a release with its card and the history of its product's aliases."""
    with platform.db.read() as connection:
        found = queries.get_release(connection, params.release)
        moves = queries.history(connection, found.product)
    return release_document(found) | {"history": [msgspec.to_builtins(move) for move in moves]}


class ReleaseImport(Params):
    """Parameters of `release import`."""

    positional: ClassVar[tuple[str, ...]] = ("source",)
    source: str = Field(description="Folder, GGUF or ONNX file, hub id, or a known base model's name.")
    product: str = Field(description="Product it becomes a version of; its public model name.")
    task: str = Field(description="What it does: classify, embed, chat …")
    licence: str = Field("unknown", description="SPDX id; it goes into the card.")
    alias: str | None = Field(None, description="Alias to move to it, e.g. production.")


@operation("release", "import", ReleaseImport)
def release_import(platform: Platform, params: ReleaseImport, _emit: Emit) -> dict[str, Any]:
    """Register a model that was not trained here, with hashes, licence and a first report."""
    made = import_release(
        platform,
        params.source,
        product=params.product,
        task=params.task,
        licence=params.licence,
        alias=params.alias,
    )
    return release_document(made)


class Promote(ReleaseName):
    """Parameters of `release promote`."""

    alias: str = Field("production", description="Alias to move; production is what is served.")


@operation("release", "promote", Promote)
def release_promote(platform: Platform, params: Promote, _emit: Emit) -> dict[str, Any]:
    """Point an alias at a release: the deploy."""
    with platform.db.write() as connection:
        move = queries.promote(connection, platform.clock, params.release, params.alias)
    platform.release_changed()
    document: dict[str, Any] = msgspec.to_builtins(move)
    return document


class Rollback(Params):
    """Parameters of `release rollback`."""

    positional: ClassVar[tuple[str, ...]] = ("product",)
    product: str = Field(description="Product.")
    alias: str = Field("production", description="Alias to move back.")


@operation("release", "rollback", Rollback)
def release_rollback(platform: Platform, params: Rollback, _emit: Emit) -> dict[str, Any]:
    """Point an alias back at the release it named before: the rollback."""
    with platform.db.write() as connection:
        move = queries.rollback(connection, platform.clock, params.product, params.alias)
    platform.release_changed()
    document: dict[str, Any] = msgspec.to_builtins(move)
    return document


@operation("deployment", "list", is_read=True)
def deployment_list(platform: Platform, _params: Params, _emit: Emit) -> list[dict[str, Any]]:
    """List what is being served now; nothing when no server runs."""
    return platform.deployments()
