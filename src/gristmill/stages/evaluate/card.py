"""The model card: a release's recorded facts as Markdown, and nothing that was not recorded.

Source: Mitchell et al., Model Cards for Model Reporting (2019), for the order of its sections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gristmill.core.dataset import DatasetVersion
from gristmill.core.report import Metric, Report
from gristmill.core.run import Trained

_SHOWN = 200  # characters of an example


def card(
    *,
    title: str,
    facts: Mapping[str, Any],
    report: Report,
    version: DatasetVersion | None = None,
    trained: Trained | None = None,
    hyper: Mapping[str, Any] | None = None,
) -> str:
    """A card of what is known.

    Args:
        title: product and version, or file name.
        facts: label → value for the first table (task, base model, licence, digest …).
        report: what was measured.
        version: the data it learnt from; None when it was not trained here.
        trained: how the training went.
        hyper: the trainer's settings.
    """
    parts = [f"# {title}", _table(("", ""), [(name, str(value)) for name, value in facts.items()])]
    if version is not None:
        parts += ["## Data", _data(version)]
    if trained is not None:
        parts += ["## Training", _training(trained, hyper or {})]
    parts += ["## Evaluation", _evaluation(report)]
    if report.verdicts:
        rows = [("passed" if v.is_passed else "refused", v.reason) for v in report.verdicts]
        parts += ["## Gates", _table(("verdict", "reason"), rows)]
    if report.examples:
        names = list(report.examples[0])
        shown = [[example.get(name, "") for name in names] for example in report.examples]
        parts += ["## Examples", _table(names, shown)]
    return "\n\n".join(parts) + "\n"


def _data(version: DatasetVersion) -> str:
    rows = [
        ("dataset version", f"{version.dataset} {version.number} ({version.id})"),
        ("content digest", version.digest),
        ("licence", version.licence),
        ("source", version.source),
        *((name, f"{count:,}") for name, count in version.counts.items()),
    ]
    return _table(("", ""), rows)


def _training(trained: Trained, hyper: Mapping[str, Any]) -> str:
    rows = [
        ("training", f"{trained.train_s:.1f} s on {trained.device}"),
        ("export", f"{trained.export_s:.1f} s"),
        ("steps", f"{trained.steps:,}"),
        ("epochs", f"{trained.epochs:g}"),
        ("ended early by", trained.stopped_reason or "no, it ran to its end"),
        *((name, f"{value:.4g}") for name, value in trained.metrics.items()),
        *((f"setting {name}", str(value)) for name, value in hyper.items()),
        *((f"version of {name}", value) for name, value in trained.environment.items()),
    ]
    return _table(("", ""), rows)


def _evaluation(report: Report) -> str:
    rows = [
        (subject, metric.name, _figure(metric), f"{metric.n:,}")
        for subject, metrics in report.metrics.items()
        for metric in metrics
    ]
    for name, metric in report.differences.items():
        against = name.removeprefix(f"{metric.name}-")
        rows.append((f"candidate − {against}", metric.name, _figure(metric), f"{metric.n:,}"))
    tables = [_table(("subject", "metric", "value [95 % interval]", "examples"), rows)] if rows else []
    tables.append(_table(("fact", "value"), [(name, f"{value:.6g}") for name, value in report.facts.items()]))
    return "\n\n".join(tables)


def _figure(metric: Metric) -> str:
    return f"{metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}]"


def _cell(text: str) -> str:
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
