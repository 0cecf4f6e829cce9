"""Who used how much of a machine that many share: each of n busy requests is charged a n-th of the time.

Invariant: the seconds of all requests sum to the time during which any was busy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class BusyShare:
    """Thread-safe; `now` gives seconds that never run backwards."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._at = now()
        self._each_s = 0.0  # what one request would have been charged, had it been busy all the time
        self._total_s = 0.0
        self._since: dict[int, float] = {}

    @contextmanager
    def busy(self, request: int) -> Iterator[None]:
        """Count `request` as busy within the block."""
        with self._lock:
            self._advance()
            self._since[request] = self._each_s
        try:
            yield
        finally:
            with self._lock:
                self._advance()
                del self._since[request]

    def so_far(self, request: int) -> float:
        """Seconds charged to a busy request until now; 0 for one that is not busy."""
        with self._lock:
            self._advance()
            return self._each_s - self._since.get(request, self._each_s)

    def total(self) -> float:
        """Seconds during which any request was busy."""
        with self._lock:
            self._advance()
            return self._total_s

    def _advance(self) -> None:
        now = self._now()
        if self._since:
            self._each_s += (now - self._at) / len(self._since)
            self._total_s += now - self._at
        self._at = now
