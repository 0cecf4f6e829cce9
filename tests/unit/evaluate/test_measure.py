"""Measuring and judging: subjects side by side, parity, gates that fail closed, and the card."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gristmill.core.clock import SystemClock
from gristmill.core.errors import BrokenInvariant
from gristmill.core.op import Done, Op
from gristmill.core.report import Gate, Metric, Report, judge
from gristmill.core.run import Trained
from gristmill.stages.evaluate import measure
from gristmill.stages.evaluate.card import card
from gristmill.stages.evaluate.probes import probes
from gristmill.stages.evaluate.queries import to_document
from gristmill.testing.toy import ToyTask

TASK = ToyTask()
ROWS = [{"text": f"w{i}", "label": "ab"[i % 2]} for i in range(40)]
RIGHT = [{"label": row["label"]} for row in ROWS]
ALWAYS_A = [{"label": "a"}] * len(ROWS)


def answer(_release: str, ops: list[Op]) -> list[Done]:
    """An engine that says "a" to everything."""
    return [Done(i, [{"label": "a"}], {"items": 1}, 0.5, "stop", "d") for i, _ in enumerate(ops)]


def report_of(**outputs: Any) -> Report:
    """A report of the given subjects."""
    return measure.report(TASK, ROWS, outputs, {"size_bytes": 10.0})


def test_subjects_stand_side_by_side() -> None:
    """A report would show a quality without what it is to be compared with."""
    report = report_of(candidate=RIGHT, baseline=ALWAYS_A, base=None)
    assert {subject: each[0].value for subject, each in report.metrics.items()} == {
        "candidate": 1.0,
        "baseline": 0.5,
    }
    gain = report.differences["accuracy-baseline"]
    assert gain.value == 0.5
    assert 0.3 < gain.low < 0.5 < gain.high < 0.7
    assert report.facts == {"size_bytes": 10.0, "n_test": 40.0}
    assert report.examples[1] == {"input": "w1", "expected": "b", "given": "b"}


@pytest.mark.parametrize(
    ("gate", "is_passed"),
    [
        (Gate("accuracy", min=0.9), True),
        (Gate("accuracy", against="baseline", min=0.03, min_low=0.0), True),
        (Gate("accuracy", against="baseline", min=0.6), False),
        (Gate("accuracy", against="production", min_low=0.0), True),
        (Gate("accuracy", against="base", min=0.0), False),
        (Gate("f1", min=0.0), False),
        (Gate("size_bytes", max=20.0), True),
        (Gate("size_bytes", max=5.0), False),
        (Gate("parity", min=0.98), False),
    ],
)
def test_gates_fail_closed(gate: Gate, is_passed: bool) -> None:
    """A figure nobody measured would pass a gate."""
    report = report_of(candidate=RIGHT, baseline=ALWAYS_A)
    verdict = judge(gate, report)
    assert verdict.is_passed is is_passed, verdict.reason


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_refuses(value: float) -> None:
    """NaN compares false to everything, so a limit alone would not catch it."""
    metric = Metric("accuracy", value, value, value, 1)
    for gate in (Gate("accuracy", min=0.0), Gate("accuracy", max=2.0), Gate("accuracy", min_low=0.0)):
        verdict = judge(gate, Report(metrics={"candidate": [metric]}, differences={}, facts={}))
        assert not verdict.is_passed


def test_a_report_with_nan_can_be_stored() -> None:
    """JSON has no NaN: the report of a broken model could not be kept as evidence."""
    metric = Metric("accuracy", math.nan, math.nan, math.nan, 1)
    document = to_document(Report({"candidate": [metric]}, {"accuracy-base": metric}, {"parity": math.inf}))
    assert document["metrics"] == {"candidate": []}
    assert document["facts"] == {}


def test_no_test_rows_means_no_metric() -> None:
    """A product without a test part would be released on no evidence."""
    report = measure.decide(measure.report(TASK, [], {"candidate": []}, {}), [Gate("accuracy", min=0.1)])
    assert not report.is_passed


def test_parity_counts_agreement_and_is_gated_by_default() -> None:
    """Damage done by an export would ship when the recipe forgot to ask for parity."""
    facts = measure.parity(TASK, RIGHT, [*RIGHT[:-1], {"label": "x"}])
    assert facts == {"parity": 39 / 40, "n_replayed": 40.0}
    gates = measure.with_implicit([Gate("accuracy", min=0.5)], "classify")
    assert gates[-1] == Gate("parity", min=0.98)
    assert not measure.decide(measure.report(TASK, ROWS, {"candidate": RIGHT}, facts), gates).is_passed
    assert measure.with_implicit([], "generate") == [Gate("parity", min=0.9)]
    own = [Gate("parity", min=0.5)]
    assert measure.with_implicit(own, "classify") == own
    assert measure.parity(TASK, [], []) == {}


def test_every_op_must_be_answered() -> None:
    """Answers that were lost would leave rows unscored, or shift all that follow."""
    assert measure.ask(answer, "rel", [Op("classify", ("x",))] * 3).busy_s == 1.5
    with pytest.raises(BrokenInvariant, match="answered 0 of 1"):
        measure.ask(lambda _release, _ops: [], "rel", [Op("classify", ("x",))])


def test_latency_is_of_single_requests() -> None:
    """A latency taken from a batch would promise customers what they cannot get."""
    asked: list[int] = []

    def one(_release: str, ops: list[Op]) -> list[Done]:
        asked.append(len(ops))
        return answer(_release, ops)

    facts = measure.latency(one, "rel", [Op("classify", ("x",))] * 100, SystemClock())
    assert set(asked) == {1}
    assert 0 <= facts["latency_p50_ms"] <= facts["latency_p95_ms"]
    assert measure.latency(one, "rel", [], SystemClock()) == {}


def test_probes_exist_for_the_kinds_we_serve() -> None:
    """An imported model would be registered without ever having answered."""
    assert all(
        op.kind == kind and len(op.inputs) == 1
        for kind in ("classify", "embed", "generate")
        for op in probes(kind)
    )
    assert probes("other") == []


def test_the_card_tells_recorded_facts_only() -> None:
    """A card would claim what was not measured, or a text of the data would break its tables."""
    report = measure.decide(report_of(candidate=RIGHT, baseline=ALWAYS_A), [Gate("accuracy", min=2.0)])
    trained = Trained(1.5, 0.5, 8, 1.0, {"loss": 0.25}, 8, "max_minutes", "cpu", {"python": "3.11"})
    text = card(title="reviewdesk", facts={"task": "toy|x"}, report=report, trained=trained, hyper={"lr": 1})
    assert text.startswith("# reviewdesk\n")
    assert "| candidate | accuracy | 1.0000 [1.0000, 1.0000] | 40 |" in text
    assert "| candidate − baseline | accuracy | 0.5000" in text
    assert "| refused | accuracy 1 [1, 1] is under 2 |" in text
    assert "| ended early by | max_minutes |" in text
    assert "toy\\|x" in text
    assert "## Data" not in text
