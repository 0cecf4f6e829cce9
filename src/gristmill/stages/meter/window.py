"""A sliding minute: how much was used in the last 60 seconds.

Invariant: what is taken only when `used + n <= limit` never exceeds the limit in any 60-second window: one
bucket a second, and a bucket leaves only when all of its second is more than a minute old.
"""

from __future__ import annotations

_SPAN_S = 60


class Window:
    """Use by second over the last minute, with its running sum."""

    __slots__ = ("_buckets", "_latest_s", "used")

    def __init__(self) -> None:
        self.used = 0
        self._latest_s = 0
        self._buckets: dict[int, int] = {}

    def advance(self, now_s: float) -> None:
        """Forget what is more than a minute old."""
        second = int(now_s)
        if second == self._latest_s:
            return
        self._latest_s = second
        for old in [at for at in self._buckets if at < second - _SPAN_S]:
            self.used -= self._buckets.pop(old)

    def add(self, now_s: float, n: int) -> None:
        """Count `n` at this second."""
        self.advance(now_s)
        second = int(now_s)
        self._buckets[second] = self._buckets.get(second, 0) + n
        self.used += n

    def give_back(self, taken_s: float, n: int) -> None:
        """Take back up to `n` of what was counted at that second, if it still counts."""
        counted = self._buckets.get(int(taken_s), 0)
        returned = min(n, counted)
        if returned:
            self._buckets[int(taken_s)] = counted - returned
            self.used -= returned

    def wait_s(self, now_s: float, excess: int) -> float:
        """Seconds until at least `excess` of what is counted now has left the window (at most a minute)."""
        freed = 0
        for at in sorted(self._buckets):
            freed += self._buckets[at]
            if freed >= excess:
                return max(0.0, at + _SPAN_S + 1 - now_s)
        return float(_SPAN_S + 1)
