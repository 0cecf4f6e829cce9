"""Operations: all an operator can do, defined once and shown by the CLI, the manage API and the library.

Invariant: an operation takes an open Platform, checked parameters and a progress callback, and returns
JSON-able data; it never prints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
from pydantic import BaseModel, ConfigDict

from gristmill.app.platform import Platform
from gristmill.core.errors import NotFound
from gristmill.core.progress import Emit, Progress
from gristmill.core.recipe import validated


class Params(BaseModel):
    """Parameters of an operation; fields named in `positional` are arguments on the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    positional: ClassVar[tuple[str, ...]] = ()


class Operation(msgspec.Struct, frozen=True):
    """One noun and verb.

    Attributes:
        is_read: it changes nothing, so a viewer may run it. columns: what a table of its results shows.
    """

    noun: str
    verb: str
    summary: str
    params: type[Params]
    function: Callable[[Platform, Any, Emit], Any]
    is_read: bool
    columns: tuple[str, ...]


__all__ = ["Emit", "Operation", "Params", "Progress", "operation", "operations", "run"]

_registry: dict[tuple[str, str], Operation] = {}


def operation(
    noun: str,
    verb: str,
    params: type[Params] = Params,
    *,
    is_read: bool = False,
    columns: tuple[str, ...] = (),
) -> Callable[[Callable[[Platform, Any, Emit], Any]], Callable[[Platform, Any, Emit], Any]]:
    """Register a function as an operation; the first line of its docstring is its summary."""

    def register(function: Callable[[Platform, Any, Emit], Any]) -> Callable[[Platform, Any, Emit], Any]:
        summary = (function.__doc__ or "").strip().splitlines()[0].rstrip(".")
        _registry[noun, verb] = Operation(noun, verb, summary, params, function, is_read, columns)
        return function

    return register


def operations() -> dict[tuple[str, str], Operation]:
    """All operations by (noun, verb)."""
    return _registry


def run(platform: Platform, noun: str, verb: str, params: dict[str, Any], emit: Emit) -> Any:
    """Check the parameters and run one operation.

    Raises:
        NotFound: no such operation. UsageError: a parameter is wrong.
    """
    found = _registry.get((noun, verb))
    if found is None:
        raise NotFound(f"There is no operation {noun} {verb}.", hint="See gristmill --help.")
    return found.function(platform, validated(found.params, params, f"{noun} {verb}"), emit)
