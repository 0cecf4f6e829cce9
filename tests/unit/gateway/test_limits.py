"""Rate limits: the sliding minute."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.core.account import Caller, Customer, Limits, Plan
from gristmill.core.errors import Exhausted
from gristmill.stages.meter.limits import RateLimits
from gristmill.testing.money import FakeClock


class SteppedClock(FakeClock):
    """A clock whose seconds are set by hand."""

    at_s = 1000.0

    def monotonic_s(self) -> float:
        """The set second."""
        return self.at_s


def caller(**limits: Any) -> Caller:
    """Somebody with these limits."""
    plan = Plan("plan_1", "pay", 1, "USD", "prepaid", 0, (), Limits(**limits), ("*",))
    return Caller("key_1", Customer("cust_1", "Ann", "ann"), plan, "sub_1", "", "")


@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 8)), max_size=80),
)
def test_no_minute_ever_holds_more_than_the_limit(limit: int, steps: list[tuple[float, int]]) -> None:
    """Broken: a customer gets more than it bought by timing its requests around a boundary."""
    clock = SteppedClock()
    limits, who, taken = RateLimits(clock), caller(tokens_per_minute=limit), list[tuple[float, int]]()
    for wait_s, n in steps:
        clock.at_s += wait_s
        try:
            limits.take_tokens(who, n)
        except Exhausted:
            continue
        taken.append((clock.at_s, n))
    for start, _ in taken:
        assert sum(n for at, n in taken if start <= at < start + 60) <= limit


def test_the_refusal_says_what_and_when_and_then_holds_its_word() -> None:
    """Broken: a client told to wait N seconds is refused again after them."""
    clock = SteppedClock()
    limits, who = RateLimits(clock), caller(requests_per_minute=2)
    limits.take_request(who)
    clock.at_s += 10
    limits.take_request(who)
    with pytest.raises(Exhausted) as refused:
        limits.take_request(who)
    details = refused.value.details
    assert (details["scope"], details["limit"], details["used"]) == ("requests_per_minute", 2, 2)
    assert details["reset"] == "2026-11-15T12:00:51+00:00"
    clock.at_s += details["retry_after_s"]
    limits.take_request(who)


def test_what_was_reserved_and_not_used_is_given_back_and_more_is_added() -> None:
    """Broken: short answers use up the minute as if they were long, or long ones as if they were short."""
    clock = SteppedClock()
    limits, who = RateLimits(clock), caller(tokens_per_minute=100)
    limits.correct_tokens(who, limits.take_tokens(who, 80), 80, 10)
    limits.correct_tokens(who, limits.take_tokens(who, 80), 80, 88)
    headers = dict(limits.headers(who))
    assert headers[b"x-ratelimit-remaining-tokens"] == b"2"
    clock.at_s += 61.5
    assert dict(limits.headers(who))[b"x-ratelimit-remaining-tokens"] == b"100"


def test_giving_back_late_never_opens_more_than_the_limit() -> None:
    """Broken: what is returned after a minute counts as extra room."""
    clock = SteppedClock()
    limits, who = RateLimits(clock), caller(tokens_per_minute=100)
    at_s = limits.take_tokens(who, 100)
    clock.at_s += 90
    limits.correct_tokens(who, at_s, 100, 0)
    limits.take_tokens(who, 100)
    with pytest.raises(Exhausted):
        limits.take_tokens(who, 1)


def test_a_request_over_the_whole_limit_is_told_so() -> None:
    """Broken: a client waits for ever for room that cannot come."""
    with pytest.raises(Exhausted) as refused:
        RateLimits(SteppedClock()).take_tokens(caller(tokens_per_minute=10), 11)
    assert refused.value.details["reset"] is None


def test_without_limits_there_are_no_headers() -> None:
    """Broken: clients throttle themselves on limits that nobody set."""
    limits, who = RateLimits(SteppedClock()), caller()
    limits.take_request(who)
    limits.take_tokens(who, 10**9)
    assert limits.headers(who) == []
