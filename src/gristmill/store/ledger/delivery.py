"""Handing results back from the writer's thread: one wake-up of each event loop a batch, not one an item."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Literal

import msgspec

from gristmill.core.errors import GristmillError


class Command:
    """Something the writer is to do, with the future that waits for it (of a loop, or of a thread)."""

    __slots__ = ("future", "kind", "loop", "payload")

    def __init__(self, kind: Literal["settle", "journal", "work"], payload: Any) -> None:
        self.kind = kind
        self.payload = payload
        self.loop: asyncio.AbstractEventLoop | None = None
        self.future: asyncio.Future[Any] | Future[Any] = Future()


class Outcome(msgspec.Struct, frozen=True):
    """What became of a command: a result or an error."""

    command: Command
    result: Any
    error: GristmillError | None


def deliver(outcomes: Sequence[Outcome]) -> None:
    """Resolve all futures; those of a loop that has closed meanwhile are left (nobody waits)."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for outcome in outcomes:
        loop = outcome.command.loop
        if loop is None:
            _resolve(outcome)
        else:
            by_loop.setdefault(loop, []).append(outcome)
    for loop, waiting in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve_all, waiting)
        except RuntimeError:
            continue


def _resolve_all(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        _resolve(outcome)


def _resolve(outcome: Outcome) -> None:
    future = outcome.command.future
    if future.done():  # the request was cancelled while it waited; what it asked for is done all the same
        return
    if outcome.error is not None:
        future.set_exception(outcome.error)
    else:
        future.set_result(outcome.result)
