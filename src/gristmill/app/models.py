"""Which models a caller may see: released products its plan includes, and its own fine-tunes.

Invariant: another customer's fine-tune answers as a model that does not exist.
Source: OpenAI API reference, "Models".
"""

from __future__ import annotations

import msgspec

from gristmill.app.gateway.routing import is_included
from gristmill.core.account import Caller
from gristmill.core.errors import NotFound
from gristmill.core.release import PRODUCTION, Release
from gristmill.stages.registry import queries as registry
from gristmill.store.session import Database

OPERATOR = "operator"


class Model(msgspec.Struct, frozen=True):
    """A public model name: since when (ISO 8601) and whose: "operator" or the customer's slug."""

    name: str
    created_at: str
    owner: str


def listed(db: Database, caller: Caller) -> list[Model]:
    """Every model this caller may ask for, by name."""
    with db.read() as connection:
        current = {
            release_id
            for (_, alias), release_id in registry.aliases(connection).items()
            if alias == PRODUCTION
        }
        releases = [one for one in registry.list_releases(connection) if one.id in current]
    found = [_shown(one, caller) for one in releases if _is_visible(one, caller)]
    return sorted(found, key=lambda model: model.name)


def get(db: Database, caller: Caller, name: str) -> Model:
    """One model by its public name.

    Raises:
        NotFound: it does not exist for this caller.
    """
    for model in listed(db, caller):
        if model.name == name:
            return model
    raise NotFound(f"The model {name!r} does not exist for you.", hint="See GET /v1/models.", param="model")


def _is_visible(release: Release, caller: Caller) -> bool:
    if release.customer_id is not None and release.customer_id != caller.customer.id:
        return False
    return release.customer_id is not None or is_included(release.name, caller.plan.models)


def _shown(release: Release, caller: Caller) -> Model:
    owner = OPERATOR if release.customer_id is None else caller.customer.slug
    return Model(release.name, release.created_at, owner)
