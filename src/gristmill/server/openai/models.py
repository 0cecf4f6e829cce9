"""`/v1/models`: list and retrieve. Source: OpenAI API reference, "Models"."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from gristmill.app import models
from gristmill.server.openai.caller import WhoCalls, unix_s
from gristmill.store.session import Database


def router(db: Database, caller_of: WhoCalls) -> APIRouter:
    """The routes over the registry."""
    routes = APIRouter(prefix="/v1/models", tags=["models"])

    @routes.get("")
    def listed(request: Request) -> dict[str, Any]:
        """The models the caller's plan includes, and its own fine-tunes."""
        found = models.listed(db, caller_of(request))
        return {"object": "list", "data": [shown(model) for model in found]}

    @routes.get("/{name:path}")
    def retrieve(request: Request, name: str) -> dict[str, Any]:
        """One model by name."""
        return shown(models.get(db, caller_of(request), name))

    return routes


def shown(model: models.Model) -> dict[str, Any]:
    """A model as OpenAI's clients know it."""
    return {"id": model.name, "object": "model", "created": unix_s(model.created_at), "owned_by": model.owner}
