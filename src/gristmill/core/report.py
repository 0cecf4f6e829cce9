"""Reports, gates and verdicts: measured quality and the limits set on it.

Invariant: a gate fails closed: a metric that was not measured, or is not a number, refuses.
"""

from __future__ import annotations

import math

import msgspec


class Metric(msgspec.Struct, frozen=True):
    """A measured value with its 95 % bootstrap interval over `n` examples."""

    name: str
    value: float
    low: float
    high: float
    n: int


class Gate(msgspec.Struct, frozen=True):
    """A limit on one metric.

    Attributes:
        metric: name of the metric, e.g. "accuracy" or "parity".
        against: None for the value itself, or "baseline" | "base" | "production" for the paired difference
            to that subject; a gate against "production" passes when there is none yet.
        min, max: limits on the value. min_low: limit on the interval's lower end (exclusive).
    """

    metric: str
    against: str | None = None
    min: float | None = None
    max: float | None = None
    min_low: float | None = None


class Verdict(msgspec.Struct, frozen=True):
    """What a gate decided, with the measured figure in the reason."""

    gate: Gate
    is_passed: bool
    reason: str


class Report(msgspec.Struct, frozen=True):
    """Everything measured about one run or import.

    Attributes:
        metrics: subject ("candidate", "baseline", "base", "production") → its metrics.
        differences: "accuracy-baseline" → paired difference candidate − subject with its interval.
        facts: latency_p50_ms, latency_p95_ms, size_bytes, n_test …
        examples: a few test inputs with expected and given answers (masked data), for the card.
    """

    metrics: dict[str, list[Metric]]
    differences: dict[str, Metric]
    facts: dict[str, float]
    verdicts: list[Verdict] = []
    examples: list[dict[str, str]] = []

    @property
    def is_passed(self) -> bool:
        """Whether every gate passed."""
        return all(verdict.is_passed for verdict in self.verdicts)

    def find(self, gate: Gate) -> Metric | None:
        """The metric a gate speaks of, or None when it was not measured."""
        if gate.against is not None:
            return self.differences.get(f"{gate.metric}-{gate.against}")
        for metric in self.metrics.get("candidate", []):
            if metric.name == gate.metric:
                return metric
        if gate.metric in self.facts:
            value = self.facts[gate.metric]
            return Metric(gate.metric, value, value, value, 1)
        return None


def judge(gate: Gate, report: Report) -> Verdict:
    """Decide one gate, fail closed."""
    name = gate.metric if gate.against is None else f"{gate.metric} over {gate.against}"
    metric = report.find(gate)
    if metric is None and gate.against == "production" and "production" not in report.metrics:
        return Verdict(gate, True, f"{name}: no production release yet")
    if metric is None or not math.isfinite(metric.value):
        return Verdict(gate, False, f"{name} was not measured")
    figure = f"{name} {metric.value:.4g} [{metric.low:.4g}, {metric.high:.4g}]"
    if gate.min is not None and not metric.value >= gate.min:
        return Verdict(gate, False, f"{figure} is under {gate.min:g}")
    if gate.max is not None and not metric.value <= gate.max:
        return Verdict(gate, False, f"{figure} is over {gate.max:g}")
    if gate.min_low is not None and not metric.low > gate.min_low:
        return Verdict(gate, False, f"{figure}: the interval is not clear of {gate.min_low:g}")
    return Verdict(gate, True, figure)
