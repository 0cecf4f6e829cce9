"""Routing: from the public model name a client asks for to the release that answers, and who may ask.

Invariant: another customer's model answers exactly as one that does not exist (404); only a model that the
caller may know of can be refused by its plan (403).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from sqlalchemy import Connection

from gristmill.core.account import Caller
from gristmill.core.errors import Forbidden, NotFound, UsageError
from gristmill.core.release import PRODUCTION
from gristmill.stages.registry import queries as registry
from gristmill.store.session import Database

_SHOWN_CHARS = 80


class Target(msgspec.Struct, frozen=True):
    """A public model name and what answers it; `owner_id` None for the operator's products."""

    model: str
    task: str
    release_id: str
    digest: str
    owner_id: str | None = None


def read_targets(c: Connection) -> list[Target]:
    """Every release that an alias `production` points at, under its public name."""
    live = {release_id for (_, alias), release_id in registry.aliases(c).items() if alias == PRODUCTION}
    return [
        Target(one.name, one.task, one.id, one.digest, one.customer_id)
        for one in registry.list_releases(c)
        if one.id in live
    ]


class Routes:
    """Public name → target, in memory; swapped whole by `refresh` once the engines have the release."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._targets: dict[str, Target] = {}

    def refresh(self, is_served: Callable[[str], bool] = lambda _: True) -> None:
        """Read the aliases again; call it after each move, when the new release is being served.

        Args:
            is_served: whether an engine has a release; a name whose new release has none keeps its former
                target while that one is served, so a deploy that fails changes nothing for anybody.
        """
        with self._db.read() as c:
            found = {target.model: target for target in read_targets(c)}
        for model, target in found.items():
            former = self._targets.get(model)
            if former is not None and not is_served(target.release_id) and is_served(former.release_id):
                found[model] = former
        self._targets = found

    def find(self, caller: Caller, model: str, task: str, path: str) -> Target:
        """The target of a model name for one caller on one route.

        Args:
            caller: who asks.
            model: the name asked for.
            task: the task whose endpoint was called.
            path: that endpoint's path, for the message.

        Raises:
            NotFound: no such model, or another customer's. Forbidden: the plan does not include it.
            UsageError: it is a model of another task.
        """
        target = self._targets.get(model)
        if target is None or target.owner_id not in (None, caller.customer.id):
            shown = model if len(model) <= _SHOWN_CHARS else model[:_SHOWN_CHARS] + "…"
            raise NotFound(f"The model {shown!r} does not exist.", hint="See GET /v1/models.", param="model")
        if target.owner_id is None and not is_included(model, caller.plan.models):
            raise Forbidden(
                f"The plan {caller.plan.name} does not include the model {model!r}.",
                hint="Ask the operator for a plan that does.",
                param="model",
            )
        if target.task != task:
            raise UsageError(f"The model {model!r} is for {target.task}; {path} is not.", param="model")
        return target


def is_included(model: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name is one of the names or patterns ("*", "ft:*") of a plan."""
    return any(
        model == pattern or (pattern.endswith("*") and model.startswith(pattern[:-1])) for pattern in patterns
    )
