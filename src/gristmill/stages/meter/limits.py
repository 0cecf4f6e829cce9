"""Rate limits: requests and tokens a minute, per customer, in memory.

Invariant: a request or token beyond the limit in any 60 seconds is refused at admission; output is reserved a
slice ahead and corrected to what was emitted, so a long stream counts in full against what comes after it.
"""

from __future__ import annotations

from datetime import timedelta

from gristmill.core.account import Caller
from gristmill.core.clock import Clock
from gristmill.core.errors import Exhausted
from gristmill.stages.meter.window import Window


class RateLimits:
    """The windows of all customers whose plan has limits."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._requests: dict[str, Window] = {}
        self._tokens: dict[str, Window] = {}

    def take_request(self, caller: Caller) -> None:
        """Count one request, or refuse.

        Raises:
            Exhausted: scope "requests_per_minute" with limit, used and reset (ISO 8601).
        """
        limit = caller.plan.limits.requests_per_minute
        if limit is not None:
            self._take(self._requests, caller.customer.id, 1, limit, "requests_per_minute")

    def take_tokens(self, caller: Caller, n: int) -> float:
        """Count `n` tokens, or refuse; returns when they were taken, for `correct_tokens`.

        Raises:
            Exhausted: scope "tokens_per_minute" with limit, used and reset (ISO 8601).
        """
        limit = caller.plan.limits.tokens_per_minute
        if limit is None:
            return 0.0
        self._take(self._tokens, caller.customer.id, n, limit, "tokens_per_minute")
        return self._clock.monotonic_s()

    def correct_tokens(self, caller: Caller, taken_s: float, taken: int, used: int) -> None:
        """Put what a request used in place of the `taken` tokens it was admitted with; refuses nothing."""
        if caller.plan.limits.tokens_per_minute is None:
            return
        window = self._tokens.setdefault(caller.customer.id, Window())
        if used > taken:
            window.add(self._clock.monotonic_s(), used - taken)
        else:
            window.give_back(taken_s, taken - used)

    def headers(self, caller: Caller) -> list[tuple[bytes, bytes]]:
        """The `x-ratelimit-*` headers of the limits that exist. Source: OpenAI, "Rate limits"."""
        limits, found = caller.plan.limits, []
        now_s = self._clock.monotonic_s()
        for limit, windows, what in (
            (limits.requests_per_minute, self._requests, b"requests"),
            (limits.tokens_per_minute, self._tokens, b"tokens"),
        ):
            if limit is None:
                continue
            window = windows.setdefault(caller.customer.id, Window())
            window.advance(now_s)
            reset_s = window.wait_s(now_s, window.used) if window.used > 0 else 0.0
            found += [
                (b"x-ratelimit-limit-" + what, b"%d" % limit),
                (b"x-ratelimit-remaining-" + what, b"%d" % max(0, limit - window.used)),
                (b"x-ratelimit-reset-" + what, b"%.1fs" % reset_s),
            ]
        return found

    def _take(self, windows: dict[str, Window], customer_id: str, n: int, limit: int, scope: str) -> None:
        window, now_s = windows.setdefault(customer_id, Window()), self._clock.monotonic_s()
        window.advance(now_s)
        if window.used + n <= limit:
            window.add(now_s, n)
            return
        unit = scope.partition("_")[0]
        if n > limit:
            raise Exhausted(
                f"This request needs {n} {unit}, more than the plan's limit of {limit} a minute.",
                scope=scope, limit=limit, used=window.used, reset=None,
            )  # fmt: skip
        wait_s = window.wait_s(now_s, window.used + n - limit)
        raise Exhausted(
            f"The limit of {limit} {unit} a minute is reached.",
            hint=f"Try again in {wait_s:.0f} s.",
            scope=scope,
            limit=limit,
            used=window.used,
            reset=(self._clock.now() + timedelta(seconds=wait_s)).isoformat(timespec="seconds"),
            retry_after_s=int(wait_s) + 1,
        )
