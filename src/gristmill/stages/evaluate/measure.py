"""Measuring a candidate beside a baseline, its base model and the release in production.

Invariant: all subjects answer the same test rows, and a figure that could not be measured is left out, so
that a gate on it refuses. Engines are reached through a callable; this stage starts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from gristmill.core.clock import Clock
from gristmill.core.dataset import Row
from gristmill.core.errors import BrokenInvariant
from gristmill.core.op import Done, Op
from gristmill.core.report import Gate, Metric, Report, judge
from gristmill.ports.task import Task
from gristmill.stages.evaluate.bootstrap import difference, mean_with_interval

Answer = Callable[[str, list[Op]], list[Done]]
"""Asks a release a list of Ops and returns their answers in order."""

CANDIDATE = "candidate"
PARITY = "parity"
_PROBES = 16  # single requests timed, or as many as fit into
_PROBE_S = 5.0
_EXAMPLES = 5
_MIN_PARITY = {"generate": 0.9}
_MIN_PARITY_ELSE = 0.98


class Answers(msgspec.Struct, frozen=True):
    """What a release gave: one output an Op, and the engine seconds they took."""

    outputs: list[Any]
    busy_s: float


def ask(answer: Answer, release: str, ops: Sequence[Op]) -> Answers:
    """Ask every Op of a release; all of them must be answered.

    Raises:
        BrokenInvariant: the engine answered another number of Ops than it was asked.
    """
    done = answer(release, list(ops))
    if len(done) != len(ops):
        raise BrokenInvariant(f"{release} answered {len(done)} of {len(ops)} requests.")
    return Answers([item.results[0] for item in done], sum(item.busy_s for item in done))


def latency(answer: Answer, release: str, ops: Sequence[Op], clock: Clock) -> dict[str, float]:
    """Latency of single requests, one after the other, in ms: facts latency_p50_ms and latency_p95_ms."""
    times: list[float] = []
    for op in ops[:_PROBES]:
        if sum(times) > 1000 * _PROBE_S:
            break
        started = clock.monotonic_s()
        answer(release, [op])
        times.append(1000 * (clock.monotonic_s() - started))
    if not times:
        return {}
    times.sort()
    return {"latency_p50_ms": _quantile(times, 0.5), "latency_p95_ms": _quantile(times, 0.95)}


def parity(task: Task, expected: Sequence[Any], given: Sequence[Any]) -> dict[str, float]:
    """Mean agreement of the served artefact with the trained model: the fact "parity" of a replay."""
    if not expected:
        return {}
    agreements = [task.agreement(a, b) for a, b in zip(expected, given, strict=True)]
    return {PARITY: sum(agreements) / len(agreements), "n_replayed": float(len(agreements))}


def report(
    task: Task, rows: Sequence[Row], outputs: Mapping[str, Sequence[Any] | None], facts: Mapping[str, float]
) -> Report:
    """Score every subject on the same rows.

    Args:
        task: the task, which scores one example at a time.
        rows: the test rows.
        outputs: subject ("candidate", "baseline", "base", "production") → outputs, None where there are none.
        facts: what was measured besides.

    Returns:
        A report without verdicts; see `decide`.
    """
    scores = {
        subject: {name: list(each) for name, each in task.scores(rows, given).items() if each}
        for subject, given in outputs.items()
        if given is not None and rows
    }
    metrics: dict[str, list[Metric]] = {
        subject: [mean_with_interval(name, each) for name, each in named.items()]
        for subject, named in scores.items()
    }
    candidate = scores.get(CANDIDATE, {})
    differences = {
        f"{name}-{subject}": difference(name, each, named[name])
        for subject, named in scores.items()
        if subject != CANDIDATE
        for name, each in candidate.items()
        if name in named and len(named[name]) == len(each)
    }
    given = outputs.get(CANDIDATE) or []
    examples = [task.shown(row, output) for row, output in list(zip(rows, given, strict=False))[:_EXAMPLES]]
    known = dict(facts) | {"n_test": float(len(rows))}
    return Report(metrics=metrics, differences=differences, facts=known, examples=examples)


def with_implicit(gates: Iterable[Gate], op: str) -> list[Gate]:
    """The recipe's gates and, unless it names parity itself, the least parity that an export must keep."""
    named = list(gates)
    if any(gate.metric == PARITY and gate.against is None for gate in named):
        return named
    return [*named, Gate(PARITY, min=_MIN_PARITY.get(op, _MIN_PARITY_ELSE))]


def decide(measured: Report, gates: Iterable[Gate]) -> Report:
    """The same report with the verdict of each gate."""
    return msgspec.structs.replace(measured, verdicts=[judge(gate, measured) for gate in gates])


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
