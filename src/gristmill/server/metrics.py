"""Prometheus metrics: what the server counts itself, and what it reads from engines and ledger when scraped.

Invariant: labels come from closed sets (route templates, status codes, known model names), so that a client
cannot grow the memory of the server by inventing names. Source: Prometheus text format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Snapshot:
    """What is read at scrape time; each callable may be absent.

    Attributes:
        engines: figures of every engine child. runs: state → number of runs. ledger: counters by name.
    """

    def __init__(
        self,
        engines: Callable[[], Iterable[EngineFigures]] = tuple,
        runs: Callable[[], Mapping[str, int]] = dict,
        ledger: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self.engines = engines
        self.runs = runs
        self.ledger = ledger


class EngineFigures(Protocol):
    """An engine child: its plug-in, what it serves, whether it takes calls, and its figures."""

    @property
    def engine(self) -> str:
        """Plug-in name."""
        ...

    @property
    def group(self) -> str:
        """Base digest or release id."""
        ...

    @property
    def counters(self) -> Mapping[str, float]:
        """Figures by name."""
        ...


class Metrics:
    """The server's own registry."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self.registry = CollectorRegistry()
        labels = ("route", "status", "model")
        self.requests = Counter("gristmill_requests", "Requests answered.", labels, registry=self.registry)
        self.latency = Histogram(
            "gristmill_request_seconds",
            "Seconds to the last byte.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "gristmill_first_token_seconds",
            "Seconds to the first streamed byte.",
            ("model",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.tokens = Counter(
            "gristmill_usage", "Quantity settled, by meter.", ("model", "meter"), registry=self.registry
        )
        self.registry.register(_Scraped(snapshot or Snapshot()))

    def observe(
        self, route: str, status: int, model: str, seconds: float, first_byte_s: float | None = None
    ) -> None:
        """Count one answered request.

        Args:
            route: route template.
            status: HTTP status.
            model: public name that resolved, or "".
            seconds: to the last byte.
            first_byte_s: seconds to the first byte of a stream; None when it was not one.
        """
        self.requests.labels(route, str(status), model).inc()
        self.latency.labels(route).observe(seconds)
        if first_byte_s is not None:
            self.first_token.labels(model).observe(first_byte_s)

    def used(self, model: str, meters: Mapping[str, int]) -> None:
        """Count what one request used."""
        for meter, quantity in meters.items():
            self.tokens.labels(model, meter).inc(quantity)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Scraped(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """Read engines, ledger and runs now."""
        figures: dict[str, GaugeMetricFamily] = {}
        labels = ["engine", "group"]
        for child in self._snapshot.engines():
            for name, value in {"up": 1.0, **child.counters}.items():
                if name not in figures:
                    figures[name] = GaugeMetricFamily(
                        f"gristmill_engine_{name}", f"Engine: {name}.", labels=labels
                    )
                figures[name].add_metric([child.engine, child.group], float(value))
        yield from figures.values()
        for name, value in self._snapshot.ledger().items():
            counter = CounterMetricFamily(f"gristmill_ledger_{name}", f"Ledger writer: {name}.")
            counter.add_metric([], float(value))
            yield counter
        runs = GaugeMetricFamily("gristmill_runs", "Runs by state.", labels=["state"])
        for state, count in self._snapshot.runs().items():
            runs.add_metric([state], float(count))
        yield runs
