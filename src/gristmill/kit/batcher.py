"""The batcher: many requests' items become batches of like length, with no wait of its own.

Whenever the runner is free, the item whose turn it is goes, and with it those nearest in length, as far as
the token budget and the allowed padding reach. One client therefore never waits for company, and 32 clients
get batches with almost no padding. Turns follow start-time fair queueing: a request of 2,000 texts does not
hold up the single text that comes after it.
Invariant: nobody starves (the item with the lowest tag leads every batch, and tags only rise), and one batch
holds items of one group only.
Source: Goyal, Vin and Cheng, Start-time Fair Queueing (SIGCOMM 1996).
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import structlog

from gristmill.core.errors import BrokenInvariant, GristmillError, Unavailable

_log = structlog.get_logger()
_NEVER = 1 << 60

MAX_PADDING_TOKENS = 4
"""Padding that one more text may bring into a batch; starting a run costs about as much as nine tokens of
MiniLM, so a text that brings more is better off in a batch of its own (simulated for 32 clients)."""


class Item(msgspec.Struct, eq=False):
    """One text of a request, by its token ids.

    Attributes:
        group: items of one group may share a batch (a release). ids: token ids.
        done: called once with (result, seconds of the batch that fall to this item) or with an error.
        is_dropped: set by whoever no longer wants it; it is then never run.
        tag: its turn, in tokens of virtual time; set by `Batcher.put`.
    """

    group: str
    ids: Sequence[int]
    done: Callable[[Any, float, GristmillError | None], None]
    is_dropped: bool = False
    tag: int = 0


class Batcher:
    """See the module.

    Args:
        run: (group, rows of ids) → one result a row; called in the batcher's own threads.
        batch_tokens: padded tokens of a batch at most.
        max_items: waiting items at most, over all groups.
        workers: batches that run side by side, each in a thread of its own.
    """

    def __init__(
        self,
        run: Callable[[str, list[Sequence[int]]], list[Any]],
        *,
        batch_tokens: int,
        max_items: int,
        workers: int = 1,
    ) -> None:
        self._run = run
        self._batch_tokens = batch_tokens
        self._max_items = max_items
        self._waiting: list[Item] = []
        self._now = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self.counters = {"batches": 0.0, "tokens": 0.0, "padded_tokens": 0.0, "busy_s": 0.0}
        self._threads = [
            threading.Thread(target=self._work, name=f"batcher-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, items: Sequence[Item]) -> None:
        """Queue the items of one request.

        Raises:
            Unavailable: the queue is full, or the batcher is closed.
        """
        with self._changed:
            if self._is_closed or len(self._waiting) + len(items) > self._max_items:
                raise Unavailable("The model has too much work waiting.", hint="Try again in a moment.")
            turn = self._now
            for item in items:
                turn += len(item.ids)
                item.tag = turn
            self._waiting.extend(items)
            self._changed.notify_all()

    def queue_length(self) -> int:
        """Items waiting."""
        return len(self._waiting)

    def close(self) -> None:
        """Finish the running batches and end the threads; what waits is answered with Unavailable."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for item in self._waiting:
            item.done(None, 0.0, Unavailable("The model is shutting down."))
        self._waiting.clear()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
                batch = self._take()
            if batch:
                self._answer(batch)

    def _take(self) -> list[Item]:
        """Remove and return the next batch: the item whose turn it is and its neighbours in length."""
        waiting = [item for item in self._waiting if not item.is_dropped]
        self._waiting = waiting
        if not waiting:
            return []
        lead = min(waiting, key=lambda item: item.tag)
        self._now = lead.tag
        company = [item for item in waiting if item.group == lead.group]
        company.sort(key=lambda item: (len(item.ids), item.tag))
        lengths = [len(item.ids) for item in company]
        start, end = neighbours(lengths, company.index(lead), self._batch_tokens)
        chosen = company[start:end]
        taken = {id(item) for item in chosen}
        self._waiting = [item for item in waiting if id(item) not in taken]
        return chosen

    def _answer(self, batch: list[Item]) -> None:
        longest = max(len(item.ids) for item in batch)
        started = time.perf_counter()
        try:
            results = self._run(batch[0].group, [item.ids for item in batch])
        except GristmillError as error:
            _refuse(batch, error)
            return
        except Exception:  # noqa: BLE001 - surface of the thread: one bad batch must not end it
            _log.exception("batch_failed", group=batch[0].group, n_items=len(batch))
            _refuse(batch, BrokenInvariant("The model could not run this batch; nothing was billed."))
            return
        busy_s = time.perf_counter() - started
        with self._changed:
            self.counters["batches"] += 1
            self.counters["tokens"] += sum(len(item.ids) for item in batch)
            self.counters["padded_tokens"] += longest * len(batch)
            self.counters["busy_s"] += busy_s
        for item, result in zip(batch, results, strict=True):
            item.done(result, busy_s / len(batch), None)


def _refuse(batch: Sequence[Item], error: GristmillError) -> None:
    for item in batch:
        item.done(None, 0.0, error)


def neighbours(lengths: Sequence[int], position: int, batch_tokens: int) -> tuple[int, int]:
    """The range [start, end) around `position` of sorted `lengths` that makes one batch.

    It grows by whichever neighbour brings less padding, while that is at most `MAX_PADDING_TOKENS` and rows ×
    longest stays within `batch_tokens`; equal lengths are always preferred.
    """
    start = bisect.bisect_left(lengths, lengths[position])
    end = bisect.bisect_right(lengths, lengths[position])
    room = max(1, batch_tokens // lengths[position])
    if end - start >= room:
        first = min(position, end - room)
        return first, first + room
    while True:
        longest = lengths[end - 1]
        shorter = longest - lengths[start - 1] if start > 0 else _NEVER
        longer = (lengths[end] - longest) * (end - start) if end < len(lengths) else _NEVER
        if min(shorter, longer) > MAX_PADDING_TOKENS:
            return start, end
        first, last = (start - 1, end) if shorter <= longer else (start, end + 1)
        if (last - first) * lengths[last - 1] > batch_tokens:
            return start, end
        start, end = first, last
